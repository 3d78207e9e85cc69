"""Contiguous serving against a model that takes every step and looks at every slot.

The model paints a pool slot by slot, finds holes by reading it (`test_arenas`)
and counts classes with a histogram. It has no sums that could drift, no events and no closed form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, get_args
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.search.drawing import only_our_constants
from bench.waste.contiguous import ContiguousPolicy, Piece, serve_contiguous
from helpers.profiles import examples
from paged.accounting import Counters, Series, Serving
from paged.clock import StepTime
from paged.latency import Quantiles, Service
from reference.allocator.arenas import ArenaName, ReservationName
from tests.unit.reference.allocator.test_arenas import MODELS, place

Stream = list[tuple[int, int, int | None]]

FREE, TOKEN, RESERVE, INTERNAL, ROUNDUP = range(5)


@dataclass(frozen=True)
class Case:
    stream: Stream
    policy: ContiguousPolicy
    slots: int
    warmup: int
    time: StepTime
    stride: int
    observe_every: int


@dataclass
class Running:
    address: int
    granted: int
    requested: int
    final: int
    current: int
    number: int
    arrival: int | None
    stamps: list[int]


class Model:
    """The pool and its queue, one step at a time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.timed = case.stream[0][2] is not None
        self.to_come = list(enumerate(case.stream))
        self.queue: list[tuple[int, tuple[int, int, int | None]]] = []
        self.running: list[Running] = []
        self.now = 0
        self.totals = dict.fromkeys((*Counters.__dataclass_fields__,), 0) | {"slots": case.slots}
        self.peak_running = self.peak_allocated = 0
        # By step, the counters and the pieces at its end, and whether somebody was still to be
        # admitted then.
        self.moments = [Counters(slots=case.slots)]
        self.pictures: list[list[Piece]] = [[]]
        self.pending = [True]
        self.ended: list[Running] = []

    def run(self) -> None:
        while self.to_come or self.queue or self.running:
            if self.timed and not self.queue and not self.running:
                self.now = max(self.now, 1000 * (self.to_come[0][1][2] or 0))
            self.take_step()
        self.totals["time_ns"] = self.now // 1000
        self.total = Counters(**self.totals)  # also who was refused when no step followed

    def take_step(self) -> None:
        totals = self.totals
        ended = [piece for piece in self.running if piece.current == piece.final]
        self.running = [piece for piece in self.running if piece.current < piece.final]
        assert all(piece in self.just_ended for piece in ended)

        for piece in self.running:
            piece.current += 1
        while self.to_come and (not self.timed or 1000 * (self.to_come[0][1][2] or 0) <= self.now):
            self.queue.append(self.to_come.pop(0))
            totals["arrived"] += self.timed
        prefill = self.admit()
        if not self.timed:
            totals["arrived"] = totals["admitted"] + totals["refused"] + bool(self.queue)
        if not self.running:
            return  # nobody is there: no step

        time = self.case.time
        tokens = sum(piece.current for piece in self.running)
        self.now += 1000 * (time.step_ns + prefill * time.prefill_ns_per_token)
        self.now += tokens * time.kv_ps_per_token
        totals["time_ns"] = self.now // 1000
        for piece in self.running:
            piece.stamps.append(self.now)
        self.count()
        self.just_ended = [piece for piece in self.running if piece.current == piece.final]
        totals["completed"] += len(self.just_ended)
        self.ended += self.just_ended
        totals["steps"] += 1
        self.moments.append(Counters(**totals))
        self.pictures.append(
            sorted(
                (p.address, p.granted, p.requested, p.final, p.current, p.number)
                for p in self.running
            )
        )
        self.pending.append(bool(self.to_come or self.queue))

    just_ended: list[Running] = []

    # Reservation and placement

    def requested(self, prompt: int, output: int) -> int:
        longest = self.case.policy.max_model_len
        match self.case.policy.reservation:
            case "max":
                return longest
            case "pow2":
                return min(prompt + next(2**n for n in range(99) if 2**n >= output), longest)
            case "oracle":
                return prompt + output

    def granted(self, requested: int) -> int:
        return MODELS[self.case.policy.arena][0](requested)

    def hole_for(self, requested: int, pool: np.ndarray) -> int | None:
        return place(self.case.policy.arena, pool != FREE, requested)

    def never_fits(self, prompt: int, output: int) -> bool:
        if prompt + output > self.case.policy.max_model_len:
            return True
        empty = np.zeros(self.case.slots, dtype=np.int8)
        return self.hole_for(self.requested(prompt, output), empty) is None

    def paint(self) -> np.ndarray:
        pool = np.full(self.case.slots, FREE, dtype=np.int8)
        for piece in self.running:
            mine = pool[piece.address : piece.address + piece.granted]
            assert mine.size == piece.granted, "beyond the pool"
            assert not mine.any(), "two pieces share a slot"
            mine[:] = ROUNDUP
            mine[: piece.requested] = INTERNAL
            mine[: piece.final] = RESERVE
            mine[: piece.current] = TOKEN
        return pool

    def full(self) -> bool:
        most = self.case.policy.max_running
        return most is not None and len(self.running) >= most

    def admit(self) -> int:
        totals = self.totals
        prefill = place_in_queue = 0
        while place_in_queue < len(self.queue) and place_in_queue <= self.case.policy.look_ahead:
            number, (prompt, output, arrival) = self.queue[place_in_queue]
            if self.never_fits(prompt, output):
                del self.queue[place_in_queue]
                totals["refused"] += 1
                continue
            if self.full():
                break
            requested = self.requested(prompt, output)
            address = self.hole_for(requested, self.paint())
            if address is None:
                place_in_queue += 1
                continue
            del self.queue[place_in_queue]
            self.running.append(
                Running(
                    address=address,
                    granted=self.granted(requested),
                    requested=requested,
                    final=prompt + output,
                    current=prompt + 1,
                    number=number,
                    arrival=arrival,
                    stamps=[],
                )
            )
            totals["admitted"] += 1
            totals["prompt_tokens"] += prompt
            totals["computed_tokens"] += prompt
            prefill += prompt
        return prefill

    # The state at the end of a step

    def count(self) -> None:
        totals = self.totals
        pool = self.paint()
        slots = np.bincount(pool, minlength=5).tolist()
        totals["token"] += slots[TOKEN]
        totals["logical_token"] += slots[TOKEN]
        totals["reserve"] += slots[RESERVE]
        totals["internal"] += slots[INTERNAL]
        totals["roundup"] += slots[ROUNDUP]
        if not self.queue:
            totals["free_idle"] += slots[FREE]
        else:
            totals["queued"] += len(self.queue) if self.timed else 1
            requested = self.requested(*self.queue[0][1][:2])
            if requested > slots[FREE]:
                totals["free_short"] += slots[FREE]
                totals["waiting_short"] += 1
            elif self.hole_for(requested, pool) is None:
                totals["free_frag"] += slots[FREE]
                totals["waiting_frag"] += 1
            else:
                assert self.full()
                totals["free_idle"] += slots[FREE]
                totals["waiting_limit"] += 1
        for name in ("running", "running_requests", "generated_tokens", "computed_tokens"):
            totals[name] += len(self.running)
        self.peak_running = max(self.peak_running, len(self.running))
        self.peak_allocated = max(self.peak_allocated, self.case.slots - slots[FREE])

    def loaded(self) -> Counters:
        """From the end of the warm-up to that of the step that took the last request."""
        none = Counters(slots=self.case.slots)
        warm = next((m for m in self.moments if m.completed >= self.case.warmup), None)
        done = next(
            (m for m, more in zip(self.moments, self.pending, strict=True) if not more), self.total
        )
        return none if warm is None or done.steps <= warm.steps else done - warm


