"""Hypothesis strategies that draw attention problems.

Drawn problems are small, ragged and awkward: lengths sit on and beside block and tile boundaries,
batches mix padding rows, decode, chunked and whole prefill, and every variant of the contract
occurs, two at once as a rule: `reference.attention.pairs` counts which have met. Pages lie far away
and tables end where their memory does. They shrink towards one short decode request.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from hypothesis import reject
from hypothesis import strategies as st

from reference.attention.additions import additions
from reference.attention.contract import Capabilities
from reference.attention.problem import (
    FP8_DTYPES,
    INPUT_KINDS,
    LARGEST_HEAD_DIM,
    LAYOUTS,
    MIN_HEAD_DIM,
    QUERY_DTYPES,
    STRIDED,
    AttentionProblem,
    Request,
)
from reference.attention.size import far_pool

HEAD_DIMS: Final = (16, 32, 64, 80, 96, 128, 256)
BLOCK_SIZES: Final = (16, 1, 2, 4, 8, 32, 64, 128, 256)
GROUP_SIZES: Final = (1, 2, 3, 4, 5, 8, 20)
TILE: Final = 64
"""Lengths are drawn near multiples of this too: kernels like to work on so many keys at once."""

_EVERYTHING = Capabilities()

# Strategies are made once: Hypothesis examines each new one before it draws from it, which takes
# longer than the drawing.

_RARELY: Final = st.sampled_from((False, False, False, True))
_OFTEN: Final = st.sampled_from((False, False, True))
_HALF: Final = st.booleans()
"""True about once in four, three and two draws, so that variants meet each other but not all at
once."""
LONG_CONTEXT: Final = 256
"""Tokens from which every third context has a window of any length, as models have: up to 100 are
drawn."""

_WINDOWS: Final = st.none() | st.none() | st.integers(1, 100)
_BATCHES: Final = st.sampled_from(("decode", "short", "mixed", "mixed"))
_SPARE: Final = st.sampled_from((None, 0, None, 0, 1, 3))
_FAR: Final = st.sampled_from((False,) * 5 + (True,))
_EXTREMES: Final = st.sampled_from(("",) * 27 + ("crowd",) * 4 + ("long",))
"""Of 32 batches four have up to `CROWD` sequences, and one has blocks and a context that are both
long."""

_EMPTY: Final = st.sampled_from((False,) * 9 + (True,))

SHORT_QUERY: Final = 8
"""Most tokens of a query as a speculative decoder has it."""

SMALL_BLOCKS: Final = 32
"""Largest of a block of which a kernel's tile holds several."""

CROWD: Final = 64
LONG_BLOCKS: Final = (128, 256)
LONG_LENGTHS: Final = (4097, 4608)

TINY_SCALE: Final = 1e-4
"""With it logits in the hundreds come of queries that are beyond float16."""

MAX_ROWS: Final = 1000
"""Rows of one head from which a batch has no other head: interpreted, they take seconds."""


@cache
def seq_lens(block_size: int, *, max_len: int) -> st.SearchStrategy[int]:
    """Lengths from 0 to `max_len`, every other one on or next to a boundary."""
    steps = sorted({block_size, TILE})
    near = st.builds(
        lambda step, count, off: min(max(step * count + off, 0), max_len),
        st.sampled_from(steps),
        st.integers(1, 4),
        st.sampled_from((0, 1, -1)),
    )
    return st.integers(0, max_len) | near


