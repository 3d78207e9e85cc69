"""How fast attention kernels are, ours and others', side by side in one process and in turns."""
