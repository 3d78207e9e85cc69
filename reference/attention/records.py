"""How the codecs of a cache lay out one token's key or value of one head, byte by byte.

A record is a row of bytes: the codes of the elements, then the scales, then the rotary part.

| codec | codes | scales | at 128 elements | as in |
| --- | --- | --- | --- | --- |
| e4m3-head | a byte each | none in the record, float32 [heads] beside the cache | 128 | \
flash-attention 3 and FlashInfer, `k_descale` |
| e4m3-token-head | a byte each | one float32 | 128 + 4 | vLLM `fp8_per_token_head` |
| int8-token-head | a byte each, two's complement | one float32 | 128 + 4 | vLLM \
`int8_per_token_head` |
| int4-token-head | two a byte, the even element in the low nibble | one float32, of which the low \
four bits are the zero point | 64 + 4 | vLLM `int4_per_token_head`, without its rotation |
| nvfp4 | two e2m1 a byte, the even element in the low nibble | one e4m3 for each 16 elements, and \
`k_scale` or `v_scale` for the whole cache | 64 + 8 | vLLM `nvfp4`, FlashInfer on SM120 |
| nvfp4-swizzled | the same | the same, those of values swizzled in their page | 64 + 8 | vLLM \
`nvfp4`, TensorRT-LLM's kernels on SM100 |
| fp8-ds-mla | a byte each, e4m3 | one float32 for each 128 elements, then the rotary part in \
bfloat16 | 512 + 16 + 128 of 512 and 64 | vLLM `fp8_ds_mla`, FlashMLA |

Numbers are little-endian. What is decoded:

- e4m3, int8: code * scale. int4: (code - zero point) * (scale without its low four bits).
- e2m1: the sign is bit 3, the magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
- swizzled: the scale of block s of the token at offset t of its page, of S scales a record, lies
  with the token at `t // 4 * 4 + s // (S / 4)`, at place `s % (S / 4) * 4 + t % 4`.

Where an engine keeps scales in a tensor of their own, or behind all codes of a page, a view with
strides makes records of them, and a kernel that takes strides reads both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from reference.attention.problem import AttentionProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The layout of a codec's records."""

    numbers: Literal["e4m3", "int8", "int4", "e2m1"]
    """What a code is."""
    scales: Literal["", "fp32", "e4m3"] = ""
    """What a scale in the record is; none if empty."""
    run: int = 0
    """Elements that share a scale; 0: all of them."""
    outer: Literal["", "tensor", "head"] = ""
    """Whether there is a scale beside the cache: one for all of it, or one for each head."""
    swizzled: bool = False
    """Whether scales of values lie elsewhere in their page."""
    latent: bool = False
    """Whether it is of a latent cache."""

    def code_bytes(self, elements: int) -> int:
        """Bytes of the codes."""
        return -(-elements // 2) if self.numbers in ("int4", "e2m1") else elements

    def num_scales(self, elements: int) -> int:
        """Scales of a record; the last may be of fewer elements than the others."""
        return -(-elements // (self.run or elements)) if self.scales else 0

    def scale_bytes(self, elements: int) -> int:
        """Bytes of the scales."""
        return self.num_scales(elements) * (4 if self.scales == "fp32" else 1)

    def bytes_of(self, dim: int, rope: int = 0) -> int:
        """Bytes of a record of `dim` elements, of which the last `rope` are the rotary part."""
        return self.code_bytes(dim - rope) + self.scale_bytes(dim - rope) + 2 * rope


CODECS: Final = {
    "e4m3-head": Record(numbers="e4m3", outer="head"),
    "e4m3-token-head": Record(numbers="e4m3", scales="fp32"),
    "int8-token-head": Record(numbers="int8", scales="fp32"),
    "int4-token-head": Record(numbers="int4", scales="fp32"),
    "nvfp4": Record(numbers="e2m1", scales="e4m3", run=16, outer="tensor"),
    "nvfp4-swizzled": Record(numbers="e2m1", scales="e4m3", run=16, outer="tensor", swizzled=True),
    "fp8-ds-mla": Record(numbers="e4m3", scales="fp32", run=128, latent=True),
}
"""Codecs by name. A float8 cache with one scale, latent or not, is a tensor of that type and needs
none: see `kv=` in a problem."""


def scaled_as_a_whole(codec: str) -> bool:
    """Whether a codec has one scale beside the cache, `k_scale` or `v_scale`."""
    return codec in CODECS and CODECS[codec].outer == "tensor"


def complaints_of_codec(problem: AttentionProblem) -> Iterator[str]:
    """What is wrong with the codec of a problem, if it has one, and with scales that it lacks."""
    codec, size, block = problem.codec, problem.value_size, problem.block_size
    scales = (problem.k_scale, problem.v_scale)
    if scales != (1.0, 1.0) and not (problem.quantised or scaled_as_a_whole(codec)):
        yield (
            f"kscale={scales[0]:g} vscale={scales[1]:g}: only a float8 cache has scales, and nvfp4"
        )
    if codec not in CODECS:
        if codec:
            yield f"codec={codec}: choose one of {', '.join(CODECS)}"
        return
    record = CODECS[codec]
    if problem.quantised:
        yield f"codec={codec} kv={problem.kv_dtype}: a codec says what the cache is of"
    if record.latent != (problem.rope is not None):
        needs = "needs rope=" if record.latent else "is not of latent caches, which have rope="
        yield f"codec={codec}: {needs}"
    if record.swizzled and problem.write:
        yield f"codec={codec} write: the scales of a token lie beside other tokens; not asked yet"
    if record.swizzled and (size % 64 or block % 4):
        yield (
            f"codec={codec} dv={size} b{block}: scales are swizzled in values of a multiple of 64 "
            f"elements and blocks of one of 4 tokens"
        )
