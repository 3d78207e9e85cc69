"""The figures that are asked for, and whether a run meets them.

On an H100 or H200: decode in bfloat16, 8 KV heads, 32 query heads, head size 128, as a share of the
copy bandwidth of the same run, and not slower than the peers there; prefill as a share of the dense
matrix rate. Without a GPU: paged torch beside contiguous torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from bench.throughput.points import Grid, Point
from bench.throughput.record import TIMED, BarRecord, PointRecord, State, SubjectRecord

RAGGED_BATCH: Final = "azure-conv:32"

# (batches, block sizes, share of the copy bandwidth)
DECODE_SHARES: Final = (
    (("64x4096", "16x32768"), (16, 32, 64, 128), 0.85),
    (("64x4096", "16x32768"), (1,), 0.70),
    (("1x131072",), (16,), 0.75),
    ((RAGGED_BATCH,), (16,), 0.80),
)

PREFILL_BATCH: Final = "16x2048"
PREFILL_SHARE: Final = 0.60

PEERS: Final = ("flashinfer", "flex", "vllm-unified")
LEAST_SPEED: Final = 1.0
"""Ours is at least so many times as fast as each peer."""

MOST_TIME: Final = 1.15
"""Paged torch takes at most so many times as long as contiguous torch, on the CPU."""

TORCH, CONTIGUOUS, TRITON = "torch", "contiguous", "triton"


def bar_points(device: str, *, seed: int = 0) -> tuple[Point, ...]:
    """The points that the bars need on a device, and no others."""
    if device == "cpu":
        return Grid(batches=[RAGGED_BATCH], seed=seed).points()
    found: list[Point] = []
    for batches, block_sizes, _ in DECODE_SHARES:
        found += Grid(batches=batches, block_sizes=block_sizes, seed=seed).points()
    return (*found, *Grid(prefills=[PREFILL_BATCH], seed=seed).points())


def judge_bars(points: Sequence[PointRecord], *, device: str, seed: int = 0) -> list[BarRecord]:
    """Each bar against the points of a run; what the run has not is not measured."""
    by_name = {point.name: point for point in points}
    bars = list(_gpu_bars(by_name if device == "cuda" else {}, device=device, seed=seed))
    if device == "cpu":
        bars.insert(0, _cpu_bar(by_name, seed=seed))
    return bars


def _gpu_bars(points: dict[str, PointRecord], *, device: str, seed: int) -> Iterator[BarRecord]:
    missing = "this run has no GPU" if device == "cpu" else "not a point of this run"
    for batches, block_sizes, share in DECODE_SHARES:
        for point in Grid(batches=batches, block_sizes=block_sizes, seed=seed).points():
            record = points.get(point.name)
            ours = _find(record, TRITON)
            got = ours.bandwidth_share if ours else None
            yield _bar(
                "share of the copy bandwidth", point.name, share, got, _why(record, ours, missing)
            )
            for peer in PEERS:
                yield _peer_bar(peer, point.name, record, missing)
    for point in Grid(prefills=[PREFILL_BATCH], seed=seed).points():
        record = points.get(point.name)
        ours = _find(record, TRITON)
        yield _bar(
            "share of the dense matrix rate",
            point.name,
            PREFILL_SHARE,
            ours.matrix_share if ours else None,
            _why(record, ours, missing),
        )


def _peer_bar(peer: str, name: str, record: PointRecord | None, missing: str) -> BarRecord:
    ours, theirs = _find(record, TRITON), _find(record, peer)
    got = None
    if ours and theirs and TRITON in theirs.times_of and ours.status == TIMED:
        got = theirs.times_of[TRITON].median  # their time over ours: how often ours is as fast
    why = _why(record, ours, missing) or _why(record, theirs, missing)
    return _bar(f"speed beside {peer}", name, LEAST_SPEED, got, why)


def _cpu_bar(points: dict[str, PointRecord], *, seed: int) -> BarRecord:
    (point,) = bar_points("cpu", seed=seed)
    record = points.get(point.name)
    ours, other = _find(record, TORCH), _find(record, CONTIGUOUS)
    got = ours.times_of[CONTIGUOUS].median if ours and CONTIGUOUS in ours.times_of else None
    missing = "not a point of this run"
    why = _why(record, ours, missing) or _why(record, other, missing)
    what = "time of paged torch over contiguous torch"
    return _bar(what, point.name, MOST_TIME, got, why, at_most=True)


def _find(record: PointRecord | None, subject: str) -> SubjectRecord | None:
    return None if record is None else record.find(subject)


def _why(record: PointRecord | None, subject: SubjectRecord | None, missing: str) -> str:
    if record is None:
        return missing
    if subject is None:
        return "not a subject of this run"
    if subject.status == TIMED:
        return ""
    return f"{subject.name} {subject.status}: {subject.why}".removesuffix(": ")


def _bar(
    what: str, point: str, wanted: float, got: float | None, why: str, *, at_most: bool = False
) -> BarRecord:
    state: State = "not measured"
    if got is not None:
        state = "met" if (got <= wanted if at_most else got >= wanted) else "missed"
        why = ""
    return BarRecord(what=what, point=point, wanted=wanted, got=got, state=state, why=why)
