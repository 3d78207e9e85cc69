"""Attention kernels by name: ours, other people's, and the user's."""
