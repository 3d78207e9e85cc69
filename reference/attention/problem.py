"""An attention problem as data: a ragged batch, a variant of attention, and the seed of its inputs.

A problem says everything that decides the tensors, so its one-line spec is a complete bug report::

    >>> str(AttentionProblem.parse("2x(q1 k129) g4 d80 b16 bf16 window=32"))
    '2x(q1 k129) g4 d80 b16 bf16 window=32'

Reading one imports no torch, so that a bad spec is refused at once.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from reference.attention.kinds import STORED_STRIDES, STORES
from reference.attention.records import CODECS, complaints_of_codec
from reference.errors import BadInput

if TYPE_CHECKING:
    import torch

QUERY_DTYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Dtypes of the query and of the output: the name in a spec, and torch's."""

FP8_DTYPES: Final = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
"""Quantised dtypes of the cache: the name in a spec, and torch's. They come with scales."""

INPUT_KINDS: Final = ("flat", "needle", "loud", "sunken")
"""`flat`: every key counts, which shows numerical errors. `needle`: one key takes nearly all the
weight, which shows addressing errors. `loud`: logits far from zero, which shows overflow. `sunken`:
every logit below what kernels put in place of minus infinity, which then wins."""

InputKind = Literal["flat", "needle", "loud", "sunken"]

LAYOUTS: Final = (
    "together", "apart", "head-major", "packed", "layers", "keys-first", "heads-first", "padded",
)  # fmt: skip
"""How keys and values lie in memory; `reference.attention.placement` has the shapes. All have the
last dimension contiguous and nothing else in common."""

STRIDED: Final = ("table", "lse", "out", "query")
"""Tensors that can be given with their dimensions in another order: `table` by columns, the others
head after head."""

QUERY_MASKS: Final = ("chain", "tree")
"""Which tokens of its own step a query sees, besides itself: all before it, or its ancestors in a
tree that the seed decides."""

MIN_HEAD_DIM: Final = 16
MAX_HEAD_DIM: Final = 256
"""Head sizes that everybody is asked for who does not say otherwise."""

LARGEST_HEAD_DIM: Final = 576
"""Of any problem: the record of a latent cache with its rotary part."""

MAX_PARTS: Final = 64
"""Most parts that are merged."""

MAX_LAYERS: Final = 64
"""Most layers in which blocks are copied."""

MAX_TOPK: Final = 8192
"""Most keys that are chosen for a query."""

MAX_BLOCK_SIZE: Final = 256
MAX_REQUESTS: Final = 2**16
MAX_LENGTH: Final = 2**31 - 1
"""Longest sequence, window and prefix, tokens: kernels take lengths in 32 bits."""

MAX_POOL: Final = 2**31 - 1
"""Most blocks of a pool: block ids have 32 bits."""

MAX_SPARE: Final = 2**16
"""Most spare columns of a block table."""

MAX_SEED: Final = 2**64 - 2
"""One less than torch's generators take: a relabelled placement uses the next one."""


