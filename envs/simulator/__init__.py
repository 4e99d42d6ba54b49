"""A vectorised model of hosts whose VMs compete for CPU, cache, memory bandwidth and IO bandwidth."""
