"""Cache ways and memory bandwidth through resctrl, and a file tree in memory that refuses as the kernel refuses."""
