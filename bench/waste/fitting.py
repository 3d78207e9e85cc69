"""A clock fitted to what a server did: its request log, its metrics, or a throughput record.

Of a request log only the stamps of the first third are looked at. The server that is simulated
elsewhere serves the log's requests with a clock, and the clock is moved until their first tokens,
and the times from first to last, are where the log has them (Nelder-Mead over the logarithms of the
numbers). A weak pull towards the data sheets decides between numbers that do as well: in a full
pool what a step takes and what reading the cache takes are one. The rest of the log was not
seen, and says what the clock is worth.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, islice, product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.command.progress import Progress
from bench.waste.clocks import Clock, measured_bandwidth
from bench.waste.gpus import Gpu
from bench.waste.metrics import Interval, intervals_of
from bench.waste.models import Model
from bench.waste.simulate import requests_of
from bench.workloads.source import StreamSource
from bench.workloads.trace_columns import moment_s, names_of, plain, records, roles_of, whole
from bench.workloads.trace_lines import lines_of
from paged.arrivals import Request
from paged.clock import PS_PER_NS, StepTime
from paged.counted import Setting
from paged.counting import CountingServer
from paged.latency import Watch
from paged.policy import PagedPolicy
from paged.scheduler import Scheduler
from reference.errors import BadInput

MAX_REQUESTS: Final = 2_000
"""Requests of a log that are looked at, from the first on."""

SHARE: Final = 1 / 3
"""Share of the log's time whose stamps the clock is fitted to."""

PULL: Final = 5e-4
"""Weight of a clock's distance from the data sheets, squared and in logarithms."""

FAR: Final = 0.1
"""Miss of one request's decoding, as a share, beyond which it counts in proportion, not squared."""

MOST_RUNS: Final = 150
"""Runs of the simulator that a fit may take."""

AFAR: Final = (0.0, -1.2, 1.2)
"""Where each number of the clock is tried before the search, in powers of e."""

STARTS: Final = (0.7, -0.7, 0.3)
"""How far the corners of each search lie from where the one before ended, in powers of e."""

LEAST_ERROR: Final = 0.005
"""Difference, as a share, that no fitted clock is trusted with: `bench.waste.whatif.NOTHING`."""

