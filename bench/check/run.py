"""The main job: whether a kernel is right, what paging costs in time and saves in memory."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np

from bench.check.failures import FailureStore
from bench.check.findings import Found, named, plainest_first
from bench.check.record import EXPECTED, CheckRecord, DecodeTimes, Failure, KernelRecord
from bench.check.search import (
    AskedOfAll,
    Replay,
    SearchPlan,
    describe,
    replay,
    search,
    shrink,
)
from bench.command.exit_codes import HARNESS_FAILED, INTERRUPTED, RIGHT, USAGE, WRONG
from bench.command.progress import Progress
from bench.machine.environment import describe_environment
from bench.search.shrink import MAX_SHRINKS
from bench.workloads.need import POOL_BYTES, contiguous_need, paged_need
from bench.workloads.record import stream_record
from bench.workloads.stream import RequestStream
from reference.attention.contract import Capabilities
from reference.attention.expected import (
    LONG_RUN,
    Expectations,
    ExpectedFailure,
    ExpectedState,
    strangers,
)
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status
from reference.errors import BadInput

MAX_DRAWN_REQUESTS: Final = 256
"""Requests of the stream that problems take their lengths from, spread evenly over its lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan(AskedOfAll):
    """What to check."""

    kernels: Sequence[str]
    """Names of the subjects."""
    stream: RequestStream
    """Where lengths come from."""
    store: FailureStore
    """Where failures are kept."""
    timed: AttentionProblem | None
    """The decode step to time, as in `time_decode`; None to time nothing."""


def run_check(plan: CheckPlan, *, progress: Progress, stop: threading.Event) -> CheckRecord:
    """Cross-check, time and account; a kernel that cannot be judged keeps no other from it."""
    started = datetime.now(UTC)
    clock = time.monotonic()
    needs = [contiguous_need(plan.stream), paged_need(plan.stream)]
    # All of them before the first search: a misspelt name should not cost a minute.
    declared = {
        kernel: None
        if stop.is_set()
        else describe(kernel, plan.device, python=plan.python, stopped=stop.is_set)
        for kernel in plan.kernels
    }
    kernels, troubles = _cross_checked(plan, declared, progress, stop)
    wrong = any(kernel.failures for kernel in kernels)
    said = "as expected" if any(kernel.count(EXPECTED) for kernel in kernels) else "right"
    # A wrong kernel's time is nobody's concern, and the reader's is elsewhere.
    decode = None if wrong else _time(plan, progress, stop)
    complete = not stop.is_set() and all(kernel.complete for kernel in kernels)
    verdict = "wrong" if wrong else "incomplete" if not complete else said
    exit_code = {"wrong": WRONG, "incomplete": INTERRUPTED}.get(verdict, RIGHT)
    if troubles and not wrong:
        ours = [error for error in troubles.values() if not isinstance(error, BadInput)]
        exit_code = HARNESS_FAILED if ours else USAGE
    return CheckRecord(
        started_at=started.isoformat(timespec="seconds"),
        elapsed_s=time.monotonic() - clock,
        seed=plan.seed,
        last_seed=plan.last_seed,
        max_len=plan.max_len,
        environment=describe_environment(plan.device, threads=1),
        stream=stream_record(plan.stream),
        kernels=kernels,
        decode=decode,
        memory=needs,
        pool_bytes=POOL_BYTES,
        verdict=verdict,
        warnings=[
            *(_said(kernel, error) for kernel, error in troubles.items()),
            *_warnings(plan.expected, kernels),
        ],
        exit_code=exit_code,
    )


def replay_problem(
    problem: AttentionProblem,
    kernels: Sequence[str],
    device: str,
    *,
    expected: tuple[ExpectedFailure, ...],
    time_limit_s: float,
    python: str | None,
    show: Callable[[str, Replay], object],
) -> int:
    """Run every check of each kernel on one problem, show each, and return the exit code."""
    from reference.attention.inputs import make_inputs  # and torch, a second

    make_inputs(problem)  # refuses here what no kernel can be asked
    wrong, unable = False, []
    for name in kernels:
        known = Expectations.of(expected, name)
        replayed = replay(name, device, problem, time_limit_s=time_limit_s, python=python)
        verdicts = [known.judge(problem, verdict) for verdict in replayed.verdicts]
        show(name, replace(replayed, verdicts=verdicts))
        wrong = wrong or any(verdict.wrong for verdict in verdicts)
        if not replayed.complete:
            return WRONG if wrong else INTERRUPTED
        if all(verdict.status is Status.NOT_SUPPORTED for verdict in verdicts):
            unable.append(name)
    if unable and not wrong:
        raise BadInput(
            f"--problem {problem}: nothing was checked of {', '.join(unable)}; choose a problem "
            f"within what the kernel declares"
        )
    return WRONG if wrong else RIGHT


