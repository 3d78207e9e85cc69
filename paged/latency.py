"""What users feel: how long the first token takes, the next ones, and all of them.

* TTFT, time to first token: from a request's arrival to the end of the step that computed it.
* TPOT, time per output token: from the first token to the last, divided by those behind the first.
* ITL, inter-token latency: from any token of a request to its next one.
* end to end: from arrival to the last token.

Times go into classes 1/256 of their size wide, so a million requests take a few kilobytes, and a
percentile is off by 0.2 % at most. Integers: two simulators that agree on the steps agree on these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from operator import mul
from typing import Final

import numpy as np
from numpy.typing import NDArray

from paged.clock import PS_PER_NS
from paged.errors import BadSize

_FEW: Final = 32
_MANY: Final = 512
"""Times that go into classes one by one, and all at once."""

MOST_TENANTS: Final = 64
"""Tenants that are watched one by one; those behind them, in order of appearance, are one more."""

OTHERS: Final = -1
"""The tenant that they are."""

_BITS: Final = 9
"""Leading binary digits that a class keeps of a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a request has to meet to count as good. Raises BadSize: a limit is not above 0."""

    ttft_ns: int | None = None
    tpot_ns: int | None = None
    e2e_ns: int | None = None
    """Longest time to first token, per output token, and from arrival to end; None: any."""

    def __post_init__(self) -> None:
        for name in ("ttft_ns", "tpot_ns", "e2e_ns"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise BadSize(f"{name} = {limit}: give a limit above 0, or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """A distribution of times, in nanoseconds."""

    count: int
    mean_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantService:
    """What a run was like for the requests of one tenant; as in `Service`."""

    tenant: int
    """Whose; `OTHERS` for all beyond `MOST_TENANTS`."""
    completed: int
    output_tokens: int
    good: int | None
    queried_tokens: int
    hit_tokens: int
    """Prompt tokens looked up in the prefix cache, and found there."""
    ttft: Quantiles | None
    tpot: Quantiles | None
    e2e: Quantiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a run was like for those who waited for it; every request of the run counts."""

    completed: int
    output_tokens: int
    """Requests that were completed, and the tokens that each of them was to get."""
    makespan_ns: int
    """From the first arrival, or the start where there is none, to the last token."""
    good: int | None
    """Completed requests that met the `Slo`; None where none was given."""
    ttft: Quantiles | None
    tpot: Quantiles | None
    itl: Quantiles | None
    e2e: Quantiles | None
    """None where there is no such time: in a backlog nobody arrives, and a single token has none
    behind it."""
    tenants: tuple[TenantService, ...] = ()
    """Of each tenant, by number; none where there is but one."""


