"""What is found out about each release of an allocator, and about all of them together."""

from __future__ import annotations

from typing import Final, Literal

from bench.fuzz.record import Said, Trace
from bench.machine.record import StrictRecord
from bench.machine.timing import Interval, paired_ratio
from subjects.allocators.bytecodes import ADAPTER

SCHEMA_VERSION: Final = 1

Stream = Literal["mixed", "evictions"]


class Settings(StrictRecord):
    """What each release is asked; results are kept under it."""

    examples: int = 400
    """Programs of the fuzzer."""
    fuzz_seed: int = 0
    """Of the programs."""
    counted_requests: int = 60
    """Requests in which bytecodes are counted: counting takes a microsecond for each."""
    requests: int = 500
    """Requests of the mixed stream, for its counters and in the race."""
    tiny_requests: int = 3000
    """Requests of the stream of evictions."""
    max_running: int = 64
    """Sequences that run at once; half of them in the stream of evictions."""
    block_size: int = 16
    ample_blocks: int = 16_384
    """Blocks of a pool in which nothing is evicted."""
    short_blocks: int = 1_200
    """Blocks of a pool in which the mixed stream is preempted."""
    tiny_blocks: tuple[int, ...] = (600, 800, 1000, 1500)
    """Blocks of the pools for the stream of evictions; the first is the one of the race."""
    rounds: int = 9
    """Of the race: in each, a release and the anchor serve every stream once."""


class Pass(StrictRecord):
    """One stream, served from one pool."""

    stream: Stream
    prefix_caching: bool
    num_blocks: int

    @property
    def words(self) -> str:
        """Of the pass, for a table."""
        caching = "on" if self.prefix_caching else "off"
        return f"{self.stream}, caching {caching}, {self.num_blocks:,} blocks"


class Counted(StrictRecord):
    """What a pass comes to: the same each time."""

    of: Pass
    requests: int
    operations: int
    """Admissions, appends and frees that were granted."""
    hit_tokens: int
    """Prompt tokens that were found cached."""
    preemptions: int
    """Sequences that were given up for want of room."""
    peak_blocks: int
    """Blocks in use at once, at most."""
    bytecodes: dict[str, int] = {}
    """By function: `module:name`, and `adapter`. Empty where they were not counted."""

    @property
    def per_operation(self) -> float | None:
        """Bytecodes of the allocator's own code for each operation; None where not counted."""
        if not self.bytecodes or not self.operations:
            return None
        return (sum(self.bytecodes.values()) - self.bytecodes.get(ADAPTER, 0)) / self.operations


class Raced(StrictRecord):
    """Rounds of a race between a release and the anchor."""

    of: Pass
    rates: list[float]
    anchor_rates: list[float]
    """Operations per CPU-second of both, in each round."""

    @property
    def ratio(self) -> Interval | None:
        """Of the release's rate to the anchor's in the same round; None before the first."""
        return paired_ratio(self.rates, self.anchor_rates) if self.rates else None


class Fuzzed(StrictRecord):
    """What a campaign found."""

    seed: int
    programs: int
    steps: int
    checks: dict[str, str]
    """By check: `passed`, `failed`, or `not run: REASON`."""
    traces: list[Trace]


class Release(StrictRecord):
    """One release of one allocator. None, and lists without entries: it was not measured."""

    name: str
    """What it is called in the comparison: its requirements, or the allocator's name."""
    allocator: str
    requirements: list[str] = []
    """Exact versions in its environment; none: it runs as it is installed."""
    version: Said = ""
    """What it says of itself."""
    adapter: str = ""
    """Digest of what drives it."""
    fuzzed: Fuzzed | None = None
    shows: dict[str, bool] = {}
    """By check: whether it fails it, in its own campaign or in a program of another release's."""
    batched: bool = False
    """Whether one call appended a token to every running sequence, as in that engine: in the race,
    and where bytecodes were counted."""
    bytecodes: list[Counted] = []
    """A short stream, with the bytecodes of every function."""
    counted: list[Counted] = []
    """Whole streams."""
    raced: list[Raced] = []
    trouble: dict[str, Said] = {}
    """By step: why it did not come to its end."""

    def bytecodes_with(self, *, caching: bool) -> Counted | None:
        """The short stream with or without prefix caching."""
        found = (each for each in self.bytecodes if each.of.prefix_caching is caching)
        return next(found, None)


class Introduced(StrictRecord):
    """What an allocator says of itself."""

    version: Said
    prefix_caching: bool
    commit: bool
    append_each: bool


class Counts(StrictRecord):
    """What one release's passes come to."""

    bytecodes: list[Counted]
    counted: list[Counted]


class Shows(StrictRecord):
    """By check: whether a release fails it in any program that is known."""

    shows: dict[str, bool]


class Races(StrictRecord):
    """A release's rounds so far, for each pass."""

    raced: list[Raced]


class Located(StrictRecord):
    """A finding, and the releases of one allocator that have it."""

    allocator: str
    check: str
    spans: list[tuple[str, str]]
    """First and last release of each run of neighbours that have it."""
    gone_in: str | None
    """The release after the last span; None where the last release has it, or is unknown."""
    missing: list[str]
    """Releases of which it is not known."""
    trace: str | None
    replay: str | None
    """File of the smallest program that shows it, and the command that runs it again."""


class EnginesRecord(StrictRecord):
    """Releases of allocators, side by side."""

    schema_version: int = SCHEMA_VERSION
    settings: Settings
    anchor: str
    """Name of the release that the others race against."""
    releases: list[Release]
    located: list[Located]
    complete: bool
    """Whether every step of every release was taken."""
    cpu: str
    cores: int
    python: str
    torch: str
    pagedbench: str
    measured_on: str
    """Date of the last step, as YYYY-MM-DD."""
    exit_code: int
