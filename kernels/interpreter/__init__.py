"""What makes Triton's interpreter right and fast. Importing this installs it.

The interpreter computes bfloat16 and float8 on their bit patterns, without a message, and spends
most of its time on work whose result nobody uses. Upstream does not plan to support the two types
(triton issues 10945, 11584), so the corrections live here, each with a test that fails without it:

`numbers`     casts, arithmetic, reductions and matrix products of bfloat16 and float8; tf32
`dispatch`    the cost of a launch and of a nested call; optional int32 overflow checks
`releases`    differences between Triton releases

Only processes that were started with TRITON_INTERPRET=1 are affected.
"""

from kernels.interpreter.install import install, installed, interpreting, overflow_checks

__all__ = ["install", "installed", "interpreting", "overflow_checks"]

if interpreting():
    install()
