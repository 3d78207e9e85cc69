"""Fuzzing allocators: draw programs, run them, make what is found small, and keep it."""
