"""FlashInfer's Triton merge of states as a kernel of `pagedbench check`, interpreted.

Its one file is loaded from the environment that `make engine-flashinfer` builds. The launcher asks
for a GPU of compute capability 9, and is left out.
"""

from functools import cache
from typing import Any

import torch

from reference.attention.contract import Capabilities, MergeBatch, declares
from subjects.environments import engine_python
from subjects.loading import load

FILE = "site-packages/flashinfer/triton/kernels/cascade.py"


@cache
def kernel() -> Any:
    """The kernel, unmodified."""
    packages = engine_python("flashinfer").parents[1]
    (file,) = packages.glob(f"lib/python3*/{FILE}")
    return load(f"{file}:merge_states_kernel", what="kernel")


@declares(Capabilities(kind="merge", lse_base="2", declines=frozenset({"empty"})))
def merge(batch: MergeBatch) -> None:
    """Fill `batch.out` and `batch.lse`, as `merge_states` of flashinfer.triton does."""
    v, s = (part.transpose(0, 1).contiguous() for part in (batch.part_out, batch.part_lse))
    tokens, parts, heads, size = v.shape
    out, lse = torch.empty_like(v[:, 0]), torch.empty_like(s[:, 0])
    kernel()[(tokens,)](v, s, out, lse, parts, heads, size, bdx=size, bdy=heads)
    batch.out.copy_(out)
    if batch.lse is not None:
        batch.lse.copy_(lse)