@st.composite
def requests(draw: st.DrawFn, *, block_size: int, max_len: int, kind: str) -> Request:
    """One sequence of a batch of a kind: padding, waiting, decode, a few tokens, a chunk of a
    prefill, or a whole one.
    """
    seq_len = 0 if draw(_EMPTY) else draw(seq_lens(block_size, max_len=max_len))
    if kind == "mixed":
        kind = draw(st.sampled_from(("decode", "short", "chunk", "prefill")))
    if kind == "decode" or seq_len == 0:
        # Now and then a sequence waits: it keeps its cache and has no query in this step.
        return Request(draw(st.sampled_from((1, 1, 1, 0))), seq_len)
    if kind == "short":
        return Request(min(seq_len, draw(st.integers(2, SHORT_QUERY))), seq_len)
    if kind == "chunk":
        return Request(draw(st.integers(1, min(seq_len, 24))), seq_len)
    # A whole prefill costs its length squared: keep it shorter.
    seq_len = min(seq_len, max(max_len // 2, 1))
    return Request(seq_len, seq_len)


@st.composite
def stream_requests(
    draw: st.DrawFn, *, lengths: Sequence[tuple[int, int]], max_len: int, prefill: bool
) -> Request:
    """One request of a stream, (prompt, output) tokens, at its prompt's last chunk or a decode
    step.
    """
    prompt, output = draw(st.sampled_from(lengths))
    if prefill and draw(st.booleans()):
        seq_len = min(prompt, max_len)
        return Request(min(seq_len, draw(st.integers(1, 24))), seq_len)
    return Request(1, min(prompt + draw(st.integers(1, max(output, 1))), max_len))


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    capabilities: Capabilities = _EVERYTHING,
    max_seqs: int = 4,
    max_len: int = 150,
    prefill: bool | None = None,
    max_kv_heads: int = 2,
    lengths: Sequence[tuple[int, int]] | None = None,
    extremes: bool = False,
    tight: bool = False,
) -> AttentionProblem:
    """Problems that a kernel of these capabilities must solve.

    Nothing outside the capabilities is drawn. `prefill` says whether queries may be longer than one
    token; by default they are in about half of the batches. `lengths` are (prompt tokens, output
    tokens) of real requests: contexts are theirs then, instead of lengths near boundaries.
    With `extremes` some batches have many sequences, or long blocks and a context of thousands.
    `tight` are small blocks that fill no tile, and a table that ends with the longest sequence.
    """
    variants = capabilities.variants
    kind = draw(_BATCHES) if prefill is None else "mixed" if prefill else "decode"
    kind = kind if "prefill" in variants else "decode"
    extreme = draw(_EXTREMES) if extremes and lengths is None else ""
    able = capabilities.block_sizes
    long = [size for size in LONG_BLOCKS if able is None or size in able]
    if extreme == "long" and not long:
        extreme = ""
    dtype = draw(_among(QUERY_DTYPES, capabilities.dtypes, "dtypes"))
    block_size = draw(
        st.sampled_from(_small_blocks(able)) if tight else _among(BLOCK_SIZES, able, "block_sizes")
    )
    head_dim = draw(st.sampled_from(_head_dims(capabilities)))
    kv_heads = st.integers(1, max_kv_heads)
    groups = _among(GROUP_SIZES, capabilities.group_sizes, "group_sizes", declared=True)
    if extreme:
        # Many programs or many keys: few heads, and short ones.
        head_dim = min(head_dim, min(d for d in _head_dims(capabilities) if d >= MIN_HEAD_DIM) * 4)
        head_dim = max(d for d in _head_dims(capabilities) if d <= head_dim)
        kv_heads = st.just(1)
        block_size = draw(st.sampled_from(long)) if extreme == "long" else block_size
    if lengths is None:
        batches = _batches(block_size, max_len, max_seqs, kind=kind, extreme=extreme)
    else:
        one = stream_requests(lengths=lengths, max_len=max_len, prefill=kind != "decode")
        batches = st.lists(one, min_size=1, max_size=max_seqs)
    batch = _declined(draw(batches), capabilities.declines)
    if tight:
        batch = [_fills_no_tile(request, block_size) for request in batch]
    longest = max(request.seq_len for request in batch)
    fields: dict[str, Any] = draw(_variant(variants, often=extreme == "crowd"))
    if fields.get("window") is not None and draw(st.integers(0, 3)):
        fields["window"] = 1 + (fields["window"] - 1) % max(longest - 1, 1)  # one that cuts
    if "scale" in capabilities.declines:
        fields.pop("scale", None)
    fields.update(draw(_quantisation(dtype, capabilities.kv_dtypes)))
    if len(batch) > 1:
        fields["shared_prefix"] = draw(st.just(0) | st.integers(0, longest))
    fields.update(draw(_places(capabilities.declines)))
    fields["spare"] = 0 if tight else fields["spare"]
    far = draw(_FAR) and "pool" not in capabilities.declines and not extreme and not tight
    if fields["spare"] is not None:
        # What is read past the longest sequence's blocks is past the table's memory.
        batch.append(batch.pop([r.seq_len for r in batch].index(longest)))
    heads, group_size = draw(kv_heads), draw(groups)
    many = sum(request.query_len for request in batch) * group_size > MAX_ROWS
    problem = AttentionProblem(
        requests=tuple(batch),
        num_kv_heads=1 if many else heads,
        group_size=group_size,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
        inputs=draw(st.sampled_from(INPUT_KINDS)),
        seed=draw(st.integers(0, 999)),
        **fields,
    )
    if dtype == "bf16" and problem.quantised and problem.inputs in ("loud", "sunken"):
        # What a float8 cache is multiplied by may be converted to float16: let it not fit.
        problem = problem.replace(
            scale=TINY_SCALE if fields.get("scale", 1.0) < 1 else problem.scale
        )
    if capabilities.also or capabilities.codecs or capabilities.kind != "attention":
        problem = draw(additions(problem, capabilities))
    placed = problem.chunk or problem.query_mask or problem.causal_each
    if "window" in variants and problem.kind == "attention" and problem.causal and not placed:
        problem = problem.replace(window=_window_of_a_model(problem))
    if far and problem.kind != "merge":
        problem = problem.replace(pool=max(far_pool(problem), problem.num_blocks))
    restricted = capabilities.never_together or capabilities.kind != "attention"
    if restricted and capabilities.refusal(problem) is not None:
        reject()
    return problem


@cache
def _batches(
    block_size: int, max_len: int, max_seqs: int, *, kind: str, extreme: str
) -> st.SearchStrategy[list[Request]]:
    if extreme == "crowd":
        one = requests(block_size=block_size, max_len=min(max_len, 20), kind=kind)
        return st.lists(one, min_size=9, max_size=CROWD)
    if extreme == "long":
        query_lens = st.just(1) if kind == "decode" else st.sampled_from((1, 3))
        return st.lists(
            st.builds(Request, query_lens, st.integers(*LONG_LENGTHS)), min_size=1, max_size=1
        )
    one = requests(block_size=block_size, max_len=max_len, kind=kind)
    return st.lists(one, min_size=1, max_size=max_seqs)


def _declined(batch: list[Request], declines: frozenset[str]) -> list[Request]:
    """The batch without what a kernel declines."""
    if "padding" in declines:
        batch = [r if r != Request(1, 0) else Request(1, 1) for r in batch]
    if "waiting" in declines:
        batch = [r if r.query_len else Request(1, max(r.seq_len, 1)) for r in batch]
    if "mixed_lengths" in declines:
        # As many as the one that has fewest: whatever the length, each sequence has that many.
        fewest = min((r.query_len for r in batch if r.query_len), default=0)
        batch = [Request(min(fewest, max(r.seq_len, 1)), max(r.seq_len, fewest)) for r in batch]
    if "empty" in declines and all(r.query_len == 0 for r in batch):
        batch = [Request(1, max(batch[0].seq_len, 1)), *batch[1:]]
    return batch


def _fills_no_tile(request: Request, block_size: int) -> Request:
    """The request with an odd number of blocks: a tile of an even number ends past the last."""
    blocks = -(-request.seq_len // block_size)
    if blocks % 2 or not blocks:
        return request
    shorter = request.seq_len - block_size
    longer = request.seq_len + block_size
    return Request(request.query_len, shorter if shorter >= request.query_len else longer)


def _window_of_a_model(problem: AttentionProblem) -> int | None:
    """The window, of every third long context one of any length, and every third a multiple of
    blocks or of a tile. Nothing is drawn for it: all else of a problem stays as it is.
    """
    window, longest = problem.window, problem.max_seq_len
    chance = problem.seed + sum(request.seq_len for request in problem.requests)
    if longest > LONG_CONTEXT and chance % 3 == 0:
        window = 1 + 389 * chance % longest
    if window is None:
        return None
    step = TILE if window > TILE else problem.block_size
    return window - window % step if window % 3 == 0 and window > step else window


def _small_blocks(able: frozenset[int] | None) -> list[int]:
    sizes = [size for size in BLOCK_SIZES if able is None or size in able]
    return [size for size in sizes if size <= SMALL_BLOCKS] or [min(able or BLOCK_SIZES)]


@cache
@st.composite
def _places(draw: st.DrawFn, declines: frozenset[str]) -> dict[str, Any]:
    """Where tensors lie: the layout of the cache, strides, spare columns."""
    layouts = [name for name in LAYOUTS if f"layout={name}" not in declines]
    if not layouts:
        raise ValueError("capabilities.declines leaves no layout of the cache; decline fewer")
    turns = [""] * 4 if {"together", "apart"} <= set(layouts) else []
    strided = [name for name in STRIDED if f"strides={name}" not in declines]
    return {
        "layout": draw(st.sampled_from([*turns, *layouts])),
        "strides": tuple(name for name in strided if draw(_RARELY)),
        "spare": draw(_SPARE),
    }


def _head_dims(capabilities: Capabilities) -> list[int]:
    """Sizes that kernel and contract both allow: all that are declared, or the usual ones."""
    declared = HEAD_DIMS if capabilities.head_dims is None else sorted(capabilities.head_dims)
    if capabilities.kind == "latent":
        return [*HEAD_DIMS]  # `additions` draws records
    largest = min(capabilities.max_head_dim, LARGEST_HEAD_DIM)
    sizes = [size for size in declared if MIN_HEAD_DIM <= size <= largest and size % 8 == 0]
    if not sizes:
        raise ValueError(
            f"capabilities.head_dims={capabilities.head_dims} with capabilities.max_head_dim="
            f"{capabilities.max_head_dim} leaves nothing to draw: "
            f"use multiples of 8 from {MIN_HEAD_DIM} to {LARGEST_HEAD_DIM}"
        )
    return sizes


@cache
@st.composite
def _variant(draw: st.DrawFn, variants: frozenset[str], *, often: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    rate = _HALF if often else _OFTEN
    # Always the same draws, so that a variant that does not matter shrinks away by itself.
    noncausal, window = draw(rate), draw(_WINDOWS)
    if noncausal and "noncausal" in variants:
        fields["causal"] = False
    elif window is not None and "window" in variants:
        fields["window"] = window
    if "softcap" in variants and draw(rate):
        fields["softcap"] = draw(st.sampled_from((30.0, 50.0, 5.0)))
    for flag in ("alibi", "sinks"):
        if flag in variants and draw(rate):
            fields[flag] = True
    if draw(rate):
        fields["scale"] = draw(st.sampled_from((0.125, 0.05, 1.0)))
    return fields


@cache
@st.composite
def _quantisation(draw: st.DrawFn, dtype: str, kv_dtypes: frozenset[str]) -> dict[str, Any]:
    choices = [name for name in FP8_DTYPES if name in kv_dtypes]
    kv_dtype = draw(st.sampled_from([dtype, *choices]))
    if kv_dtype == dtype:
        return {}
    scales = st.sampled_from((1.0, 0.5, 0.03, 1.7))
    return {"kv_dtype": kv_dtype, "k_scale": draw(scales), "v_scale": draw(scales)}


def _among(
    known: Any, allowed: frozenset[Any] | None, name: str, *, declared: bool = False
) -> st.SearchStrategy[Any]:
    """One of the known values that are allowed; with `declared` any that is allowed."""
    choices = [value for value in known if allowed is None or value in allowed]
    if declared and allowed is not None:
        choices = sorted(allowed)
    if not choices:
        raise ValueError(
            f"capabilities.{name}={set(allowed or ())} leaves nothing to draw: use {list(known)}"
        )
    return st.sampled_from(choices)
