"""What makes Triton's interpreter right and fast. Importing this installs it.

The interpreter computes bfloat16 and float8 on their bit patterns, without a message, and spends
most of its time on work whose result nobody uses. Upstream does not plan to support the two types
(triton issues 10945, 11584), so the corrections live here, each with a test that fails without it:

`numbers`      bfloat16, float8 and tf32 as bits
`arithmetic`   casts, elementwise operations, matrix products and reductions of these types
`language`     builtins by other names, `and` of blocks, constants
`libdevice`    functions of NVIDIA's and AMD's libraries
`releases`     what earlier Triton releases get wrong
`launch`       the cost of a launch and of a nested call
`operations`   the cost of an operation; optional int32 overflow checks

Only processes that were started with TRITON_INTERPRET=1 are affected. In such a process
PAGEDBENCH_STOCK_INTERPRETER=1 leaves Triton's interpreter as it came, to compare with.
"""

import os

from kernels.interpreter.install import (
    CORRECTIONS,
    install,
    installed,
    interpreting,
    overflow_checks,
)

__all__ = ["CORRECTIONS", "install", "installed", "interpreting", "overflow_checks"]

_asked = os.environ.get("PAGEDBENCH_STOCK_INTERPRETER", "0")
if _asked not in {"0", "1"}:
    raise ValueError(f"PAGEDBENCH_STOCK_INTERPRETER={_asked!r}: set it to 1, or to 0 or not at all")
if _asked == "0":
    install()