class Histogram:
    """Times in classes 1/256 of their size wide."""

    __slots__ = ("_counts", "_largest", "_later", "_sum", "count")

    def __init__(self) -> None:
        self._later: list[int] = []
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._sum = self._largest = self.count = 0

    @classmethod
    def of(cls, classes: NDArray[np.int64], count: int, total: int, largest: int) -> Histogram:
        """Times that were put into the same classes elsewhere."""
        made = cls()
        for key in np.flatnonzero(classes).tolist():
            made._counts[key] = int(classes[key])
        made.count, made._sum, made._largest = count, total, largest
        return made

    def add(self, ps: int, times: int = 1) -> None:
        """Add a time, in picoseconds, so many times."""
        shift = ps.bit_length() - _BITS
        self._counts[(shift << _BITS) + (ps >> shift) if shift > 0 else ps] += times
        self._sum += ps * times
        self.count += times
        self._largest = max(self._largest, ps)

    def add_all(self, times: dict[int, int]) -> None:
        """Add each time as often as is said there, and forget them there."""
        self._add_many(list(times), list(times.values()))
        times.clear()

    def add_later(self, ps: int) -> None:
        """Add a time, at the latest when somebody asks."""
        self._later.append(ps)
        if len(self._later) >= _MANY:
            self._settle()

    def _settle(self) -> None:
        self._add_many(self._later, [1] * len(self._later))
        self._later.clear()

    def _add_many(self, times: list[int], often: list[int]) -> None:
        if not times:
            return
        largest = max(times)
        if len(times) < _FEW or largest >= 2**62:
            for ps, many in zip(times, often, strict=True):
                self.add(ps, many)
            return
        all_ = np.array(times)
        # Of 64 bits a float keeps 53: those that the length of what is left depends on.
        shift = np.maximum(0, np.frexp(all_ >> _BITS)[1])
        keys, place = np.unique((shift << _BITS) + (all_ >> shift), return_inverse=True)
        sums = np.zeros(keys.size, np.int64)
        np.add.at(sums, place, often)
        for key, many in zip(keys.tolist(), sums.tolist(), strict=True):
            self._counts[key] += many
        self._sum += sum(map(mul, times, often))
        self.count += sum(often)
        self._largest = max(self._largest, largest)

    def add_run(self, ps: int, more: int, runs: int, times: int = 1) -> None:
        """Add `ps`, `ps + more`, ... , `runs` of them in all, each so many times."""
        done = 0
        while done < runs:
            now = ps + done * more
            alike = runs - done
            if more:
                shift = max(0, now.bit_length() - _BITS)
                alike = min(alike, (((now >> shift) + 1 << shift) - 1 - now) // more + 1)
            self.add(now, times * alike)
            # The others of the class are larger than the first.
            self._sum += times * more * (alike * (alike - 1) // 2)
            self._largest = max(self._largest, now + (alike - 1) * more)
            done += alike

    def add_histogram(self, other: Histogram) -> None:
        """Add all that another one holds."""
        other._settle()
        for key, many in other._counts.items():
            self._counts[key] += many
        self._sum += other._sum
        self.count += other.count
        self._largest = max(self._largest, other._largest)

    def quantile_ns(self, share: float) -> int:
        """Return a time that so large a share of those added does not exceed."""
        self._settle()
        wanted, seen, key = max(1, ceil(share * self.count)), 0, 0
        for key in sorted(self._counts):
            seen += self._counts[key]
            if seen >= wanted:
                break
        shift, kept = divmod(key, 1 << _BITS)
        middle = (kept << shift) + (1 << shift >> 1)
        return min(middle, self._largest) // PS_PER_NS

    def quantiles(self) -> Quantiles | None:
        """Sum up; None where nothing was added."""
        self._settle()
        if not self.count:
            return None
        return Quantiles(
            count=self.count,
            mean_ns=self._sum // self.count // PS_PER_NS,
            p50_ns=self.quantile_ns(0.5),
            p90_ns=self.quantile_ns(0.9),
            p99_ns=self.quantile_ns(0.99),
            max_ns=self._largest // PS_PER_NS,
        )


class Tally:
    """What was noted of one tenant."""

    __slots__ = ("completed", "e2e", "good", "hits", "queried", "tokens", "tpot", "ttft")

    def __init__(self) -> None:
        self.completed = self.tokens = self.good = self.queried = self.hits = 0
        self.ttft, self.tpot, self.e2e = Histogram(), Histogram(), Histogram()

    @classmethod
    def of(cls, parts: Sequence[Tally]) -> Tally:
        """Put together what was noted of several."""
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        for each in parts:
            whole.completed += each.completed
            whole.tokens += each.tokens
            whole.good += each.good
            whole.ttft.add_histogram(each.ttft)
            whole.tpot.add_histogram(each.tpot)
            whole.e2e.add_histogram(each.e2e)
        return whole


class Watch:
    """A stopwatch for every request that has begun. All moments are in picoseconds."""

    def __init__(self, slo: Slo | None = None) -> None:
        self.slo = slo
        self.itl = Histogram()
        self._start: int | None = None
        self._end = 0
        self._tallies: dict[int, Tally] = {}
        # By request: arrival, -1 for none, first token and whose it is; the last token of those
        # preempted.
        self._begun: dict[int, tuple[int, int, Tally]] = {}
        self._left: dict[int, int] = {}

    def tally(self, tenant: int) -> Tally:
        """What was noted of a tenant, or of all beyond `MOST_TENANTS`."""
        found = self._tallies.get(tenant)
        if found is None:
            if len(self._tallies) >= MOST_TENANTS:
                tenant = OTHERS
            found = self._tallies.setdefault(tenant, Tally())
        return found

    def look_up(self, tenant: int, prompt: int, hits: int) -> None:
        """Note how much of a prompt was found in the prefix cache."""
        tally = self.tally(tenant)
        tally.queried += prompt
        tally.hits += hits

    def begin(self, request: int, arrival_ns: int | None, now: int, tenant: int = 0) -> None:
        """Note a request's first token, or the first after it was preempted."""
        if request in self._begun:
            self.itl.add_later(now - self._left.pop(request))
            return
        tally = self.tally(tenant)
        if arrival_ns is None:
            self._begun[request] = (-1, now, tally)
            return
        arrival = arrival_ns * PS_PER_NS
        if self._start is None:
            self._start = arrival
        self._begun[request] = (arrival, now, tally)
        tally.ttft.add_later(now - arrival)

    def go_on(self, ps: int, requests: int) -> None:
        """Note a step of which so many requests got a token that had got one in the step before."""
        if requests:
            self.itl.add(ps, requests)

    def give_way(self, request: int, now: int) -> None:
        """Note that a request was preempted, its last token having come at `now`."""
        if request in self._begun:
            self._left.setdefault(request, now)

    def end(self, request: int, now: int, output_tokens: int) -> None:
        """Note a request's last token."""
        arrival, first, tally = self._begun.pop(request)
        tally.completed += 1
        tally.tokens += output_tokens
        self._end = now
        tpot = 0
        if output_tokens > 1:
            tpot = (now - first) // (output_tokens - 1)
            tally.tpot.add_later(tpot)
        if arrival >= 0:
            tally.e2e.add_later(now - arrival)
        slo = self.slo
        if slo is not None and not (
            (slo.ttft_ns is not None and first - arrival > slo.ttft_ns * PS_PER_NS)
            or (slo.tpot_ns is not None and tpot > slo.tpot_ns * PS_PER_NS)
            or (slo.e2e_ns is not None and now - arrival > slo.e2e_ns * PS_PER_NS)
        ):
            tally.good += 1

    def service(self) -> Service:
        """Sum up."""
        return self.between(self._start or 0, self._end)

    def between(self, start: int, end: int) -> Service:
        """Sum up a run from its first arrival to its last token."""
        tallies = self._tallies
        whole = Tally.of(list(tallies.values()))
        return Service(
            completed=whole.completed,
            output_tokens=whole.tokens,
            makespan_ns=max(0, end - start) // PS_PER_NS,
            good=None if self.slo is None else whole.good,
            ttft=whole.ttft.quantiles(),
            tpot=whole.tpot.quantiles(),
            itl=self.itl.quantiles(),
            e2e=whole.e2e.quantiles(),
            tenants=tuple(
                TenantService(
                    tenant=tenant,
                    completed=each.completed,
                    output_tokens=each.tokens,
                    good=None if self.slo is None else each.good,
                    queried_tokens=each.queried,
                    hit_tokens=each.hits,
                    ttft=each.ttft.quantiles(),
                    tpot=each.tpot.quantiles(),
                    e2e=each.e2e.quantiles(),
                )
                for tenant, each in sorted(tallies.items())
                if len(tallies) > 1
            ),
        )
