"""Kernels compiled ahead of time, without a GPU, and held against stored figures."""
