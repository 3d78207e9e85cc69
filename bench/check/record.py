"""The record of `pagedbench check`, as JSON."""

from __future__ import annotations

import shlex
from typing import Any, Final

from pydantic import computed_field, model_validator

from bench.machine.environment import Environment
from bench.machine.record import Record
from bench.workloads.need import MemoryNeed
from bench.workloads.record import NamedStream
from reference.attention.contract import Capabilities
from reference.attention.coverage import Coverage, PairCoverage, Row
from reference.attention.expected import Met
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict

EXPECTED: Final = Status.EXPECTED.value


class Drawing(Record):
    """What a page shows of a finding's problem."""

    blocks: list[list[int]] = []
    """Of each sequence its blocks, as its table has them; none where nothing is paged."""
    token: int | None = None
    """Row of the batch that is wrong; None where no finding names one."""
    head: int = 0
    """Of that row."""
    sees: list[tuple[int, int]] = []
    """First and last position of each run of keys that the row is to see, in its sequence."""
    lost: tuple[int, int] | None = None
    """Sequence and position of the key that was lost, where exactly one explains what was seen."""
    lost_last: int | None = None
    """Position of the last, where it is a run of keys that one explains it by."""
    of: str = "out"
    """What the errors are of: `out`, or `lse`."""
    allowed: list[float] = []
    """The tolerance of each row of that head."""
    errors: list[float | None] = []
    """The error of each row, None where it is no number; empty where the kernel was not asked."""


class Failure(Record):
    """A problem that a kernel got wrong."""

    problem: str
    """The spec; after shrinking the smallest that was found."""
    check: str
    """Which check failed."""
    status: Status
    """Failed or crashed."""
    findings: tuple[str, ...]
    """What was seen."""
    first_problem: str
    """The spec as it was drawn, before shrinking."""
    replay: str = ""
    """The command that shows it again, to be typed in the same folder."""
    saved_to: str | None = None
    """File from which the next run takes it first; None where it could not be written."""
    seen: int = 1
    """Problems that failed in this way."""
    cut_short: bool = False
    """Whether making it smaller came to its limits: a smaller problem may show it."""
    seed: int | None = None
    """Of the draw that showed it first; None where it was not drawn."""
    drawing: Drawing | None = None
    """What a page shows of the problem; None where it is too large, or was not made smaller."""

    @classmethod
    def of(
        cls,
        problem: AttentionProblem,
        verdict: Verdict,
        *,
        replay: str = "",
        seed: int | None = None,
    ) -> Failure:
        """What is kept of a verdict that the kernel is to blame for."""
        return cls(
            problem=str(problem),
            check=verdict.check,
            status=verdict.status,
            findings=verdict.findings,
            first_problem=str(problem),
            replay=replay,
            seed=seed,
        )


class KernelRecord(Record):
    """What a search through one kernel's problems gave."""

    name: str
    asked: int
    """Problems that were to be run: as many as asked for, and those that an earlier run saved."""
    problems: int
    """Problems that were run, each different, whether they passed or not."""
    checks: dict[str, dict[str, int]]
    """Verdicts by check and status."""
    unseen: dict[str, str]
    """Checks that could see nothing of the kernel, and why."""
    expected: list[Met]
    """The failures that are expected of it."""
    coverage: list[Row]
    """Verdicts by feature of the problems and by check."""
    pairs: PairCoverage = PairCoverage()
    """Variants that met in one problem."""
    complete: bool
    """Whether all that were asked for were run, or all that the kernel's capabilities leave."""
    failures: list[Failure] = []
    """What it got wrong, told apart by check, source line and kind: as many as were asked for."""
    others: dict[str, int] = {}
    """What else it got wrong, by check and kind: problems that showed it."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_failure(cls, data: Any) -> Any:
        """Records that were written when a search ended at its first failure."""
        if isinstance(data, dict) and "failure" in data:
            only = data["failure"]
            data = {"failures": [] if only is None else [only], **data}
        return data

    # mypy knows no decorated property.
    @computed_field  # type: ignore[prop-decorator]
    @property
    def failure(self) -> Failure | None:
        """The first of them."""
        return self.failures[0] if self.failures else None

    @classmethod
    def not_run(cls, name: str, capabilities: Capabilities, *, asked: int) -> KernelRecord:
        """A kernel that no search came to."""
        return cls(
            name=name,
            asked=asked,
            problems=0,
            checks={},
            unseen={},
            expected=[],
            coverage=Coverage().matrix(capabilities),
            complete=False,
        )

    def count(self, status: str) -> int:
        """Verdicts of one status, over all checks."""
        return sum(by_status.get(status, 0) for by_status in self.checks.values())

    def cells(self, state: str) -> int:
        """Cells of the coverage matrix in one state."""
        return sum(cell.state == state for row in self.coverage for cell in row.cells.values())


class TimingRecord(Record):
    """Times of one implementation."""

    name: str
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    """Milliseconds a call, over the rounds."""
    ratio: float
    """Median over rounds of this time divided by the baseline's of the same round."""
    gigabytes_per_s: float
    """Keys and values of the batch divided by the median time, 10^9 bytes a second."""
    bandwidth_share: float | None
    """Of the device's measured copy bandwidth; None where that was not measured."""


class DecodeTimes(Record):
    """The batch that was timed, and its times."""

    batch_size: int
    context_tokens: int
    """Tokens in the cache, over all sequences."""
    kv_bytes: int
    """Bytes of keys and values that a call must read."""
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    copy_gigabytes_per_s: float | None
    """Measured copy bandwidth, read plus written; None on the CPU."""
    timings: list[TimingRecord]
    """Baseline first."""


class CheckRecord(Record):
    """Everything that `pagedbench check` found."""

    schema_version: int = 2
    """Raised when a field changes its meaning."""
    started_at: str
    elapsed_s: float
    seed: int
    last_seed: int | None = None
    """Of a campaign, which began with `seed`."""
    max_len: int
    """With the kernels' `asked` and the stream, what decides which problems are drawn."""
    environment: Environment
    stream: NamedStream
    kernels: list[KernelRecord]
    decode: DecodeTimes | None
    memory: list[MemoryNeed]
    pool_bytes: int
    """Pool for which `requests_in_pool` is given."""
    verdict: str
    """`right`, `wrong`, `as expected` where nothing failed but what was expected to, or
    `incomplete` where it was interrupted."""
    warnings: list[str]
    """Kernels that could not be checked, expected failures that no longer happen or that nothing
    met."""
    exit_code: int
    """What the command returned."""


def replay_command(kernel: str, device: str, problem: str, *, python: str | None = None) -> str:
    """The command that shows a failure again, quoted for a shell."""
    interpreter = ["--engine-python", python] if python is not None else []
    options = ["--kernel", kernel, *interpreter, "--device", device, "--problem", problem]
    return shlex.join(["pagedbench", "check", *options])
