"""The attention contract: what a kernel is given, what it fills in, and what it may decline.

The shapes are those of flash-attention's varlen call with a block table, of vLLM's unified
attention and of FlashInfer's NHD layout, so an adapter is a few lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

from reference.attention.kinds import STORES
from reference.attention.problem import (
    FP8_DTYPES,
    LARGEST_HEAD_DIM,
    LAYOUTS,
    MAX_HEAD_DIM,
    QUERY_DTYPES,
    STRIDED,
    AttentionProblem,
    Request,
)
from reference.attention.records import CODECS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """A ragged batch of queries, the attention asked for, and the tensors to fill."""

    query: Tensor
    """[num_tokens, num_q_heads, head_dim] float32, float16 or bfloat16."""
    seq_lens: Tensor
    """[num_seqs] int32, tokens in the cache, this step's included."""
    query_start_loc: Tensor
    """[num_seqs + 1] int32, running total of the query lengths."""
    out: Tensor
    """[num_tokens, num_q_heads, value_dim], the query's dtype, filled with NaN."""
    lse: Tensor | None
    """[num_tokens, num_q_heads] float32, filled with NaN; natural log. None if not asked for."""
    scale: float
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0
    chunk: int | None = None
    query_mask: Tensor | None = None
    """[num_tokens, max_query_len] bool, of each token which of its sequence's tokens of this step
    it sees, all of the earlier ones besides. In place of `causal`."""
    causal_of: Tensor | None = None
    """[num_seqs] bool, of each sequence whether it is causal. In place of `causal`."""
    """The variant, as in `reference.attention.problem.AttentionProblem`; slopes and sinks are
    [num_q_heads] float32."""

    def replace(self, **changes: Any) -> Self:
        """The same call with some tensors or options changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedBatch(AttentionCall):
    """One call over a paged cache: what a kernel under test is given.

    Decode, prefill, chunked prefill and mixed batches all look like this. The kernel writes every
    element of `out` and `lse` and nothing else. A row that sees no key is 0, its lse -inf.
    """

    key_cache: Tensor
    value_cache: Tensor
    """[num_blocks, block_size, num_kv_heads, head_dim or value_dim], the query's dtype or float8.
    The last dimension is contiguous; the others may have any stride. Slots that no sequence owns
    hold NaN. Of a latent cache the values are a view of the first elements of the records. With a
    codec uint8, and the last dimension is a record of bytes.
    """
    block_table: Tensor
    """[num_seqs, max_blocks_per_seq] int32, any strides. Columns past a sequence's blocks hold an
    index outside the pool; there may be none, and then the table's memory ends there."""
    max_query_len: int
    max_seq_len: int
    """On the host, so that a launch needs no synchronisation."""
    rope: int | None = None
    """The cache is latent: `key_cache` [num_blocks, block_size, 1, latent + rope] has all of it."""
    indices: Tensor | None = None
    """[num_tokens, 1, topk] int32: the positions in its sequence that a token sees, in any order,
    none twice, -1 anywhere between them. A latent cache only; None: all up to the token's own."""
    codec: str = ""
    """One of `records.CODECS`, by which both caches are encoded; none if empty."""
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None
    """[num_kv_heads] float32, of a codec with a scale for each head."""

    @property
    def block_size(self) -> int:
        """Tokens in one block."""
        return self.key_cache.shape[1]

    @property
    def value_dim(self) -> int:
        """Elements of a value."""
        return self.out.shape[2]

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return self.key_cache.shape[2]

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.query.shape[1] // self.key_cache.shape[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeBatch:
    """What a kernel of the kind `merge` is given: attention to each of several shares of the keys.

    The kernel fills `out` and `lse` with attention to all of them, and writes nothing else. Strides
    are any, but for the last dimension of `part_out` and `out`, which is contiguous.
    """

    part_out: Tensor
    """[parts, num_tokens, num_heads, value_dim] float32, float16 or bfloat16."""
    part_lse: Tensor
    """[parts, num_tokens, num_heads] float32, in the base that the kernel declares. -inf where a
    part saw no key; its output is then 0, or NaN."""
    out: Tensor
    """[num_tokens, num_heads, value_dim], the dtype of `part_out`, filled with NaN."""
    lse: Tensor | None
    """[num_tokens, num_heads] float32, filled with NaN, in the same base; None if not asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteBatch:
    """What a kernel of the kind `write` is given: the tokens of a step, and where each belongs.

    The kernel stores them in the caches and writes nothing else. No slot stands twice.
    """

    keys: Tensor
    """[num_tokens, num_kv_heads, head_dim] float32, float16 or bfloat16, any strides but the last;
    of a latent cache the latents, [num_tokens, 1, latent]."""
    values: Tensor
    """[num_tokens, num_kv_heads, value_dim] likewise; of a latent cache the rotary parts,
    [num_tokens, 1, rope], which stand behind the latents in a record."""
    key_cache: Tensor
    value_cache: Tensor
    """As in `PagedBatch`, and to be changed. Slots that nothing was stored in yet hold NaN."""
    slot_mapping: Tensor
    """[num_tokens] int64, block * block_size + offset; -1 for padding, which is stored nowhere."""
    k_scale: float = 1.0
    v_scale: float = 1.0
    """A float8 cache holds keys / k_scale and values / v_scale, divided in float32, saturated and
    rounded to the nearest; a record as a whole has k_scale."""
    rope: int | None = None
    """The cache is latent, as in `PagedBatch`."""
    codec: str = ""
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None
    """As in `PagedBatch`. Scales of a record are the kernel's to choose: what it decodes to has to
    be within half a step of what was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyBatch:
    """What a kernel of the kind `copy` is given: blocks to copy, the same in several layers.

    The kernel copies whole blocks, bit for bit, and writes nothing else.
    """

    key_caches: tuple[Tensor, ...]
    value_caches: tuple[Tensor, ...]
    """One for each layer, as in `PagedBatch`; of latent caches there are no values."""
    pairs: Tensor
    """[num_pairs, 2] int64, source and destination. No destination stands twice, nor is it a source
    unless the kernel says that it can do `chained`: the source is then what was there before."""


