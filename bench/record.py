"""The record of `pagedbench check`, as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from bench.cross_check import Failure, Outcome
from bench.environment import Environment
from bench.memory import MemoryNeed
from bench.timing import TimedBatch
from bench.workloads.stream import RequestStream


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class FailureRecord(_Record):
    """A problem that a kernel got wrong; see `bench.cross_check.Failure`."""

    problem: str
    check: str
    status: str
    findings: list[str]
    first_problem: str
    replay: str


class KernelRecord(_Record):
    """Outcome of one kernel's cross-check.

    Attributes
    ----------
    problems
        Problems that were run.
    checks
        Verdicts by check and status.
    complete
        Whether all problems that were asked for were run.
    """

    name: str
    problems: int
    checks: dict[str, dict[str, int]]
    complete: bool
    failure: FailureRecord | None

    def count(self, status: str) -> int:
        """Verdicts of one status, over all checks."""
        return sum(by_status.get(status, 0) for by_status in self.checks.values())


class TimingRecord(_Record):
    """One implementation's times; see `bench.timing.Timing`."""

    name: str
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    ratio: float
    gigabytes_per_s: float
    bandwidth_share: float | None


class DecodeTimes(_Record):
    """The timed batch and its times; see `bench.timing.TimedBatch`."""

    batch_size: int
    context_tokens: int
    kv_bytes: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    copy_gigabytes_per_s: float | None
    timings: list[TimingRecord]


class MemoryRecord(_Record):
    """What the cache needs under one policy, in slot-steps; see `bench.memory.MemoryNeed`."""

    policy: str
    granule_tokens: int
    token: int
    reserve: int
    internal: int
    roundup: int
    allocated: int
    waste_fraction: float
    bytes_per_request: float
    requests_in_pool: float


class StreamRecord(_Record):
    """Which stream was used."""

    name: str
    source: str
    requests: int
    mean_prompt_tokens: float
    mean_output_tokens: float


class CheckRecord(_Record):
    """Everything that `pagedbench check` found.

    Attributes
    ----------
    schema_version
        Raised when a field changes its meaning.
    verdict
        `right`, `wrong`, or `incomplete` where it was interrupted.
    exit_code
        What the command returned.
    pool_bytes
        Pool for which `requests_in_pool` is given.
    """

    schema_version: int = 1
    started_at: str
    elapsed_s: float
    seed: int
    environment: Environment
    stream: StreamRecord
    kernels: list[KernelRecord]
    decode: DecodeTimes | None
    memory: list[MemoryRecord]
    pool_bytes: int
    verdict: str
    exit_code: int


def replay_command(kernel: str, problem: str) -> str:
    """The command that shows a failure again."""
    return f'pagedbench check --kernel {kernel} --problem "{problem}"'


def kernel_record(outcome: Outcome) -> KernelRecord:
    """Turn a search's outcome into data."""
    checks: dict[str, dict[str, int]] = {}
    for (check, status), count in sorted(outcome.counts.items()):
        checks.setdefault(check, {})[status.value] = count
    return KernelRecord(
        name=outcome.kernel,
        problems=outcome.problems,
        checks=checks,
        complete=outcome.complete,
        failure=_failure_record(outcome.kernel, outcome.failure) if outcome.failure else None,
    )


def _failure_record(kernel: str, failure: Failure) -> FailureRecord:
    return FailureRecord(
        problem=failure.problem,
        check=failure.check,
        status=failure.status.value,
        findings=list(failure.findings),
        first_problem=failure.first_problem,
        replay=replay_command(kernel, failure.problem),
    )


def decode_record(timed: TimedBatch) -> DecodeTimes:
    """Turn measured times into data."""
    shape = timed.shape
    return DecodeTimes(
        batch_size=shape.batch_size,
        context_tokens=timed.context_tokens,
        kv_bytes=timed.kv_bytes,
        num_q_heads=shape.num_kv_heads * shape.group_size,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        block_size=shape.block_size,
        dtype=str(shape.dtype).removeprefix("torch."),
        copy_gigabytes_per_s=timed.copy_gigabytes_per_s,
        timings=[
            TimingRecord(
                name=timing.name,
                median_ms=timing.median_ms,
                fastest_ms=timing.fastest_ms,
                slowest_ms=timing.slowest_ms,
                ratio=timing.ratio,
                gigabytes_per_s=timing.gigabytes_per_s,
                bandwidth_share=timing.bandwidth_share,
            )
            for timing in timed.timings
        ],
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


def stream_record(stream: RequestStream) -> StreamRecord:
    """Turn a stream's description into data."""
    summary = stream.describe()
    return StreamRecord(
        name=stream.name,
        source=stream.source,
        requests=len(stream),
        mean_prompt_tokens=summary.prompt.mean,
        mean_output_tokens=summary.output.mean,
    )
