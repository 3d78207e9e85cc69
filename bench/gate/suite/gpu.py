"""The Triton kernels on a GPU: attention, cache write and block copy, timed by events.

Cold and warm are benchmarks of their own. Cold calls go round over copies of the cache and of the
block tables that are together three times the L2 cache, so that what a call reads was evicted since
its last turn; a buffer that is zeroed in between would leave dirty lines, whose eviction the kernel
would be billed for. Warm calls read what fits half of L2, again and again.

One call is the replay of a CUDA graph of several launches: a launch from Python takes longer than
some kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from bench.gate.benchmark import Count, Output, Prepared, of_group
from bench.gate.suite.attention import answer
from bench.gate.suite.batches import Shape, paged_batch
from bench.machine.timing import CudaDevice, copies_needed

if TYPE_CHECKING:
    from reference.attention.contract import PagedBatch

LLAMA: Final = Shape(
    num_seqs=32, query_len=1, seq_len=2048, num_kv_heads=8, group_size=4, head_dim=128
)
"""One layer of Llama-3-8B: 256 MiB of keys and values in bfloat16."""

LONG: Final = replace(LLAMA, num_seqs=1, seq_len=65536)
WARM: Final = replace(LLAMA, num_seqs=4, seq_len=512)
"""8 MiB of keys and values."""

PREFILL: Final = replace(LLAMA, num_seqs=4, query_len=2048)

WARM_LAUNCHES: Final = 20
"""In a graph of warm calls."""

WRITTEN_TOKENS: Final = 8192
COPIED_BLOCKS: Final = 2048
CACHE_BLOCKS: Final = 8192

Graph = Callable[[Callable[[], object]], Callable[[], object]]


def graph_of(launches: Callable[[], object]) -> Callable[[], object]:
    """Launches, recorded once; what is returned launches them all again."""
    launches()  # kernels compile here: nothing can while a graph is recorded
    return CudaDevice().graph([launches])


def bytes_of(shape: Shape) -> int:
    """Bytes of the keys and values of a batch."""
    per_token = 2 * shape.num_kv_heads * shape.head_dim * shape.kv_dtype.itemsize
    return shape.num_seqs * shape.seq_len * per_token


def attention(
    shape: Shape, *, warm: bool = False, device: str = "cuda", graph: Graph = graph_of
) -> Prepared:
    """Attention over batches in turn, or over one batch again and again."""
    from kernels.attention import paged_attention

    copies = 1 if warm else copies_needed(bytes_of(shape), _l2_bytes(device))
    batches = [paged_batch(shape, device=device, seed=index) for index in range(copies)]
    turns = batches * WARM_LAUNCHES if warm else batches

    def launches() -> None:
        for batch in turns:
            paged_attention(batch)

    moved = len(turns) * bytes_of(shape)
    return Prepared(
        call=graph(launches),
        outputs=lambda: _answers(batches),
        counters=lambda: {"bytes": Count(moved, "bytes"), "launched": Count(len(turns), "calls")},
    )


def _answers(batches: Sequence[PagedBatch]) -> Mapping[str, Output]:
    """Of the first and the last batch of a round."""
    return {
        f"{name}.{which}": output
        for which, batch in (("first", batches[0]), ("last", batches[-1]))
        for name, output in answer(batch).items()
    }


def _cache(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (CACHE_BLOCKS, LLAMA.block_size, LLAMA.num_kv_heads, LLAMA.head_dim)
    keys = torch.zeros(shape, dtype=torch.bfloat16, device=device)
    return keys, torch.zeros_like(keys)


def write(*, device: str = "cuda", graph: Graph = graph_of) -> Prepared:
    """Tokens of a prefill are stored at scattered slots: more bytes than any L2 cache."""
    from kernels.cache_ops import write_slots

    keys, values = _cache(device)
    rng = torch.Generator(device).manual_seed(0)
    new = torch.randn(
        (2, WRITTEN_TOKENS, LLAMA.num_kv_heads, LLAMA.head_dim), generator=rng, device=device
    ).bfloat16()
    slots = torch.randperm(keys.shape[0] * keys.shape[1], generator=rng, device=device)
    slots = slots[:WRITTEN_TOKENS]
    return Prepared(
        call=graph(lambda: write_slots(keys, values, new[0], new[1], slots)),
        outputs=lambda: {
            "keys": _sample(keys.flatten(0, 1)[slots]),
            "values": _sample(values.flatten(0, 1)[slots]),
        },
        counters=lambda: {"bytes": Count(2 * new.nbytes, "bytes")},
    )


def copy(*, device: str = "cuda", graph: Graph = graph_of) -> Prepared:
    """Blocks are copied, no block twice: 256 MiB are moved."""
    from kernels.cache_ops import copy_blocks

    keys, values = _cache(device)
    rng = torch.Generator(device).manual_seed(0)
    for cache in (keys, values):
        cache.copy_(torch.randn(cache.shape[2:], generator=rng, device=device))
    order = torch.randperm(CACHE_BLOCKS, generator=rng, device=device)
    pairs = order[: 2 * COPIED_BLOCKS].view(-1, 2).contiguous()
    moved = 2 * 2 * COPIED_BLOCKS * keys[0].nbytes  # keys and values, read and written
    return Prepared(
        call=graph(lambda: copy_blocks(keys, values, pairs)),
        outputs=lambda: {
            "keys": _sample(keys[pairs[:, 1]]),
            "values": _sample(values[pairs[:, 1]]),
        },
        counters=lambda: {"bytes": Count(moved, "bytes")},
    )


def _sample(tensor: torch.Tensor) -> Output:
    """Every 64th row: what went wrong went wrong in more than one place."""
    return Output(tensor[::64].float().cpu().numpy().copy())


def _l2_bytes(device: str) -> int:
    return CudaDevice().cache_bytes if device == "cuda" else 0


_benchmark = partial(of_group("gpu"), device="cuda")

ATTENTION: Final = "kernels.attention:paged_attention"

BENCHMARKS: Final = (
    *(
        _benchmark(
            f"decode[block={size},cold]",
            f"Decode steps of 32 sequences of 2,048 tokens, blocks of {size}, none in L2.",
            partial(attention, replace(LLAMA, block_size=size)),
            ATTENTION,
        )
        for size in (1, 16, 128)
    ),
    _benchmark(
        "decode[e4m3,cold]",
        "Decode steps of 32 sequences of 2,048 tokens over a float8 cache, none in L2.",
        partial(attention, replace(LLAMA, cache_dtype=torch.float8_e4m3fn)),
        ATTENTION,
    ),
    _benchmark(
        "decode[long,cold]",
        "Decode steps of one sequence of 65,536 tokens, none in L2.",
        partial(attention, LONG),
        ATTENTION,
    ),
    _benchmark(
        "decode[block=16,warm]",
        "20 decode steps of 4 sequences of 512 tokens that stay in L2.",
        partial(attention, WARM, warm=True),
        ATTENTION,
    ),
    _benchmark(
        "prefill[cold]",
        "Prefills of 4 sequences of 2,048 tokens.",
        partial(attention, PREFILL),
        ATTENTION,
    ),
    _benchmark(
        "write", "8,192 tokens are stored at their slots.", write, "kernels.cache_ops:write_slots"
    ),
    _benchmark("copy", "2,048 blocks are copied.", copy, "kernels.cache_ops:copy_blocks"),
)
