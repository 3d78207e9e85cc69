"""The record of `pagedbench check`, as JSON."""

from __future__ import annotations

import shlex
from typing import Final

from bench.check.decode import DecodeTimes
from bench.check.need import MemoryNeed
from bench.check.search import Failure, Outcome
from bench.machine.environment import Environment
from bench.machine.record import Record
from bench.workloads.record import NamedStream
from reference.attention.coverage import Row
from reference.attention.expected import Met
from reference.attention.verdict import Status

EXPECTED: Final = Status.EXPECTED.value


class FailureRecord(Record):
    """A problem that a kernel got wrong; see `bench.check.search.Failure`."""

    problem: str
    check: str
    status: str
    findings: list[str]
    first_problem: str
    replay: str
    """The command that shows it again, to be typed in the same folder."""
    saved_to: str | None
    """File from which the next run takes it first; None where it could not be written."""


class ExpectedRecord(Record):
    """An expected failure, and what came of it; see `reference.attention.expected`."""

    kernel: str
    check: str
    when: list[str]
    """Features that narrow it down."""
    reason: str
    problems: int
    failed: int
    """Problems that it covers and that were run, and those of them that failed."""
    finding: str
    problem: str
    """What the first that failed showed, and its spec; empty if none did."""
    state: str
    """`failed as expected`, `no longer fails` or `no problem met it`."""
    said: str
    """All of this in a sentence, and what is to be done about it."""


class CellRecord(Record):
    """One feature under one check; see `reference.attention.coverage`."""

    state: str
    """`passed`, `failed`, `failed as expected`, `not run`, `not supported` or `no problem shows
    it`."""
    counts: dict[str, int]
    """Verdicts by status."""

    @property
    def failed(self) -> int:
        """Problems that failed, expected or not."""
        return sum(self.counts.get(status, 0) for status in ("failed", "crashed", EXPECTED))


class CoverageRow(Record):
    """One feature under every check; cells by the check's name."""

    feature: str
    group: str
    cells: dict[str, CellRecord]


class KernelRecord(Record):
    """Outcome of one kernel's cross-check."""

    name: str
    asked: int
    """Problems that were to be run: as many as asked for, and those that an earlier run saved."""
    problems: int
    """Problems that were run, each different, and passed, but for failures that are expected."""
    checks: dict[str, dict[str, int]]
    """Verdicts by check and status."""
    unseen: dict[str, str]
    """Checks that could see nothing of the kernel, and why."""
    expected: list[ExpectedRecord]
    """The failures that are expected of it."""
    coverage: list[CoverageRow]
    """Verdicts by feature of the problems and by check."""
    complete: bool
    """Whether all that were asked for were run, or all that the kernel's capabilities leave."""
    failure: FailureRecord | None

    def count(self, status: str) -> int:
        """Verdicts of one status, over all checks."""
        return sum(by_status.get(status, 0) for by_status in self.checks.values())

    def cells(self, state: str) -> int:
        """Cells of the coverage matrix in one state."""
        return sum(cell.state == state for row in self.coverage for cell in row.cells.values())


class MemoryRecord(Record):
    """What the cache needs under one policy, in slot-steps; see `bench.check.need.MemoryNeed`."""

    policy: str
    granule_tokens: int
    token: int
    reserve: int
    internal: int
    roundup: int
    allocated: int
    waste_fraction: float
    bytes_per_request: float
    requests_in_pool: int


class CheckRecord(Record):
    """Everything that `pagedbench check` found."""

    schema_version: int = 2
    """Raised when a field changes its meaning."""
    started_at: str
    elapsed_s: float
    seed: int
    max_len: int
    """With the kernels' `asked` and the stream, what decides which problems are drawn."""
    environment: Environment
    stream: NamedStream
    kernels: list[KernelRecord]
    decode: DecodeTimes | None
    memory: list[MemoryRecord]
    pool_bytes: int
    """Pool for which `requests_in_pool` is given."""
    verdict: str
    """`right`, `wrong`, `as expected` where nothing failed but what was expected to, or
    `incomplete` where it was interrupted."""
    warnings: list[str]
    """Expected failures that no longer happen, or that nothing met."""
    exit_code: int
    """What the command returned."""


def replay_command(kernel: str, device: str, problem: str, *, python: str | None = None) -> str:
    """The command that shows a failure again, quoted for a shell."""
    interpreter = ["--engine-python", python] if python is not None else []
    options = ["--kernel", kernel, *interpreter, "--device", device, "--problem", problem]
    return shlex.join(["pagedbench", "check", *options])


def kernel_record(
    outcome: Outcome,
    *,
    device: str = "cpu",
    saved_to: str | None = None,
    python: str | None = None,
) -> KernelRecord:
    """Turn a search's outcome into data."""
    checks: dict[str, dict[str, int]] = {}
    for (check, status), count in sorted(outcome.counts.items()):
        checks.setdefault(check, {})[status.value] = count
    failure = outcome.failure
    return KernelRecord(
        name=outcome.kernel,
        asked=outcome.asked,
        problems=outcome.problems,
        checks=checks,
        # What a check saw of one problem it can see: of the others it had nothing to look at.
        unseen={
            check: why
            for check, why in outcome.unseen.items()
            if set(checks[check]) <= {Status.NOT_RUN, Status.NOT_SUPPORTED}
        },
        expected=[_expected(met) for met in outcome.expectations.met],
        coverage=[_coverage(row) for row in outcome.coverage.matrix(outcome.capabilities)],
        complete=outcome.complete,
        failure=None
        if failure is None
        else _failure(
            failure,
            saved_to,
            replay_command(outcome.kernel, device, failure.problem, python=python),
        ),
    )


def _failure(failure: Failure, saved_to: str | None, replay: str) -> FailureRecord:
    return FailureRecord(
        problem=failure.problem,
        check=failure.check,
        status=failure.status.value,
        findings=list(failure.findings),
        first_problem=failure.first_problem,
        replay=replay,
        saved_to=saved_to,
    )


def _expected(met: Met) -> ExpectedRecord:
    expected = met.expected
    return ExpectedRecord(
        kernel=expected.kernel,
        check=expected.check,
        when=list(expected.when),
        reason=expected.reason,
        problems=met.problems,
        failed=met.failed,
        finding=met.finding,
        problem=met.problem,
        state=met.state.value,
        said=str(met),
    )


def _coverage(row: Row) -> CoverageRow:
    return CoverageRow(
        feature=row.feature,
        group=row.group,
        cells={
            check: CellRecord(
                state=cell.state.value,
                counts={status.value: count for status, count in cell.counts.items()},
            )
            for check, cell in row.cells.items()
        },
    )


def memory_record(need: MemoryNeed, *, pool_bytes: int) -> MemoryRecord:
    """Turn a need into data."""
    return MemoryRecord(
        policy=need.policy,
        granule_tokens=need.granule_tokens,
        token=need.token,
        reserve=need.reserve,
        internal=need.internal,
        roundup=need.roundup,
        allocated=need.allocated,
        waste_fraction=need.waste_fraction,
        bytes_per_request=need.bytes_per_request,
        requests_in_pool=need.requests_that_fit(pool_bytes),
    )
