"""The figures that are asked for, and whether a run meets them.

On an H100 or H200, in bfloat16, 8 KV heads, 32 query heads, head size 128: decode as a share of the
bandwidth at which the device read in the same run, and not slower than the peers there; prefill as
a share of the dense matrix rate; tokens of a float8 cache; the cascade beside plain attention. Then
latent decode beside its peers. Without a GPU: paged torch beside contiguous torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from bench.throughput.points import Grid, Point
from bench.throughput.record import TIMED, BarRecord, PointRecord, State, SubjectRecord

RAGGED_BATCH: Final = "azure-conv:32"

# (batches, block sizes, share of the bandwidth at which the device reads)
DECODE_SHARES: Final = (
    (("64x4096", "16x32768"), (16, 32, 64, 128), 0.85),
    (("64x4096", "16x32768"), (1,), 0.70),
    (("1x131072",), (16,), 0.75),
    ((RAGGED_BATCH,), (16,), 0.80),
)

PREFILL: Final = Grid(prefills=["16x2048"])
PREFILL_SHARE: Final = 0.60

PEERS: Final = ("flashinfer", "flex", "vllm-unified", "flash-attn-3", "flash-attn-4")
LEAST_SPEED: Final = 1.0
"""Ours is at least so many times as fast as each peer."""

FLASH_ATTN: Final = Grid(batches=["64x4096", "16x32768"], block_sizes=[256])
"""flash-attention 2 has no smaller blocks."""

FLOAT8: Final = Grid(batches=["64x4096"], kv_dtypes=["e4m3"])
FLOAT8_SPEED: Final = 1.7
"""Tokens read in a second, beside the same batch over a cache of bfloat16."""

SHARING: Final = (
    Grid(batches=["64x4096"], shared=2048),
    Grid(batches=["16x4096"], shared=1024),
    Grid(batches=["4x2048"], shared=256),
)
CASCADE_TIME: Final = 1.02
"""The cascade, where it is chosen, takes at most so many times as long as plain attention."""

LATENT: Final = Grid(batches=["32x4096"], heads=[(1, 128)], head_dims=[(512, 64)], block_sizes=[64])
LATENT_SPEEDS: Final = {"flash-mla": 0.8, "vllm-mla": 1.2}
"""Ours is at least so many times as fast as each."""

MOST_TIME: Final = 1.15
"""Paged torch takes at most so many times as long as contiguous torch, on the CPU."""

TORCH, CONTIGUOUS, TRITON = "torch", "contiguous", "triton"
CASCADE, OUR_LATENT = "triton-cascade", "triton-latent"


def bar_points(device: str, *, seed: int = 0) -> tuple[Point, ...]:
    """The points that the bars need on a device, and no others."""
    if device == "cpu":
        return Grid(batches=[RAGGED_BATCH], seed=seed).points()
    shares = [
        Grid(batches=batches, block_sizes=block_sizes) for batches, block_sizes, _ in DECODE_SHARES
    ]
    grids = (*shares, FLASH_ATTN, PREFILL, FLOAT8, *SHARING, LATENT)
    return tuple(point for grid in grids for point in replace(grid, seed=seed).points())


def judge_bars(points: Sequence[PointRecord], *, device: str, seed: int = 0) -> list[BarRecord]:
    """Each bar against the points of a run; what the run has not is not measured."""
    by_name = {point.name: point for point in points}

    def places(grid: Grid, *, on: str = "cuda") -> list[_Place]:
        """The points of a grid; those of a GPU are no points of a run on a CPU."""
        missing = "not a point of this run" if device == on else "this run has no GPU"
        known = by_name if device == on else {}
        names = [point.name for point in replace(grid, seed=seed).points()]
        return [_Place(name, known.get(name), missing) for name in names]

    bars = []
    if device == "cpu":
        (place,) = places(Grid(batches=[RAGGED_BATCH]), on="cpu")
        what = "time of paged torch over contiguous torch"
        got = place.time_over(TORCH, CONTIGUOUS)
        bars.append(place.bar(what, MOST_TIME, got, TORCH, CONTIGUOUS, at_most=True))
    for batches, block_sizes, share in DECODE_SHARES:
        for place in places(Grid(batches=batches, block_sizes=block_sizes)):
            got = place.value(TRITON, "read_share")
            bars.append(place.bar("share of the read bandwidth", share, got, TRITON))
            bars += [place.speed(TRITON, peer, LEAST_SPEED) for peer in PEERS]
    bars += [place.speed(TRITON, "flash-attn", LEAST_SPEED) for place in places(FLASH_ATTN)]
    (place,) = places(PREFILL)
    got = place.value(TRITON, "matrix_share")
    bars.append(place.bar("share of the dense matrix rate", PREFILL_SHARE, got, TRITON))
    (float8,), (usual,) = places(FLOAT8), places(replace(FLOAT8, kv_dtypes=[""]))
    rates = [each.value(TRITON, "tokens_per_s") for each in (float8, usual)]
    got = rates[0] / rates[1] if rates[0] and rates[1] else None
    what = "tokens a second, over those of a bfloat16 cache"
    bars.append(float8.bar(what, FLOAT8_SPEED, got, TRITON))
    for place in chain.from_iterable(map(places, SHARING)):
        got = place.time_over(CASCADE, TRITON)
        what = "time of the cascade over plain attention"
        bars.append(place.bar(what, CASCADE_TIME, got, CASCADE, TRITON, at_most=True))
    for place in places(LATENT):
        bars += [place.speed(OUR_LATENT, peer, speed) for peer, speed in LATENT_SPEEDS.items()]
    return bars


@dataclass(frozen=True, slots=True)
class _Place:
    """A point that bars ask for, as far as a run has it."""

    name: str
    record: PointRecord | None
    missing: str
    """What is said where there is no record."""

    def find(self, subject: str) -> SubjectRecord | None:
        """A subject there, if it was timed."""
        found = None if self.record is None else self.record.find(subject)
        return found if found is not None and found.status == TIMED else None

    def value(self, subject: str, name: str) -> float | None:
        """A field of a timed subject, or its tokens a second."""
        found = self.find(subject)
        if found is None or self.record is None:
            return None
        if name == "tokens_per_s":
            return self.record.context_tokens / found.seconds.median if found.seconds else None
        value: float | None = getattr(found, name)
        return value

    def time_over(self, subject: str, other: str) -> float | None:
        """A subject's time over another's, median of the rounds' ratios."""
        found = self.find(subject)
        if found is None or self.find(other) is None or other not in found.times_of:
            return None
        return found.times_of[other].median

    def speed(self, ours: str, peer: str, wanted: float) -> BarRecord:
        """How many times as fast ours is as a peer."""
        return self.bar(f"speed beside {peer}", wanted, self.time_over(peer, ours), ours, peer)

    def bar(
        self, what: str, wanted: float, got: float | None, *subjects: str, at_most: bool = False
    ) -> BarRecord:
        """A bar about these subjects."""
        state: State = "not measured"
        why = next(filter(None, map(self._why, subjects)), self.missing)
        if got is not None:
            state = "met" if (got <= wanted if at_most else got >= wanted) else "missed"
            why = ""
        return BarRecord(what=what, point=self.name, wanted=wanted, got=got, state=state, why=why)

    def _why(self, subject: str) -> str:
        if self.record is None:
            return self.missing
        found = self.record.find(subject)
        if found is None:
            return "not a subject of this run"
        if found.status == TIMED:
            return ""
        return f"{found.name} {found.status}: {found.why}".removesuffix(": ")
