"""vLLM's Triton merge of a prefix and a suffix, `merge_attn_states`.

It is called as its attention layers do, with outputs that are dense: the launcher takes the head
stride of the prefix for that of the suffix, and the number of heads times that for a token's
(vllm/v1/attention/ops/triton_merge_attn_states.py). Its log-sum-exps are [heads, tokens], of any
strides.
"""

from __future__ import annotations

from typing import Any

import torch

from reference.attention.contract import Capabilities, MergeBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.vllm_wheel import check_gpu, load_merge, minor_release

_launcher: Any = None


def _prepare(device: str) -> None:
    check_gpu("vllm-merge", device)
    global _launcher  # noqa: PLW0603 - one kernel in one process
    minor_release()
    _launcher = load_merge().merge_attn_states


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="merge",
        declines=frozenset({"empty", "many_parts"}),
        promises=frozenset({"deterministic"}),
    )
)
def attention(batch: MergeBatch) -> None:
    """Fill `batch.out` and `batch.lse`; what is one part alone is merged with nothing."""
    outs, lses = list(batch.part_out), list(batch.part_lse)
    if len(outs) == 1:
        outs.append(torch.zeros_like(outs[0]))
        lses.append(torch.full_like(lses[0], -torch.inf))
    out = torch.empty(batch.out.shape, dtype=batch.out.dtype, device=batch.out.device)
    lse = None if batch.lse is None else batch.lse.t()
    _launcher(out, outs[0].contiguous(), lses[0].t(), outs[1].contiguous(), lses[1].t(), lse)
    batch.out.copy_(out)
