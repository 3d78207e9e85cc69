"""The commands, a file each: options in, a plan out. The work is done in the rooms of the jobs."""