def times_of(ended: list[Running]) -> dict[str, list[int]]:
    """What each request waited for, in picoseconds."""
    gaps = [np.diff(piece.stamps).tolist() for piece in ended]
    arrived = [(piece, 1000 * piece.arrival) for piece in ended if piece.arrival is not None]
    return {
        "ttft": [piece.stamps[0] - arrival for piece, arrival in arrived],
        "tpot": [sum(each) // len(each) for each in gaps if each],
        "itl": [gap for each in gaps for gap in each],
        "e2e": [piece.stamps[-1] - arrival for piece, arrival in arrived],
    }


def check_service(service: Service, ended: list[Running]) -> None:
    """The percentiles are those of every request's own stamps."""
    assert service.completed == len(ended)
    for name, times in times_of(ended).items():
        found: Quantiles | None = getattr(service, name)
        assert (found is None) is (not times), name
        if found is None:
            continue
        assert found.count == len(times)
        assert found.mean_ns == sum(times) // len(times) // 1000
        assert found.max_ns == max(times) // 1000
        for share, said in ((50, found.p50_ns), (90, found.p90_ns), (99, found.p99_ns)):
            exact = sorted(times)[-(-share * len(times) // 100) - 1] / 1000
            assert abs(said - exact) <= 1 + exact / 256, (name, share)


def check_serving(serve: FunctionType, case: Case) -> None:
    """Every counter, every moment and every picture of `serve` is the model's."""
    model = Model(case)
    model.run()

    class SparseSeries(Series):
        """A series as in a long run: a moment at every step would leave no step out."""

        def __init__(self) -> None:
            super().__init__()
            self._stride = self.due = case.stride

    def run(**observing: Any) -> Serving:
        with mock.patch.dict(serve.__globals__, {"Series": SparseSeries}):
            return serve(
                iter(case.stream),
                case.policy,
                slots=case.slots,
                warmup=case.warmup,
                time=case.time,
                **observing,
            )

    serving = run()
    assert serving.total == model.total, "total"
    assert serving.loaded == model.loaded(), "loaded"
    assert serving.service is not None
    check_service(serving.service, model.ended)
    assert serving.series == tuple(model.moments[case.stride :: case.stride]), "series"
    assert serving.peak_running == serving.peak_requests == model.peak_running, "peak"
    assert serving.peak_allocated == model.peak_allocated, "peak"

    pictures: list[tuple[int, list[Piece]]] = []
    seen = run(
        observe=lambda step, pieces: pictures.append((step, pieces)),
        observe_every=case.observe_every,
    )
    steps = range(case.observe_every, len(model.moments), case.observe_every)
    assert pictures == [(step, model.pictures[step]) for step in steps], "pictures"
    assert seen == serving, "an observer changes what it sees"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small pools and short requests, so that queues, holes and refusals are common."""
    slots = draw(st.integers(1, 100) | st.integers(20, 60))
    lengths = st.tuples(
        st.integers(0, 8) | st.integers(0, 30), st.integers(1, 12) | st.integers(1, 40)
    )
    requests = draw(st.lists(lengths, min_size=draw(st.sampled_from([1, 15])), max_size=25))
    arrivals: list[int | None] = [None] * len(requests)
    if draw(st.booleans()):
        gaps = st.lists(
            st.integers(0, draw(st.sampled_from([2, 30, 300]))),
            min_size=len(requests),
            max_size=len(requests),
        )
        arrivals = list(np.cumsum(draw(gaps)).tolist())
    return Case(
        stream=[(*request, at) for request, at in zip(requests, arrivals, strict=True)],
        policy=ContiguousPolicy(
            reservation=draw(st.sampled_from(get_args(ReservationName))),
            arena=draw(st.sampled_from(get_args(ArenaName))),
            max_model_len=draw(st.integers(40, 80) | st.integers(1, 80)),
            look_ahead=draw(st.sampled_from([0, 0, 1, 2, 9])),
            max_running=draw(st.none() | st.integers(1, 6)),
        ),
        slots=slots,
        warmup=draw(st.integers(0, 4)),
        time=StepTime(
            step_ns=draw(st.integers(1, 9)),
            prefill_ns_per_token=draw(st.integers(0, 2)),
            kv_ps_per_token=draw(st.sampled_from([0, 0, 30, 700])),
        ),
        stride=draw(st.sampled_from([1, 2, 7, 9999])),
        observe_every=draw(st.sampled_from([1, 3, 50])),
    )


@given(case=cases())
@examples(100)
def test_serving_is_what_every_step_and_every_slot_say(case: Case) -> None:
    check_serving(serve_contiguous, case)


@given(case=cases())
@examples(60)
def test_the_stream_is_read_no_further_than_the_queue(case: Case) -> None:
    """Of a backlog, what may be looked at and one more; of arrivals, one that is still to come."""
    read = 0

    def counted() -> Iterator[tuple[int, int, int | None]]:
        nonlocal read
        for request in case.stream:
            read += 1
            yield request

    ahead = []
    model = Model(case)
    model.run()

    def look(step: int, _: list[Piece]) -> None:
        moment = model.moments[step]
        taken = moment.arrived if model.timed else moment.admitted + moment.refused
        ahead.append(read - taken)

    serve_contiguous(
        counted(), case.policy, slots=case.slots, time=case.time, observe=look, observe_every=1
    )
    assert read == len(case.stream)
    most = 1 if model.timed else case.policy.look_ahead + 2
    assert ahead == [] or max(ahead) <= most


def test_the_drawn_cases_meet_every_way_to_wait() -> None:
    """Else the property would say little: draw cases once and look what happened in them."""
    seen: set[str] = set()

    @given(case=cases())
    @examples(250, derandomize=True, database=None)
    def look(case: Case) -> None:
        total = serve_contiguous(case.stream, case.policy, slots=case.slots, time=case.time).total
        seen.update(name for name in Counters.__dataclass_fields__ if getattr(total, name))

    with only_our_constants():
        look()
    assert seen >= {
        *("token", "reserve", "internal", "roundup", "free_frag", "free_short", "free_idle"),
        *("waiting_short", "waiting_frag", "waiting_limit", "queued", "refused", "completed"),
    }