AttentionKernel = Callable[[PagedBatch], object]
"""Anything that takes a `PagedBatch` and fills its `out` and `lse`."""

Kernel = TypeVar("Kernel", bound=Callable[..., object])

VARIANTS: Final = ("prefill", "noncausal", "window", "softcap", "alibi", "sinks", "lse")
"""What a kernel may be unable to do besides causal decode. `prefill` is any query longer than 1."""

KINDS: Final = ("attention", "latent", "merge", "write", "copy")
"""Sorts of kernels: over keys and values, over records of which the value is a part, those that
make the answers to several shares of the keys one, from a `MergeBatch`, and those that store tokens
(`WriteBatch`) or copy blocks (`CopyBatch`)."""

ADDITIONS: Final = (
    "value_size", "cross", "chunk", "query_mask", "causal_each", "sparse", "records", "chained",
)  # fmt: skip
"""What a kernel may be able to do besides, and has to say. `value_size`: values of another size
than keys. `cross`: queries beyond the keys. `chunk`: chunked local attention. `query_mask`: a mask
among a step's tokens. `causal_each`: some sequences of a batch are causal, others not. `sparse`:
chosen keys of a latent cache. `records`: writes and copies of a latent cache. `chained`: copies of
what another copy overwrites."""

DECLINABLE: Final = (
    "dense", "padding", "waiting", "empty", "scale", "mixed_lengths", "pool", "many_parts",
    "unwritten",
    *(f"layout={name}" for name in LAYOUTS), *(f"strides={name}" for name in STRIDED),
)  # fmt: skip
"""What a kernel may decline by name: a latent cache without chosen keys, rows of sequences without
tokens (q1 k0), sequences without a query (q0), batches without any query token, a scale other than
1 / sqrt(head_dim), query lengths that differ in a batch, pools of more than 2^31 elements, more
than two parts of a merge, parts without a key whose output is NaN, and where tensors lie in
memory."""

PROMISES: Final = ("deterministic", "relabelling", "batch_invariant")
"""Bits that a kernel may promise. `deterministic`: the same call gives the same, with or without a
log-sum-exp. `relabelling`: where the pages lie and which are shared does not matter.
`batch_invariant`: nor do the other sequences. What is not promised has to agree within rounding."""

