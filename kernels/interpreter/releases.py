"""Differences between Triton releases that change what an interpreted kernel does."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl


def index_with_one_element(tensor: type[Any]) -> None:
    """Let a one-element tensor bound a loop.

    Triton 3.6 converts with `int(array)`, which numpy 2.4 refuses for arrays that are not 0-d:
    every kernel with a run-time loop bound fails.
    """
    tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])


def maximum_drops_nan(builder: type[Any]) -> None:
    """`tl.maximum` and `tl.minimum` ignore a NaN operand, as on a GPU and since Triton 3.7."""
    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)


def patch_language(module: Any) -> None:
    """Re-apply what the interpreter's own patching of `triton.language` overwrites."""
    stock = module._patch_lang_tensor

    def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
        stock(tensor, scope)
        index_with_one_element(tl.tensor)

    module._patch_lang_tensor = _patch_lang_tensor
