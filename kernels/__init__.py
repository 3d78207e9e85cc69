"""The compute side: paged attention, cache writes and block copies as Triton kernels.

Without a GPU the same source runs in Triton's interpreter: set TRITON_INTERPRET=1 before anything
imports triton, and import `kernels.interpreter` for what makes it right and fast.
"""

import os

# Triton 3.10 stops fusing multiply and add unless told to; the same source should give the same
# code under every release that is compared.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