def stream_lengths(stream: RequestStream) -> list[tuple[int, int]]:
    """(prompt, output) tokens of requests spread evenly over a stream, shortest first."""
    order = np.argsort(stream.final_tokens, kind="stable")
    count = min(len(stream), MAX_DRAWN_REQUESTS)
    picks = order[np.linspace(0, len(stream) - 1, count).astype(np.int64)]
    prompts, outputs = stream.prompt_tokens[picks], stream.output_tokens[picks]
    return list(zip(prompts.tolist(), outputs.tolist(), strict=True))


def _cross_checked(
    plan: CheckPlan,
    declared: dict[str, Capabilities | None],
    progress: Progress,
    stop: threading.Event,
) -> tuple[list[KernelRecord], dict[str, Exception]]:
    kernels, troubles = [], {}
    for kernel, capabilities in declared.items():
        saved = plan.store.load(kernel)
        record = KernelRecord.not_run(
            kernel,
            capabilities or Capabilities(),
            asked=plan.problems * len(plan.seeds) + len(saved),
        )
        if capabilities is not None and not stop.is_set():
            search_plan = SearchPlan(
                **{field.name: getattr(plan, field.name) for field in fields(AskedOfAll)},
                kernel=kernel,
                capabilities=capabilities,
                lengths=stream_lengths(plan.stream),
                saved=tuple(saved),
            )
            try:
                record = _cross_check(search_plan, plan.store, progress, stop)
            except Exception as error:
                troubles[kernel] = error
        kernels.append(record)
    if len(troubles) == len(kernels):
        raise next(iter(troubles.values()))
    return kernels, troubles


def _cross_check(
    plan: SearchPlan, store: FailureStore, progress: Progress, stop: threading.Event
) -> KernelRecord:
    progress.begin(f"cross-checking {plan.kernel}", plan.asked)
    record = search(plan, advance=progress.advance, stopped=stop.is_set)
    smallest, others = _made_smaller(plan, record.failures, progress, stop)
    failures = []
    for failure in smallest:
        saved_to = None
        with suppress(OSError):  # a full disk is no reason to lose the finding
            saved_to = str(store.save(plan.kernel, failure.problem))
        failures.append(failure.model_copy(update={"saved_to": saved_to}))
    return record.model_copy(update={"failures": failures, "others": dict(others)})


def _made_smaller(
    plan: SearchPlan, failures: list[Failure], progress: Progress, stop: threading.Event
) -> tuple[list[Failure], Counter[str]]:
    """Each made smaller, as many as are asked for, without those that turn out to be another; and
    in how many problems each of the others was met, by name.
    """
    found, others = Found(), Counter[str]()
    tries = 2 * plan.findings  # what was drawn as another one may turn out to be none
    for failure in plainest_first(failures):
        if found.explain(failure):
            continue
        if len(found.failures) == plan.findings or not tries:
            others[named(failure)] += failure.seen
            continue
        tries -= 1
        progress.begin("making the failure smaller", MAX_SHRINKS)
        found.add(shrink(plan, failure, advance=progress.advance, stopped=stop.is_set))
    return found.failures, others


def _said(kernel: str, error: Exception) -> str:
    if isinstance(error, BadInput):
        return f"{kernel} was not checked: {error}"
    trace = "".join(traceback.format_exception(error))
    return f"{kernel} was not checked, the harness itself failed: {trace.rstrip()}"


def _warnings(expected: tuple[ExpectedFailure, ...], kernels: list[KernelRecord]) -> list[str]:
    names = [kernel.name for kernel in kernels]
    said = [
        f"{one} is about no kernel of this run: {', '.join(names)}"
        for one in strangers(expected, names)
    ]
    for kernel in kernels:
        if kernel.complete:  # a search that ended early proves nothing
            told = {ExpectedState.STALE} | ({ExpectedState.UNMET} if _long(kernel) else set())
            said += [one.said for one in kernel.expected if one.state in told]
    return said


def _long(kernel: KernelRecord) -> bool:
    return kernel.asked >= LONG_RUN


def _time(plan: CheckPlan, progress: Progress, stop: threading.Event) -> DecodeTimes | None:
    if plan.timed is None or stop.is_set():
        return None
    from bench.check.decode import ROUNDS, WARM_UP, time_decode

    progress.begin("timing decode", WARM_UP + ROUNDS)
    return time_decode(
        plan.stream,
        step=plan.timed,
        device=plan.device,
        seed=plan.seed,
        advance=progress.advance,
        stop=stop,
    )
