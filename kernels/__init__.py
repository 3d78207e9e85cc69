"""The compute side: paged attention, cache writes and block copies as Triton kernels.

Without a GPU the same source runs in Triton's interpreter: set TRITON_INTERPRET=1 before anything
imports triton, and import `kernels.interpreter` for what makes it right and fast.
"""
