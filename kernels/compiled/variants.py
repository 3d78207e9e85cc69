"""What is compiled by default: our kernels, each for the problems that make it another kernel.

The shapes are those of Llama-3-8B (8 KV heads, 4 query heads each, head size 128) unless a name
says otherwise, and of a latent cache those of DeepSeek-V3 (128 heads, records of 512 + 64).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to compile."""

    name: str
    """As it is shown and as a baseline knows it. Its first word is a group."""
    subject: str
    """`module:function` or `file.py:function`; the function takes a `PagedBatch`."""
    problem: str
    """Spec of the batch."""
    not_for: tuple[tuple[str, str], ...] = ()
    """Targets that cannot do it, and why; it is not run there, and that is shown."""
    by_default: bool = False
    """Whether nobody asked for the problem: a kernel of another kind is then passed over."""

    @property
    def group(self) -> str:
        """First word of the name: decode, prefill, cascade, latent, write, copy."""
        return self.name.partition(" ")[0]

    def refusal(self, target: str) -> str | None:
        """Why it is not run for a target, or None if it is."""
        return dict(self.not_for).get(target)


_DECODE: Final = "16x(q1 k1024) h8 g4"
_PREFILL: Final = "16x(q512 k1024) h8 g4"
_LATENT: Final = "16x(q1 k1024) g128 d576"
_LATENT_PREFILL: Final = "4x(q64 k1024) g128 d576"
_ALL: Final = "window=100 softcap=30.0 alibi"
_E4M3: Final = re.compile("=e4m3|codec=fp8")
_NO_E4M3: Final = (("sm_80", "e4m3 needs sm_89 or newer"),)

# (name, function of `hosts`, problem)
_OURS: Final = (
    ("decode bf16", "decode", f"{_DECODE} d128 b16 bf16"),
    ("decode bf16, block 1", "decode", f"{_DECODE} d128 b1 bf16"),
    ("decode bf16, block 128", "decode", f"{_DECODE} d128 b128 bf16"),
    ("decode bf16, d80", "decode", f"{_DECODE} d80 b16 bf16"),
    ("decode bf16, d256", "decode", f"{_DECODE} d256 b16 bf16"),
    ("decode bf16, cache e4m3", "decode", f"{_DECODE} d128 b16 bf16 kv=e4m3"),
    ("decode bf16, cache e5m2", "decode", f"{_DECODE} d128 b16 bf16 kv=e5m2"),
    ("decode fp32", "decode", f"{_DECODE} d128 b16 fp32"),
    ("decode bf16, ragged", "ragged_decode", f"{_DECODE} d128 b16 bf16"),
    ("decode bf16, ragged, block 128", "ragged_decode", f"{_DECODE} d128 b128 bf16"),
    ("decode bf16, ragged, cache e4m3", "ragged_decode", f"{_DECODE} d128 b16 bf16 kv=e4m3"),
    ("decode bf16, invariant", "invariant_decode", f"{_DECODE} d128 b16 bf16"),
    ("decode bf16, split, sinks", "split_decode", f"{_DECODE} d128 b16 bf16 sinks"),
    ("decode fp16, split, all", "split_decode", f"{_DECODE} d128 b16 fp16 {_ALL}"),
    ("decode bf16, cache e4m3-head", "decode", f"{_DECODE} d128 b16 bf16 codec=e4m3-head"),
    (
        "decode bf16, cache e4m3-token-head",
        "decode",
        f"{_DECODE} d128 b16 bf16 codec=e4m3-token-head",
    ),
    (
        "decode bf16, cache int8-token-head",
        "decode",
        f"{_DECODE} d128 b16 bf16 codec=int8-token-head",
    ),
    (
        "decode bf16, cache int4-token-head",
        "decode",
        f"{_DECODE} d128 b16 bf16 codec=int4-token-head",
    ),
    ("decode bf16, values of 64", "decode", f"{_DECODE} d128 dv=64 b16 bf16"),
    ("decode bf16, chunks", "decode", f"{_DECODE} d128 b16 bf16 chunk=256"),
    ("prefill bf16", "prefill", f"{_PREFILL} d128 b16 bf16"),
    ("prefill bf16, d256", "prefill", f"{_PREFILL} d256 b16 bf16"),
    ("prefill bf16, not causal", "prefill", f"{_PREFILL} d128 b16 bf16 noncausal"),
    ("prefill bf16, all", "prefill", f"{_PREFILL} d128 b16 bf16 {_ALL} sinks"),
    ("prefill bf16, tree of 64", "prefill", "16x(q64 k1024) h8 g4 d128 b16 bf16 mask=tree"),
    ("prefill bf16, values of 64", "prefill", f"{_PREFILL} d128 dv=64 b16 bf16"),
    ("prefill bf16, chunks", "prefill", f"{_PREFILL} d128 b16 bf16 chunk=256"),
    ("prefill bf16, causal each", "prefill", f"{_PREFILL} d128 b16 bf16 causal-each"),
    ("prefill fp16, 4 tokens, d96", "prefill", "16x(q4 k1024) h8 g4 d96 b16 fp16"),
    ("prefill fp32", "prefill", f"{_PREFILL} d128 b16 fp32"),
    ("cascade bf16", "cascade", f"{_DECODE} d128 b16 bf16"),
    ("cascade bf16, cache e4m3", "cascade", f"{_DECODE} d128 b16 bf16 kv=e4m3"),
    ("cascade bf16, all", "cascade", f"{_DECODE} d128 b16 bf16 softcap=30.0 alibi sinks"),
    ("cascade bf16, prefill", "cascade", "4x(q64 k1024) h8 g4 d128 b16 bf16"),
    ("latent bf16", "latent", f"{_LATENT} b64 bf16 rope=64"),
    ("latent bf16, ragged, block 16", "ragged_latent", f"{_LATENT} b16 bf16 rope=64"),
    ("latent bf16, cache e4m3", "latent", f"{_LATENT} b64 bf16 kv=e4m3 rope=64"),
    ("latent bf16, codec fp8-ds-mla", "latent", f"{_LATENT} b64 bf16 codec=fp8-ds-mla rope=64"),
    ("latent bf16, chosen", "ragged_latent", f"{_LATENT} b64 bf16 rope=64 topk=1024"),
    ("latent prefill bf16", "latent", f"{_LATENT_PREFILL} b64 bf16 rope=64"),
    ("latent prefill bf16, chosen", "latent", f"{_LATENT_PREFILL} b64 bf16 rope=64 topk=512"),
    ("write bf16", "write", f"{_DECODE} d128 b16 bf16"),
    ("write e4m3", "write", f"{_DECODE} d128 b16 bf16 kv=e4m3"),
    ("write e5m2", "write", f"{_DECODE} d128 b16 bf16 kv=e5m2"),
    ("copy bf16", "copy", f"{_DECODE} d128 b16 bf16"),
)

VARIANTS: Final = tuple(
    Variant(name, f"{__package__}.hosts:{host}", problem, _NO_E4M3 if _E4M3.search(problem) else ())
    for name, host, problem in _OURS
)
"""In the order in which they are shown."""

GROUPS: Final = tuple(dict.fromkeys(variant.group for variant in VARIANTS))
"""Words that `--kernel` takes for several variants at once."""
