"""FlashMLA's dense decode over a latent cache, on a GPU.

Arguments, limits and shapes are those of flash_mla/flash_mla_interface.py (deepseek-ai/FlashMLA):
records of 512 + 64 elements, blocks of 64 tokens, float16 and bfloat16, one query token for each
sequence here. What `get_mla_metadata` returns is a schedule for one step: a model has it made once
for all its layers, and so it stands before the timed call of `pagedbench throughput`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch import Tensor

from reference.attention.contract import Capabilities, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.attention.peers.gpu_package import import_for_gpu

DISTRIBUTION: Final = "flash_mla"

_package: Any = None


def _prepare(device: str) -> None:
    global _package  # noqa: PLW0603 - one kernel in one process
    _package = import_for_gpu("flash_mla", distribution=DISTRIBUTION, device=device)


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="latent",
        dtypes=frozenset({"fp16", "bf16"}),
        kv_dtypes=frozenset(),
        head_dims=frozenset({576}),
        value_dims=frozenset({512}),
        block_sizes=frozenset({64}),
        variants=frozenset({"lse"}),
        declines=frozenset({"waiting", "empty", "strides=table"}),
    )
)
def attention(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`."""
    out, lse = planned(batch)()
    batch.out.copy_(out.squeeze(1))
    if batch.lse is not None:
        batch.lse.copy_(lse.squeeze(2))  # [num_seqs, num_q_heads, 1]


def planned(batch: PagedBatch) -> Callable[[], tuple[Tensor, Tensor]]:
    """The call, its schedule made: out is [num_seqs, 1, num_q_heads, 512]."""
    # Releases before the schedule was an object take these three, later ones ignore them.
    schedule, splits = _package.get_mla_metadata(batch.seq_lens, batch.query.shape[1], 1)
    return partial(
        _package.flash_mla_with_kvcache,
        batch.query.unsqueeze(1),
        batch.key_cache,
        batch.block_table,
        batch.seq_lens,
        batch.value_dim,
        schedule,
        splits,
        softmax_scale=batch.scale,
        causal=True,
    )
