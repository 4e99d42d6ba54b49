"""The loop on hosts, and the command line over it."""