_STAMPS: Final = {
    "first": "first_token_ts first_token_time first_token first_token_s",
    "last": "last_token_ts last_token_time finished_time finish_time end_time finished last_token",
    "ttft": "ttft ttft_s time_to_first_token",
    "e2e": "e2e e2e_s latency e2e_latency duration",
    "queued": "queued_ts queued_time queued",
}
"""What a log may call them: two moments, or two durations from the arrival on; and the arrival by
the clock that the moments are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """Requests of a log in order of arrival, float64 [n] in seconds after the first arrival."""

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    arrival: NDArray[np.float64]
    first: NDArray[np.float64]
    last: NDArray[np.float64]


def fit_clock(
    file: Path,
    prior: Clock,
    policy: PagedPolicy,
    *,
    slots: int,
    streams: Sequence[StreamSource],
    model: Model | None,
    gpu: Gpu | None,
    progress: Progress,
) -> Clock:
    """Fit a clock to a file. `prior` is what it is pulled to; a stream with the same lengths as the
    log says which of its prompts begin alike. Raises BadInput: nothing can be fitted to the file.
    """
    try:
        record, text = _whole_record(file)
        if record is not None:
            return measured_bandwidth(*_fastest_read(file, record), model, gpu, name=file.name)
        intervals = intervals_of(text, slots=slots)
    except OSError as error:
        raise BadInput(f"--clock fit:{file}: {error.strerror or error}; name a file") from None
    if intervals is not None:
        return _fit_intervals(file, intervals, prior)
    log = read_stamps(file)
    return _fit_log(file, log, prior, replace(policy, look_ahead=0), slots, streams, progress)


def _whole_record(file: Path) -> tuple[dict[str, Any] | None, str]:
    """A file that is one JSON object with points in it, or the head of its text."""
    with file.open("rb") as raw:
        text = raw.read(2**26).decode(errors="replace")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None, text
    return (record if isinstance(record, dict) and "points" in record else None), text


def _fastest_read(file: Path, record: dict[str, Any]) -> tuple[int, float]:
    """Bytes and seconds of the largest decode that a `throughput` record has, at its fastest."""
    found = []
    try:
        for point in record["points"]:
            times = [each["seconds"]["best"] for each in point["subjects"] if each.get("seconds")]
            if point["kind"] == "decode" and times and point["kv_bytes"] > 0 < min(times):
                found.append((int(point["kv_bytes"]), float(min(times))))
    except (KeyError, TypeError, ValueError):
        found = []
    if not found:
        raise BadInput(
            f"--clock fit:{file}: no decode was timed in it; make it with pagedbench throughput "
            f"--json on the GPU, or give a request log"
        )
    return max(found)


# -- a request log -------------------------------------------------------------------------------


def read_stamps(file: Path) -> Stamped:
    """Read a log of requests with their first and last tokens. Raises BadInput."""
    with closing(lines_of(str(file))) as lines:
        head = next(lines, None)
        if head is None:
            raise BadInput(f"--clock fit:{file}: an empty file; name a request log")
        names = names_of(head)
        known = {plain(alias): role for role, all_ in _STAMPS.items() for alias in all_.split()}
        roles = {known[plain(name)]: name for name in names if plain(name) in known}
        roles |= roles_of(names, None) or {}
        moments = {"first", "last"} <= set(roles)
        if not {"prompt", "output", "time"} <= set(roles) or not (
            moments or {"ttft", "e2e"} <= set(roles)
        ):
            raise BadInput(
                f"--clock fit:{file}: the columns {', '.join(names)[:120] or 'of its first line'}; "
                f"give prompt and output tokens, arrival, and first_token_ts and last_token_ts, or "
                f"ttft and e2e in seconds; a server's metrics; or a throughput record"
            )
        ends = ("first", "last") if moments else ("ttft", "e2e")
        wanted = ("time", *ends, *(["queued"] if moments and "queued" in roles else []))
        rows = []
        for line, record in islice(records(head, lines), MAX_REQUESTS):
            prompt, output = (whole(record.get(roles[role])) for role in ("prompt", "output"))
            if output == 0 or any(record.get(roles[end]) is None for end in ends):
                continue  # it failed, or is not done
            stamps = [_finite(moment_s(record.get(roles[role]))) for role in wanted]
            bad = [roles[w] for w, s in zip(wanted, stamps, strict=True) if np.isnan(s)]
            if prompt is None or output is None or bad:
                raise line.error(
                    found=f"no number of {', '.join(bad) or 'tokens'}",
                    expected="tokens and seconds of each request",
                )
            rows.append((prompt, output, *stamps))
    if len(rows) < 3:
        raise BadInput(f"--clock fit:{file}: {len(rows)} requests with stamps; give 3 or more")
    rows.sort(key=lambda row: row[2])
    columns = np.array(rows, dtype=np.float64).T
    arrival, first, last = columns[2], columns[3], columns[4]
    if not moments:
        first, last = arrival + first, arrival + last
    if "queued" in wanted:
        # The engine's clock is not that of the arrivals.
        arrival = arrival + (columns[5] - arrival).min()
    if (first < arrival).any() or (last < first).any():
        raise BadInput(
            f"--clock fit:{file}: a first token before its request's arrival, or a last one before "
            f"it; give all of them by one clock, or queued_ts beside the arrival"
        )
    return Stamped(
        prompts=tuple(int(row[0]) for row in rows),
        outputs=tuple(int(row[1]) for row in rows),
        arrival=arrival - arrival[0],
        first=first - arrival[0],
        last=last - arrival[0],
    )


def _finite(seconds: float | None) -> float:
    return seconds if seconds is not None and math.isfinite(seconds) else math.nan


class _Stamps(Watch):
    """Notes when each request's first and last token came, picoseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def begin(self, request: int, arrival_ns: int | None, now: int, tenant: int = 0) -> None:
        self.first.setdefault(request, now)
        super().begin(request, arrival_ns, now, tenant)

    def end(self, request: int, now: int, output_tokens: int) -> None:
        self.last[request] = now
        super().end(request, now, output_tokens)


