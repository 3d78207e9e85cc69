"""What earlier Triton releases get wrong and later ones right, as far as kernels here meet it.

Correct releases are patched as well: the results are the same there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as ti


def index_with_one_element(module: Any) -> None:
    """Let a one-element tensor bound a loop, also in Triton 3.6 with numpy 2.4.

    There `int(array)` meets numpy's refusal to convert arrays that are not 0-d, and every kernel
    with a run-time loop bound fails.
    """
    stock = module._patch_lang_tensor

    def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
        stock(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    module._patch_lang_tensor = _patch_lang_tensor


def drop_nan(builder: type[Any]) -> None:
    """`tl.maximum`, `tl.minimum` and `tl.clamp` drop a NaN unless told otherwise: 3.6 does not."""
    stock_clamp = builder.create_clampf

    def create_clampf(self: Any, arg: Any, lo: Any, hi: Any, propagate_nans: Any) -> Any:
        if propagate_nans == ti._ir.PROPAGATE_NAN.NONE:
            return self.create_minnumf(self.create_maxnumf(arg, lo), hi)
        return stock_clamp(self, arg, lo, hi, propagate_nans)

    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)
    builder.create_clampf = create_clampf


def bfloat16_constants(builder: type[Any]) -> None:
    """`tl.full` of bfloat16, which 3.6 lacks."""
    builder.get_bf16 = lambda self, value: self.create_fp_trunc(self.get_fp32(value), tl.bfloat16)