SIZES_AND_DTYPES: Final = ("dtype", "kv_dtype", "codec", "head_dim", "block_size")
"""Fields of a problem that `Capabilities.never_together` may name with their value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a kernel can do. Asking for more is an error, never a silent fallback.

    Declare them with `declares`; without a declaration a kernel is held to everything.
    """

    dtypes: frozenset[str] = frozenset(QUERY_DTYPES)
    kv_dtypes: frozenset[str] = frozenset(FP8_DTYPES)
    """Names of `QUERY_DTYPES`, and of `FP8_DTYPES` for caches other than the query's dtype."""
    codecs: frozenset[str] = frozenset()
    """Names of `records.CODECS` that the kernel reads. Nothing of others is asked of it."""
    head_dims: frozenset[int] | None = None
    block_sizes: frozenset[int] | None = None
    """The sizes that work; None for all of the contract."""
    max_head_dim: int = MAX_HEAD_DIM
    variants: frozenset[str] = frozenset(VARIANTS)
    """Members of `VARIANTS`."""
    never_together: frozenset[str] = frozenset()
    """What works alone and not at once, words separated by blanks: members of `VARIANTS`, `dtype=`,
    `kv_dtype=`, `codec=`, `head_dim=` and `block_size=`. `"kv_dtype=e4m3 head_dim=80"` is a kernel
    without a float8 cache at that head size."""
    needs_finite_cache: bool = False
    """The kernel reads slots that no sequence owns and multiplies them by zero: they then hold
    large finite numbers instead of NaN, and reading the rest of a sequence's last block is legal.
    """
    group_sizes: frozenset[int] | None = None
    """Query heads for each KV head that work; None for all."""
    declines: frozenset[str] = frozenset()
    """Members of `DECLINABLE`."""
    promises: frozenset[str] = frozenset()
    """Members of `PROMISES`."""
    lse_base: Literal["e", "2"] = "e"
    """Base of the logarithm that the kernel returns."""
    kind: Literal["attention", "latent", "merge", "write", "copy"] = "attention"
    """One of `KINDS`. Of a latent kernel `head_dims` are sizes of a record, up to 576."""
    also: frozenset[str] = frozenset()
    """Members of `ADDITIONS`. Nothing of it is asked of a kernel that does not name it."""
    value_dims: frozenset[int] | None = None
    """The sizes of a value that work, where it is not the head's; None for all."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"capability kind: {self.kind!r} is unknown; use {', '.join(KINDS)}")
        if self.kind in {"latent", *STORES} and self.max_head_dim == MAX_HEAD_DIM:
            object.__setattr__(self, "max_head_dim", LARGEST_HEAD_DIM)
        for field, known in (
            ("dtypes", QUERY_DTYPES),
            ("kv_dtypes", FP8_DTYPES),
            ("codecs", CODECS),
            ("variants", VARIANTS),
            ("declines", DECLINABLE),
            ("promises", PROMISES),
            ("also", ADDITIONS),
        ):
            for name in getattr(self, field) - set(known):
                raise ValueError(f"capability {field}: {name!r} is unknown; use {', '.join(known)}")
        if self.lse_base not in {"e", "2"}:
            raise ValueError(f"capability lse_base: {self.lse_base!r} is unknown; use 'e' or '2'")
        for words in self.never_together:
            for word in words.split():
                if word not in VARIANTS and word.partition("=")[0] not in SIZES_AND_DTYPES:
                    raise ValueError(
                        f"capability never_together: {word!r} in {words!r} is unknown; use "
                        f"{', '.join(VARIANTS)}, or {'=, '.join(SIZES_AND_DTYPES)}="
                    )

    def refusal(self, problem: AttentionProblem) -> str | None:
        """Why the kernel cannot solve a problem, or None if it can."""
        if problem.kind != self.kind:
            return f"kind {problem.kind}"
        if problem.dtype not in self.dtypes:
            return f"dtype {problem.dtype}"
        if problem.quantised and problem.kv_dtype not in self.kv_dtypes:
            return f"cache dtype {problem.kv_dtype}"
        if problem.codec and problem.codec not in self.codecs:
            return f"codec {problem.codec}"
        named = self.head_dims is None or problem.head_dim in self.head_dims
        if not named or problem.head_dim > self.max_head_dim:
            return f"head size {problem.head_dim}"
        if self.block_sizes is not None and problem.block_size not in self.block_sizes:
            return f"block size {problem.block_size}"
        if self.group_sizes is not None and problem.group_size not in self.group_sizes:
            return f"group size {problem.group_size}"
        needed = variants_of(problem)
        if missing := needed - self.variants:
            return f"variant {', '.join(sorted(missing))}"
        if missing := additions_of(problem) - self.also:
            return f"not said to do {', '.join(sorted(missing))}"
        odd = problem.value_size != problem.head_dim
        if odd and self.value_dims is not None and problem.value_size not in self.value_dims:
            return f"value size {problem.value_size}"
        if declined := declinable_of(problem) & self.declines:
            return f"declined: {', '.join(sorted(declined))}"
        if not self.never_together:
            return None
        shown = needed | {f"{name}={getattr(problem, name)}" for name in SIZES_AND_DTYPES}
        at_once = [
            words for words in sorted(self.never_together) if shown.issuperset(words.split())
        ]
        return f"{at_once[0]} together" if at_once else None


def everything(kind: str = "attention") -> Capabilities:
    """All that a kernel of a kind can be asked for."""
    masks = {"cross", "chunk", "query_mask"}
    codecs = frozenset(name for name, of in CODECS.items() if of.latent == (kind == "latent"))
    if kind == "latent":
        return Capabilities(kind="latent", also=frozenset({*masks, "sparse"}), codecs=codecs)
    if kind == "merge":
        return Capabilities(kind="merge", max_head_dim=LARGEST_HEAD_DIM)
    if kind in {"write", "copy"}:
        also = {"value_size", "records"} | ({"chained"} if kind == "copy" else set())
        codecs = frozenset(n for n, of in CODECS.items() if kind == "copy" or not of.swizzled)
        return Capabilities(kind=kind, also=frozenset(also), codecs=codecs)  # type: ignore[arg-type]
    also = {*masks, "value_size"}
    return Capabilities(max_head_dim=LARGEST_HEAD_DIM, also=frozenset(also), codecs=codecs)


def options_of(problem: AttentionProblem) -> dict[str, Any]:
    """The fields of a `PagedBatch` that are no tensors, as a problem has them."""
    names = (
        *("max_query_len", "max_seq_len", "causal", "window", "softcap", "k_scale", "v_scale"),
        *("chunk", "rope", "codec"),
    )
    return {name: getattr(problem, name) for name in names} | {"scale": problem.softmax_scale}


def variants_of(problem: AttentionProblem) -> frozenset[str]:
    """The members of `VARIANTS` that a problem needs."""
    needs = {
        "prefill": problem.max_query_len > 1,
        "noncausal": not problem.causal and not problem.cross,
        "window": problem.window is not None,
        "softcap": problem.softcap is not None,
        "alibi": problem.alibi,
        "sinks": problem.sinks,
    }
    return frozenset(name for name, needed in needs.items() if needed)


def additions_of(problem: AttentionProblem) -> frozenset[str]:
    """The members of `ADDITIONS` that a problem needs."""
    needs = {
        "value_size": problem.value_dim is not None,
        "cross": problem.cross,
        "chunk": problem.chunk is not None,
        "query_mask": bool(problem.query_mask),
        "causal_each": problem.causal_each,
        "sparse": problem.topk is not None,
        "records": problem.rope is not None and problem.kind in STORES,
        "chained": problem.chained,
    }
    return frozenset(name for name, needed in needs.items() if needed)


def declinable_of(problem: AttentionProblem) -> frozenset[str]:
    """The members of `DECLINABLE` that a problem needs."""
    lengths = {request.query_len for request in problem.requests}
    needs = {
        "dense": problem.kind == "latent" and problem.topk is None,
        "padding": Request(1, 0) in problem.requests,
        "waiting": 0 in lengths,
        "empty": lengths == {0},
        "scale": problem.scale is not None,
        "mixed_lengths": len(lengths) > 1,
        "pool": problem.pool is not None,
        "many_parts": (problem.parts or 0) > 2,
        "unwritten": problem.unwritten,
    }
    places = {f"strides={name}" for name in problem.strides}
    # Without a name the layout takes turns between these two.
    layouts = [problem.layout] if problem.layout else ["together", "apart"]
    places |= {f"layout={name}" for name in layouts}
    return frozenset(name for name, needed in needs.items() if needed) | places


def declares(capabilities: Capabilities) -> Callable[[Kernel], Kernel]:
    """Decorate a kernel with what it can do.

    >>> @declares(Capabilities(dtypes=frozenset({"bf16"}), block_sizes=frozenset({16, 32})))
    ... def attention(batch: PagedBatch) -> None: ...
    """

    def mark(kernel: Kernel) -> Kernel:
        vars(kernel)["capabilities"] = capabilities
        return kernel

    return mark


def capabilities_of(kernel: AttentionKernel) -> Capabilities:
    """What a kernel declares, or everything."""
    declared = getattr(kernel, "capabilities", None)
    if declared is None:
        return Capabilities()
    if not isinstance(declared, Capabilities):
        raise TypeError(
            f"{kernel!r}.capabilities is {declared!r}; it must be a pagedbench.Capabilities"
        )
    return declared