def serve_stamped(
    requests: list[Request],
    policy: PagedPolicy,
    *,
    slots: int,
    time: StepTime,
    until_s: float = math.inf,
    enough: Callable[[_Stamps], bool] = lambda stamps: False,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Serve a log's requests; first and last tokens in seconds, NaN where there was none yet."""
    stamps = _Stamps()
    server = (
        CountingServer(requests, Setting(policy=policy, slots=slots, time=time))
        if policy.by_counts
        else Scheduler(requests, policy, slots=slots, time=time)
    )
    server.watch = stamps
    for at in count():
        if isinstance(server, CountingServer):
            if server.take_steps(sys.maxsize) is None:
                break
        elif server.alive:
            server.take_step()
        else:
            break
        if server.time_ns > until_s * 1e9 or (at % 32 == 0 and enough(stamps)):
            break
    both = []
    for noted in (stamps.first, stamps.last):
        column = np.full(len(requests), np.nan)
        column[list(noted)] = np.array(list(noted.values()), dtype=np.float64) / PS_PER_NS / 1e9
        both.append(column)
    return both[0], both[1]


def _requests(log: Stamped, policy: PagedPolicy, streams: Sequence[StreamSource]) -> list[Request]:
    """The log's requests, with the keys of a stream that has the same lengths."""
    lengths = list(zip(log.prompts, log.outputs, strict=True))
    arrivals = np.rint(log.arrival * 1e9).astype(np.int64).tolist()
    keys: list[tuple[int, ...]] = [()] * len(lengths)
    for stream in streams if policy.prefix_caching else ():
        drawn = requests_of(stream, key_block_size=policy.block_size)
        known = list(islice(drawn, len(lengths)))
        if [(each.prompt_tokens, each.output_tokens) for each in known] == lengths:
            keys = [each.keys for each in known]
            break
    return [
        Request(prompt, output, arrival, of)
        for (prompt, output), arrival, of in zip(lengths, arrivals, keys, strict=True)
    ]


def _fit_log(
    file: Path,
    log: Stamped,
    prior: Clock,
    policy: PagedPolicy,
    slots: int,
    streams: Sequence[StreamSource],
    progress: Progress,
) -> Clock:
    longest = max(map(sum, zip(log.prompts, log.outputs, strict=True)))
    if longest > slots:
        raise BadInput(
            f"--clock fit:{file}: a request of {longest:,} tokens in a pool of {slots:,}; give the "
            f"size of the pool that the log is of, with --slots, --pool or --gpu"
        )
    requests = _requests(log, policy, streams)
    window = float(log.last.max()) * SHARE
    begun, ended = log.first <= window, (log.last <= window) & (log.last > log.first)
    if begun.sum() < 2 or ended.sum() < 2:
        raise BadInput(
            f"--clock fit:{file}: fewer than 2 requests ended in its first {window:.3g} s, a third "
            f"of it; give a longer log"
        )
    tail = log.last - log.first
    wait = float(np.mean((log.first - log.arrival)[begun])) or window

    def loss(time: StepTime) -> float:
        first, last = serve_stamped(
            requests,
            policy,
            slots=slots,
            time=time,
            until_s=3 * window,
            enough=lambda noted: noted.first.keys() >= wanted[0] and noted.last.keys() >= wanted[1],
        )
        late = np.nan_to_num((first - log.first)[begun] / wait, nan=1.0)
        slow = np.nan_to_num((last - first - tail)[ended] / tail[ended], nan=1.0)
        progress.advance(1)
        # One request that is preempted here and was not there says little of the clock.
        slow = np.square(slow) / np.sqrt(1 + np.square(slow / FAR))
        return float(np.mean(late**2) + np.mean(slow))

    wanted = set(np.flatnonzero(begun)), set(np.flatnonzero(ended))
    progress.begin("runs to fit the clock", MOST_RUNS + len(AFAR) ** 3)
    time = _nearest(prior.time, loss)
    first, last = serve_stamped(requests, policy, slots=slots, time=time)
    errors = _errors(log, first, last)
    return Clock(
        time=time,
        source=(
            f"fitted to the first {window:.3g} s of {file.name}, {int(begun.sum())} of "
            f"{len(requests)} requests"
        ),
        error=max(LEAST_ERROR, *(abs(errors[name]) for name in ("TPOT p50", "makespan"))),
        errors=errors,
    )


def _errors(
    log: Stamped, first: NDArray[np.float64], last: NDArray[np.float64]
) -> dict[str, float]:
    """What the fitted clock misses the whole log by, as shares of what was measured."""
    behind = np.array(log.outputs) - 1
    several = behind > 0

    def figures(first: NDArray[np.float64], last: NDArray[np.float64]) -> dict[str, float]:
        ttft = first - log.arrival
        found = {"TTFT p50": np.quantile(ttft, 0.5), "TTFT p90": np.quantile(ttft, 0.9)}
        if several.any():
            tpot = (last - first)[several] / behind[several]
            found |= {"TPOT p50": np.quantile(tpot, 0.5), "TPOT p90": np.quantile(tpot, 0.9)}
        return found | {"makespan": last.max()}

    measured, ours = figures(log.first, log.last), figures(first, last)
    return {
        name: float(ours[name] / value - 1) if value else 0.0 for name, value in measured.items()
    }


# -- a server's metrics --------------------------------------------------------------------------


def _fit_intervals(file: Path, intervals: Sequence[Interval], prior: Clock) -> Clock:
    """Fit to the mean step of each interval between two scrapes; half of them say how well."""
    if len(intervals) < 2:
        raise BadInput(
            f"--clock fit:{file}: {len(intervals)} intervals between scrapes in which tokens came; "
            f"put 3 scrapes or more into it, one behind the other"
        )
    fitted, rest = intervals[::2], intervals[1::2]

    def misses(time: StepTime, of: Sequence[Interval]) -> list[float]:
        return [
            (
                time.step_ns
                + time.prefill_ns_per_token * each.prompts
                + time.kv_ps_per_token * each.read / PS_PER_NS
            )
            / (each.seconds * 1e9)
            - 1
            for each in of
        ]

    time = _nearest(prior.time, lambda time: float(np.mean(np.square(misses(time, fitted)))))
    error = float(np.median(np.abs(misses(time, rest))))
    return Clock(
        time=time,
        source=f"fitted to {len(fitted)} intervals between scrapes of {file.name}",
        error=max(LEAST_ERROR, error),
        errors={"ITL of the other intervals, median": error},
    )


def _nearest(prior: StepTime, loss: Callable[[StepTime], float]) -> StepTime:
    """Move a clock until `loss` is least, pulled back to where it began."""
    from scipy.optimize import minimize

    begin = np.array(
        [
            prior.step_ns,
            prior.prefill_ns_per_token or 50_000,
            # Any model's: a tenth of a microsecond, for 100 kB at 1 TB/s.
            prior.kv_ps_per_token or 100_000,
        ],
        dtype=np.float64,
    )

    def clock(moved: NDArray[np.float64]) -> StepTime:
        step, prompt, read = np.rint(begin * np.exp(np.clip(moved, -8, 8))).astype(np.int64)
        return replace(
            prior,
            step_ns=max(1, int(step)),
            prefill_ns_per_token=int(prompt),
            kv_ps_per_token=int(read),
        )

    def pulled(moved: NDArray[np.float64]) -> float:
        return loss(clock(moved)) + PULL * float(np.mean(np.square(moved)))

    # A server may be far from its data sheet, and a search begun there end in a clock without base.
    found = min((np.array(at) for at in product(AFAR, repeat=3)), key=pulled)
    for spread in STARTS:
        # Begun again from where it ended: it may have stuck there.
        found = minimize(
            pulled,
            found,
            method="Nelder-Mead",
            options={
                "maxfev": MOST_RUNS // len(STARTS),
                "xatol": 2e-3,
                "fatol": 1e-7,
                "initial_simplex": found + spread * np.vstack([np.zeros(3), np.eye(3)]),
            },
        ).x
    return clock(found)