class InvalidProblem(BadInput):
    """A problem, or its spec, that no attention kernel could be asked to solve."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence of the batch."""

    query_len: int
    """Tokens whose attention is asked for in this step; they are the last of the sequence."""
    seq_len: int
    """Tokens in the cache, those of this step included. A `Request(1, 0)` is the padding row of a
    decode batch: it sees nothing, and its answer is zero."""

    def __post_init__(self) -> None:
        if self.query_len < 0 or self.seq_len < 0:
            raise InvalidProblem(
                f"request (q{self.query_len} k{self.seq_len}): "
                f"lengths count tokens, so none is negative"
            )
        if self.seq_len > MAX_LENGTH:
            raise InvalidProblem(
                f"request (q{self.query_len} k{self.seq_len}): kernels take lengths in 32 bits; "
                f"give k up to {MAX_LENGTH:,}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProblem:
    """A ragged batch and the attention that is asked of it."""

    requests: tuple[Request, ...]
    """The sequences, in batch order."""
    num_kv_heads: int = 1
    group_size: int = 1
    """Key/value heads, and query heads for each of them (1: MHA; more: GQA; one KV head: MQA).
    Query head `h` reads KV head `h // group_size`."""
    head_dim: int = 64
    """Elements of one head, 16 to 576; of a latent cache those of a record."""
    value_dim: int | None = None
    """Elements of a value, 16 to 576; `head_dim` if None."""
    rope: int | None = None
    """The cache is latent: one record for each token, of which the last `rope` elements count for
    the logits alone, and the others are the value as well. One KV head. None: keys and values."""
    parts: int | None = None
    """The call is a merge: attention to so many shares of the keys is given, and is to be made
    attention to all of them. Where they are cut follows from the seed. None: attention itself."""
    interleave: bool = False
    """Of a merge the keys are dealt to the parts in turn, as to the ranks of a parallel context."""
    unwritten: bool = False
    """Of a merge the output of a part that saw no key is NaN, as where nobody wrote, and not 0."""
    write: bool = False
    """The call stores this step's tokens in the cache; padding goes nowhere."""
    copy: int | None = None
    """The call copies blocks, those that hold this step's tokens, in so many layers at once: of
    every other sequence to two places."""
    chained: bool = False
    """Of a copy one destination is the source of another pair, which is given what was there."""
    topk: int | None = None
    """Of a latent cache each query token sees up to so many positions, which `indices` names, and
    no others. None: all that the mask leaves."""
    block_size: int = 16
    """Tokens in one block of the paged cache, a power of two from 1 to 256."""
    dtype: str = "bf16"
    kv_dtype: str = ""
    """Names in `QUERY_DTYPES`; the cache may also be one of `FP8_DTYPES`."""
    codec: str = ""
    """One of `records.CODECS`: the cache holds bytes that it encodes. None, if empty."""
    causal: bool = True
    """A query sees no later token."""
    causal_each: bool = False
    """It does so in some of the sequences, which the seed decides, and sees all keys in others."""
    cross: bool = False
    """The keys are of another text than the queries, which may then be longer; no mask."""
    chunk: int | None = None
    """Chunked local: a query at position p sees no key before p // chunk * chunk. Needs `causal`.
    """
    query_mask: str = ""
    """One of `QUERY_MASKS`: what a query sees of its own step, as when a tree of drafts is
    verified; of the tokens before it sees all. None of them, where it is empty: `causal` says."""
    window: int | None = None
    """Sliding window: a query at position p sees the keys p - window + 1 .. p. Needs `causal`."""
    softcap: float | None = None
    """Logits become `softcap * tanh(logit / softcap)`, before ALiBi and the mask."""
    alibi: bool = False
    """Adds `-slope[h] * |query position - key position|` to the logit of head h."""
    sinks: bool = False
    """One more logit for each head in the softmax's denominator, with no value behind it. The
    log-sum-exp counts it."""
    scale: float | None = None
    """Factor of the logits; `1 / sqrt(head_dim)` if None."""
    k_scale: float = 1.0
    v_scale: float = 1.0
    """What a quantised cache's elements are multiplied by. 1.0 unless the cache is float8, or of a
    codec with a scale for the tensor."""
    shared_prefix: int = 0
    """Tokens at the start of every sequence that are the same in all of them."""
    inputs: InputKind = "flat"
    """One of `INPUT_KINDS`."""
    layout: str = ""
    """How the cache lies in memory, one of `LAYOUTS`; `together` or `apart` by turns of the seed if
    empty."""
    strides: tuple[str, ...] = ()
    """Members of `STRIDED`: what has its dimensions in another order."""
    spare: int | None = None
    """Columns of the block table behind the longest row. The table then ends where its memory
    ends. None: two columns, in a wider buffer."""
    pool: int | None = None
    """Blocks of the pool, of which those of the sequences lie far behind the first. None: as few as
    the sequences need, and some to spare."""
    seed: int = 0
    """Seed of the tensors and of the placement in pages."""

    def __post_init__(self) -> None:
        if not self.kv_dtype:
            object.__setattr__(self, "kv_dtype", self.dtype)
        # numpy's numbers count and compare alike, but do not print as a spec has them.
        for name, convert in _NUMBER_FIELDS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, convert(value))
        given = (self.strides,) if isinstance(self.strides, str) else tuple(self.strides)
        if self.rope is not None:
            # The value is a part of the record, and has its scale and what is left of its size.
            object.__setattr__(self, "v_scale", self.k_scale)
            object.__setattr__(self, "value_dim", None)
        elif self.value_dim == self.head_dim:
            object.__setattr__(self, "value_dim", None)
        if self.cross:
            object.__setattr__(self, "causal", False)
        elif self.causal_each:
            object.__setattr__(self, "causal", True)
        known = [name for name in STRIDED if name in given]
        object.__setattr__(self, "strides", (*known, *(n for n in given if n not in STRIDED)))
        for complaint in self._complaints():
            raise InvalidProblem(complaint)

    def _complaints(self) -> Iterator[str]:
        if not self.requests:
            yield "a batch needs at least one request, such as (q1 k16)"
        if self.num_kv_heads < 1 or self.group_size < 1:
            yield f"h{self.num_kv_heads} g{self.group_size}: heads and group size start at 1"
        for word, size in (("d", self.head_dim), ("dv=", self.value_size)):
            if not MIN_HEAD_DIM <= size <= LARGEST_HEAD_DIM or size % 8:
                yield (
                    f"{word}{size}: head sizes are multiples of 8 from {MIN_HEAD_DIM} to "
                    f"{LARGEST_HEAD_DIM}"
                )
                break
        if not 1 <= self.block_size <= MAX_BLOCK_SIZE or self.block_size & (self.block_size - 1):
            yield f"b{self.block_size}: block sizes are powers of two from 1 to {MAX_BLOCK_SIZE}"
        if self.dtype not in QUERY_DTYPES:
            yield f"dtype {self.dtype!r}: choose one of {', '.join(QUERY_DTYPES)}"
        if self.kv_dtype != self.dtype and self.kv_dtype not in FP8_DTYPES:
            choices = ", ".join(FP8_DTYPES)
            yield f"kv={self.kv_dtype}: the cache has the query's dtype or one of {choices}"
        if self.window is not None and not (1 <= self.window <= MAX_LENGTH and self.causal):
            yield (
                f"window={self.window}: a window is 1 to {MAX_LENGTH:,} and needs causal attention"
            )
        for name in ("softcap", "scale", "k_scale", "v_scale"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                yield f"{name}={value}: must be positive and finite"
        if not 0 <= self.shared_prefix <= MAX_LENGTH:
            yield f"shared={self.shared_prefix}: a prefix has 0 to {MAX_LENGTH:,} tokens"
        if not 0 <= self.seed <= MAX_SEED:
            yield f"seed={self.seed}: seeds are 0 to {MAX_SEED}"
        if self.inputs not in INPUT_KINDS:
            yield f"inputs={self.inputs}: choose one of {', '.join(INPUT_KINDS)}"
        yield from self._complaints_of_places()
        yield from self._complaints_of_kinds()
        if self.kind in STORES:
            yield from self._complaints_of_stores()
        elif self.chained:
            yield "chained: says how blocks are copied, so it needs copy="
        yield from complaints_of_codec(self)

    def _complaints_of_kinds(self) -> Iterator[str]:
        for request in self.requests:
            if request.query_len > max(request.seq_len, 1) and not self.cross:
                yield (
                    f"request (q{request.query_len} k{request.seq_len}): the query tokens are "
                    f"already in the cache, so k must be at least q (only the padding row q1 k0 is "
                    f"exempt, and cross attention)"
                )
        if self.cross and (self.alibi or self.query_mask):
            yield "cross: queries have no position among the keys, so neither alibi nor mask="
        if self.rope is not None and (self.rope < 0 or self.num_kv_heads != 1):
            yield f"rope={self.rope} h{self.num_kv_heads}: a latent cache has one head, rope from 0"
        if self.chunk is not None and not (
            1 <= self.chunk <= MAX_LENGTH and self.causal and self.window is None
        ):
            yield f"chunk={self.chunk}: a chunk is 1 to {MAX_LENGTH:,}, causal and without a window"
        if self.query_mask and self.query_mask not in QUERY_MASKS:
            yield f"mask={self.query_mask}: choose one of {', '.join(QUERY_MASKS)}"
        if self.parts is not None and not 1 <= self.parts <= MAX_PARTS:
            yield f"parts={self.parts}: 1 to {MAX_PARTS} parts are merged"
        if self.parts is not None and self.rope is not None:
            yield f"parts={self.parts} rope={self.rope}: a merge has no cache, so none is latent"
        for word in ("interleave", "unwritten"):
            if self.parts is None and getattr(self, word):
                yield f"{word}: says something of the parts of a merge, so it needs parts="
        local = self.window is not None or self.chunk is not None
        if self.query_mask and (local or self.alibi or not self.causal):
            yield f"mask={self.query_mask}: needs causal, and no window, chunk or alibi"
        if self.causal_each and (
            local or self.cross or self.query_mask or self.alibi or self.topk is not None
        ):
            yield "causal-each: goes with no window, chunk, mask=, topk=, cross or alibi"
        if self.topk is not None and not 1 <= self.topk <= MAX_TOPK:
            yield f"topk={self.topk}: 1 to {MAX_TOPK:,} keys are chosen"
        if self.topk is not None and (
            self.rope is None or local or self.query_mask or not self.causal
        ):
            yield f"topk={self.topk}: needs rope= and causal, and no window, chunk or mask="

    def _complaints_of_stores(self) -> Iterator[str]:
        if self.copy is not None and not 1 <= self.copy <= MAX_LAYERS:
            yield f"copy={self.copy}: blocks are copied in 1 to {MAX_LAYERS} layers"
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in STORES[self.kind] and value != field.default:
                yield f"{self.kind}: {field.name}={value} says nothing of it; leave it out"
        if self.inputs not in {"flat", "loud"}:
            yield f"inputs={self.inputs}: what is stored is flat, or loud"
        for name in self.strides:
            if name != STORED_STRIDES[self.kind]:
                yield f"strides={name}: a {self.kind} has {STORED_STRIDES[self.kind]} only"

    def _complaints_of_places(self) -> Iterator[str]:
        beside = (
            self.quantised, self.codec, self.layout, self.spare is not None, self.pool is not None,
            self.shared_prefix, self.block_size != 16, self.topk is not None,
            self.softcap is not None, self.scale is not None, self.alibi, self.sinks,
        )  # fmt: skip
        if self.parts is not None and any(beside):
            yield (
                f"parts={self.parts}: a merge has neither cache nor logits, so leave the words of "
                f"those out, and say b16"
            )
        if self.layout and self.layout not in LAYOUTS:
            yield f"layout={self.layout}: choose one of {', '.join(LAYOUTS)}"
        for name in self.strides:
            if name not in STRIDED:
                yield f"strides={name}: choose some of {','.join(STRIDED)}"
        if self.spare is not None and not 0 <= self.spare <= MAX_SPARE:
            yield f"spare={self.spare}: a block table has 0 to {MAX_SPARE:,} spare columns"
        if self.pool is not None and not self.num_blocks <= self.pool <= MAX_POOL:
            yield (
                f"pool={self.pool}: the sequences need {self.num_blocks:,} blocks, and a pool has "
                f"at most {MAX_POOL:,}"
            )

    @property
    def kind(self) -> str:
        """What sort of kernel it is for, one of `contract.KINDS`."""
        if self.write or self.copy is not None:
            return "copy" if self.copy is not None else "write"
        if self.parts is not None:
            return "merge"
        return "attention" if self.rope is None else "latent"

    @property
    def value_size(self) -> int:
        """Elements of a value and of a row of the output."""
        if self.rope is not None:
            return self.head_dim - self.rope
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def quantised(self) -> bool:
        """Whether the cache is float8."""
        return self.kv_dtype in FP8_DTYPES

    @property
    def stored_sizes(self) -> tuple[int, int]:
        """Elements that the cache has for a key and for a value; of a codec bytes."""
        if not self.codec:
            return self.head_dim, self.value_size
        record, rope = CODECS[self.codec], self.rope or 0
        whole = record.bytes_of(self.head_dim, rope)
        return whole, whole if record.latent else record.bytes_of(self.value_size)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of query and output."""
        return torch_dtype(self.dtype)

    @property
    def torch_kv_dtype(self) -> torch.dtype:
        """Dtype of the cache; of a codec bytes."""
        return torch_dtype("bytes" if self.codec else self.kv_dtype)

    @property
    def softmax_scale(self) -> float:
        """Factor of the logits."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def num_q_heads(self) -> int:
        """Query heads."""
        return self.num_kv_heads * self.group_size

    @property
    def num_tokens(self) -> int:
        """Query tokens of the whole batch."""
        return sum(request.query_len for request in self.requests)

    @property
    def cache_tokens(self) -> int:
        """Tokens in the cache, over all sequences."""
        return sum(request.seq_len for request in self.requests)

    @property
    def num_blocks(self) -> int:
        """Blocks that the sequences and copies need, none of them shared."""
        own = sum(-(-request.seq_len // self.block_size) for request in self.requests)
        return own if self.copy is None else own + 2 * sum(self.copied_blocks)

    @property
    def copied_blocks(self) -> list[int]:
        """Of each sequence how many of its last blocks hold tokens of this step."""
        size = self.block_size
        return [
            -(-r.seq_len // size) - (r.seq_len - r.query_len) // size if r.seq_len else 0
            for r in self.requests
        ]

    @property
    def max_query_len(self) -> int:
        """Longest query of the batch, tokens."""
        return max(request.query_len for request in self.requests)

    @property
    def max_seq_len(self) -> int:
        """Longest sequence of the batch, tokens."""
        return max(request.seq_len for request in self.requests)

    @property
    def shares_blocks(self) -> bool:
        """Whether two sequences have a whole block of the shared prefix in common."""
        holders = [r for r in self.requests if r.seq_len >= self.block_size]
        return self.shared_prefix >= self.block_size and len(holders) > 1

    @property
    def query_starts(self) -> list[int]:
        """Index of each sequence's first query token, and the total at the end."""
        return _running_total(request.query_len for request in self.requests)

    @property
    def cache_starts(self) -> list[int]:
        """Index of each sequence's first token in the contiguous cache, and the total after it."""
        return _running_total(request.seq_len for request in self.requests)

    def replace(self, **changes: object) -> Self:
        """The same problem with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words = []
        for request, run in groupby(self.requests):
            count = len(list(run))
            prefix = f"{count}x" if count > 1 else ""
            words.append(f"{prefix}(q{request.query_len} k{request.seq_len})")
        if self.num_kv_heads != 1:
            words.append(f"h{self.num_kv_heads}")
        if self.group_size != 1:
            words.append(f"g{self.group_size}")
        words += [f"d{self.head_dim}", f"b{self.block_size}", self.dtype]
        if self.kv_dtype != self.dtype:
            words.append(f"kv={self.kv_dtype}")
        words += [f"codec={self.codec}"] if self.codec else []
        numbers = {
            "dv": self.value_dim,
            "rope": self.rope,
            "parts": self.parts,
            "copy": self.copy,
            "topk": self.topk,
            "kscale": None if self.k_scale == 1.0 else self.k_scale,
            "vscale": None if self.v_scale == 1.0 or self.rope is not None else self.v_scale,
            "window": self.window,
            "chunk": self.chunk,
            "softcap": self.softcap,
            "scale": self.scale,
            "shared": self.shared_prefix or None,
            "spare": self.spare,
            "pool": self.pool,
        }
        words += [f"{key}={value!r}" for key, value in numbers.items() if value is not None]
        words += [f"layout={self.layout}"] if self.layout else []
        words += [f"strides={','.join(self.strides)}"] if self.strides else []
        words += [f"mask={self.query_mask}"] if self.query_mask else []
        flags = {"cross": self.cross, "noncausal": not (self.causal or self.cross)}
        flags |= {"causal-each": self.causal_each}
        flags |= {name: getattr(self, name) for name in _FLAGS}
        words += [flag for flag, on in flags.items() if on]
        if self.inputs != "flat":
            words.append(f"inputs={self.inputs}")
        if self.seed:
            words.append(f"seed={self.seed}")
        return " ".join(words)

    @classmethod
    def parse(cls, spec: str) -> Self:
        """Read a problem back from its spec, or raise InvalidProblem with the grammar."""
        fields: dict[str, object] = {}
        requests: list[Request] = []
        for word in _WORD.findall(spec):
            match = _REQUEST.fullmatch(word)
            if match:
                count, query_len, seq_len = (int(number or 1) for number in match.groups())
                if not count:
                    raise InvalidProblem(f"{word!r} in {spec!r}: a request stands at least once")
                if len(requests) + count > MAX_REQUESTS:
                    raise InvalidProblem(f"{word!r}: a batch has at most {MAX_REQUESTS:,} requests")
                requests += [Request(query_len, seq_len)] * count
                continue
            name, value = _read_word(word)
            if name in fields:
                raise InvalidProblem(f"{word!r} in {spec!r}: {name} is given twice")
            fields[name] = value
        return cls(requests=tuple(requests), **fields)  # type: ignore[arg-type]


GRAMMAR: Final = (
    "[Nx](qQ kK) ... [hH] [gG] dD bB fp32|fp16|bf16 [kv=e4m3|e5m2] [codec=NAME] [dv=N] [rope=N] "
    "[topk=N] [parts=N] [kscale=X] [vscale=X] [window=N] [chunk=N] [softcap=X] [scale=X] "
    "[shared=N] [mask=chain|tree] [cross] [noncausal] [causal-each] [alibi] [sinks] [interleave] "
    "[unwritten] [write] [copy=N] [chained] [inputs=flat|needle|loud|sunken] [layout=NAME] "
    "[strides=table,lse,out,query] [spare=N] [pool=N] [seed=N]"
)
"""Words of a spec: requests (Q query tokens, K tokens in the cache), KV heads, group size, head
size, block size, dtype, value size or rotary part, then the variant, and how all of it lies in
memory."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


_WORD = re.compile(r"\d*x?\([^)]*\)|\S+")
# 18 digits fit 64 bits; int() refuses thousands of them in words of its own.
_REQUEST = re.compile(r"(?:(\d{1,18})x)?\(\s*q(\d{1,18})\s+k(\d{1,18})\s*\)")
_SIZE = re.compile(r"([hgdb])(\d{1,18})")
_SIZE_FIELDS: Final = {
    "h": "num_kv_heads", "g": "group_size", "d": "head_dim", "b": "block_size",
}  # fmt: skip
_KEYS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "kv": ("kv_dtype", str),
    "mask": ("query_mask", str),
    **{name: (name, str) for name in ("codec", "inputs", "layout")},
    "dv": ("value_dim", int),
    "shared": ("shared_prefix", int),
    **{name: (name, int) for name in ("rope", "parts", "copy", "topk", "chunk", "window")},
    **{name: (name, int) for name in ("spare", "pool", "seed")},
    "kscale": ("k_scale", float),
    "vscale": ("v_scale", float),
    **{name: (name, float) for name in ("softcap", "scale")},
    "strides": ("strides", _names),
}
_KINDS: Final[dict[object, str]] = {int: "int", float: "float"}
"""What a word wants, for those that can fail."""

_NUMBER_FIELDS: Final[dict[str, Callable[[Any], int | float]]] = {
    **dict.fromkeys(_SIZE_FIELDS.values(), operator.index),
    **{field: operator.index for field, convert in _KEYS.values() if convert is int},
    **{field: float for field, convert in _KEYS.values() if convert is float},
}
_FLAGS: Final = ("alibi", "sinks", "interleave", "unwritten", "write", "chained")
"""Fields that are their own word."""
_FLAG_FIELDS: Final[dict[str, tuple[str, bool]]] = {
    "noncausal": ("causal", False),
    "cross": ("cross", True),
    "causal-each": ("causal_each", True),
    **{name: (name, True) for name in _FLAGS},
}


def _read_word(word: str) -> tuple[str, object]:
    if word in QUERY_DTYPES:
        return "dtype", word
    if word in _FLAG_FIELDS:
        return _FLAG_FIELDS[word]
    if size := _SIZE.fullmatch(word):
        return _SIZE_FIELDS[size[1]], int(size[2])
    key, _, text = word.partition("=")
    if key in _KEYS:
        field, convert = _KEYS[key]
        if key == "kv" and text not in FP8_DTYPES:
            raise InvalidProblem(f"{word!r}: the cache is one of {', '.join(FP8_DTYPES)}")
        try:
            return field, convert(text)
        except ValueError:
            raise InvalidProblem(f"{word!r}: {text!r} is not {_KINDS[convert]}") from None
    raise InvalidProblem(f"{word!r} is not a word of a problem; the grammar is: {GRAMMAR}")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that a spec calls so."""
    import torch

    names = QUERY_DTYPES | FP8_DTYPES | {"bytes": "uint8"}
    dtype: torch.dtype = getattr(torch, names[name])
    return dtype


def _running_total(lengths: Iterable[int]) -> list[int]:
    return [*accumulate(lengths, initial=0)]
