"""Which cgroup each VM lives in right now, as libvirt and the process table tell; never asked within a tick."""
