"""Real hosts: cgroup v1 and v2, sched_setaffinity, sysfs."""
