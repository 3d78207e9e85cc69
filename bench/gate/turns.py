"""Workers, and one launch: two fresh processes that take turns on one core.

Everything whose order could matter is random: which side starts first, is prepared first, goes
first in each pair, and the order of the benchmarks. A fixed order of preparation alone can make
identical code differ by 2 to 3 %.
"""

from __future__ import annotations

import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from bench.gate.contestant import Side
from bench.gate.record import LaunchRecord, Sample, Stage
from bench.gate.subjects import FOLDER_VARIABLE, SUBJECTS_VARIABLE, TREE_VARIABLE
from bench.gate.timers import DEVICE_VARIABLE, Device
from bench.gate.worker import SUITE_VARIABLE
from bench.machine.gpu import GpuReader, became_another_gpu
from subjects.process import NotStarted, SubjectDied, SubjectProcess
from subjects.starting import start_of

if TYPE_CHECKING:
    from bench.command.project import Project

SIDES: Final = ("base", "head")

FIXED: Final = {
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TRITON_DEFAULT_FP_FUSION": "1",
    # glibc moves its threshold for mapping memory by what was freed before: a change of one
    # temporary's size could make all others twice as slow. 32 MiB is the most that it takes.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
"""Of every worker's environment."""

OF_DEVICE: Final[Mapping[Device, Mapping[str, str]]] = {
    "cpu": {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", DEVICE_VARIABLE: "cpu"},
    "cuda": {"TRITON_INTERPRET": "0", DEVICE_VARIABLE: "cuda"},
}
"""The same of one device's."""

MAX_PADDING: Final = 4096
"""Bytes of the environment's length, which moves the stack."""


class GateFailure(RuntimeError):
    """The harness failed: it says nothing about base or head being faster. The message has why."""


class DoesNotStart(GateFailure):
    """A side's worker does not come to its benchmarks."""

    def __init__(self, role: str, why: str) -> None:
        super().__init__(why)
        self.role = role


class SideRaised(GateFailure):
    """What was measured raised; `how` is the exception, in a line."""

    def __init__(self, where: str, raised: str) -> None:
        super().__init__(f"{where} raised {raised}")
        self.how = f"raised {raised.partition(chr(10))[0]}"


class NotThere(Exception):
    """A side's tree lacks what a benchmark needs."""


class SideDeclined(Exception):
    """A side's subject declares that it cannot do what it is to be measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where workers come from and what they work on."""

    home: Path
    """Tree that the benchmarks of a tree of pagedbench come from."""
    time_limit_s: float
    """For one answer."""
    suite: str = ""
    """`module` or file that has a SUITE."""
    subjects: Path | None = None
    """File of the project's subjects; see `bench.gate.subjects`."""
    project: Project | None = None
    """Whose subjects they are."""
    device: Device = "cpu"
    """What is timed on."""

    def environment(self, side: Side) -> dict[str, str]:
        """Variables with which a side's own modules are found."""
        return {} if self.project is None else environment_of(side, self.project)


def environment_of(side: Side, project: Project) -> dict[str, str]:
    """Variables with which a side's interpreter finds the side's modules, and nobody else's.

    Folders of the project as it lies in the checkout are taken off the path: a module that the
    side's tree lacks is not to be found there.
    """
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = {str(folder) for folder in project.folders}
    others = [each for each in before if each and str(Path(each).resolve()) not in ours]
    folders = [str(folder) for folder in project.at(side.root).folders]
    return {
        "PYTHONPATH": os.pathsep.join([*folders, *others]),
        TREE_VARIABLE: str(side.tree),
        FOLDER_VARIABLE: str(side.root),
    }


class WorkerProcess:
    """A contestant's process, seen from the gate: asks what `bench.gate.worker` answers."""

    def __init__(
        self, side: Side, role: str, place: Workplace, environment: Mapping[str, str]
    ) -> None:
        self.name = f"{role} ({side.record.name})"
        self._side = side
        self._role = role
        variables = {**FIXED, **OF_DEVICE[place.device], **place.environment(side), **environment}
        if place.device == "cuda":
            # What one side compiled is not to be found by the other.
            variables["TRITON_CACHE_DIR"] = str(side.tree.parent / f"triton-{role}")
        variables[SUITE_VARIABLE] = place.suite
        if place.subjects is not None:
            variables[SUBJECTS_VARIABLE] = str(place.subjects)
        self._process = SubjectProcess(
            _command(side, place), environment=variables, time_limit_s=place.time_limit_s
        )

    def introduce(self) -> dict[str, Any]:
        """What it runs on.

        Raises DoesNotStart: the tree does not import, or the interpreter does not start.
        """
        try:
            said = self._process.introduce()
        except (NotStarted, SubjectDied) as error:
            raise DoesNotStart(self._role, f"{self.name} does not start: {error}") from None
        if "unusable" in said:
            why = self._side.named_in(said["unusable"])
            raise DoesNotStart(self._role, f"{self.name} does not import: {why}")
        return said

    def ask(self, do: str, *, about: str = "", **question: Any) -> dict[str, Any]:
        """Ask one thing, as `bench.gate.worker` takes it, about a benchmark.

        Raises NotThere: the tree lacks what the benchmark needs. Raises SideRaised: it raised;
        GateFailure: it died or hung.
        """
        where = f"{about}: {self.name}" if about else self.name
        try:
            answer = self._process.ask({"do": do, **question})
        except (SubjectDied, NotStarted) as death:
            raise GateFailure(f"{where}, asked to {do}, {death}") from None
        if "raised" in answer:
            raise SideRaised(where, answer["raised"])
        if "missing" in answer:
            raise NotThere(self._side.named_in(answer["missing"]))
        if "declined" in answer:
            raise SideDeclined(answer["declined"])
        return answer

    def prepare(self, benchmark: str) -> bool:
        """Set a benchmark up; returns whether it runs in Triton's interpreter.

        Raises SideDeclined: its subject cannot do it.
        """
        interpreted: bool = self.ask("prepare", about=benchmark, benchmark=benchmark)["interpreted"]
        return interpreted

    def close(self) -> None:
        """End it."""
        self._process.close()


def _command(side: Side, place: Workplace) -> list[str]:
    """Starts a worker: in a tree of pagedbench with that tree's rooms, else with ours."""
    if side.ours:
        bootstrap = place.home / "bench" / "gate" / "bootstrap.py"
        return [side.python, "-P", str(bootstrap), str(side.tree), str(place.home)]
    return [side.python, "-P", "-c", start_of("bench.gate.worker") + "ours.main()"]


@contextmanager
def workers(
    sides: Mapping[str, Side],
    order: random.Random,
    place: Workplace,
    environment: Mapping[str, str],
) -> Iterator[dict[str, WorkerProcess]]:
    """Start both sides at once, and end them whatever happens.

    Raises GateFailure: one does not start.
    """
    with ExitStack() as stack:
        both = {}
        for role in random_order(order):
            both[role] = WorkerProcess(sides[role], role, place, environment)
            stack.callback(both[role].close)
        with ThreadPoolExecutor(len(both)) as pool:
            for started in [pool.submit(worker.introduce) for worker in both.values()]:
                started.result()
        yield both


def random_order(order: random.Random) -> Sequence[str]:
    """Either side first, as likely as the other."""
    return order.sample(SIDES, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How launches are made."""

    place: Workplace
    pairs: int
    """Turns of each side, for each benchmark."""
    cores: tuple[int, ...]
    """The launches are pinned to them in turn."""
    seed: int
    """Of all orders."""
    gpu: GpuReader = field(default_factory=lambda: GpuReader(None))
    """Reads the GPU's state, where there is one."""
    order_of: Callable[[random.Random], Sequence[str]] = random_order
    """Which side goes first in a pair, given the random source. Random; only a test of what a
    biased order does has another."""


def launch(
    index: int,
    sides: Mapping[str, Side],
    numbers: Mapping[str, Mapping[str, int]],
    schedule: Schedule,
    *,
    confirming: Collection[str] = (),
    began: float,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> tuple[LaunchRecord, dict[str, Sample]]:
    """Time benchmarks in two fresh processes.

    `numbers` are calls in a turn, by benchmark and side; they differ only where extra work is
    planted. What is `confirming` confirms a suspicion. The run `began` at a `time.monotonic`;
    `advance` is told of each benchmark that is done. Once `stop` is set, those that are done are
    returned.

    Raises GateFailure: A benchmark raised, or a worker died or hung.
    """
    order = random.Random(f"{schedule.seed} {index}")
    core = schedule.cores[index % len(schedule.cores)]
    hash_seed, padding = order.randrange(1, 2**32), order.randrange(MAX_PADDING)
    environment = {"PYTHONHASHSEED": str(hash_seed), "PAGEDBENCH_PADDING": "x" * padding}
    started, load = time.monotonic(), os.getloadavg()[0]
    samples: dict[str, Sample] = {}
    states = [schedule.gpu.read()]
    keys = order.sample(sorted(numbers), len(numbers))
    with workers(sides, order, schedule.place, environment) as both:
        for worker in both.values():
            worker.ask("pin", core=core)
        for key in keys:
            times = _take_turns(key, both, numbers[key], schedule, order, stop)
            if times is None:
                break
            stage: Stage = "confirm" if key in confirming else "screen"
            samples[key] = Sample(launch=index, stage=stage, **times)
            states.append(schedule.gpu.read())
            advance(1)
    gpu = [state for state in states if state is not None]
    record = LaunchRecord(
        index=index,
        core=core,
        hash_seed=hash_seed,
        padding=padding,
        started_s=started - began,
        elapsed_s=time.monotonic() - started,
        load=load,
        order=list(samples),
        gpu=gpu,
        dropped="the GPU's reasons to slow down changed" if became_another_gpu(gpu) else "",
    )
    return record, samples


def _take_turns(
    key: str,
    both: Mapping[str, WorkerProcess],
    number: Mapping[str, int],
    schedule: Schedule,
    order: random.Random,
    stop: threading.Event,
) -> dict[str, float | None] | None:
    """The times of one sample; None where the run is to end."""
    for role in schedule.order_of(order):
        both[role].prepare(key)
    timed: dict[str, list[float]] = {role: [] for role in SIDES}
    wall: dict[str, list[float]] = {role: [] for role in SIDES}
    cycles: dict[str, list[float]] = {role: [] for role in SIDES}
    for _ in range(schedule.pairs):
        if stop.is_set():
            return None
        for role in schedule.order_of(order):
            turn = both[role].ask("turn", about=key, number=number[role])
            timed[role].append(turn["timer_ns"] * 1e-9)
            wall[role].append(turn["wall_ns"] * 1e-9)
            sm_mhz = schedule.gpu.sm_mhz()  # at once: an idle GPU lowers its clock
            cycles[role] += [] if sm_mhz is None else [timed[role][-1] * sm_mhz]
    # Planted calls are work that the head does for one of the base's.
    calls = number["base"]
    return {
        "d_timer": _median_log_ratio(timed, key),
        "d_wall": _median_log_ratio(wall, key),
        "d_cycles": _median_log_ratio(cycles, key) if _all_read(cycles, schedule.pairs) else None,
        "base_s": median(timed["base"]) / calls,
        "head_s": median(timed["head"]) / calls,
        "base_wall_s": median(wall["base"]) / calls,
        "head_wall_s": median(wall["head"]) / calls,
    }


def _all_read(cycles: Mapping[str, Sequence[float]], pairs: int) -> bool:
    return all(len(each) == pairs for each in cycles.values())


def _median_log_ratio(times: Mapping[str, Sequence[float]], key: str) -> float:
    """The pair is what cancels the weather: the median of ratios, not the ratio of medians."""
    pairs = list(zip(times["base"], times["head"], strict=True))
    if any(min(pair) <= 0 for pair in pairs):
        raise GateFailure(f"{key}: a turn took no time at all; its calls are too few to be timed")
    return median(math.log(head / base) for base, head in pairs)


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        raise GateFailure(f"the gate pins processes to a core, which {sys.platform} cannot")
    return tuple(sorted(os.sched_getaffinity(0)))
