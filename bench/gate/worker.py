"""One contestant's process: prepares benchmarks, counts, and takes its turns.

`bench.gate.bootstrap` starts it. Questions and answers are JSON lines; see `subjects.process`. The
introduction has the environment, or {"unusable": REASON} where the tree cannot be imported. Then

    {"do": "prepare", "benchmark": KEY}               sets one up, after forgetting the last; says
                                                      whether it is interpreted, or declined
    {"do": "outputs", "folder": PATH}                 what it computes, as files in the folder
    {"do": "counters"}                                its exact counters
    {"do": "calibrate", "turn_s": S}                  calls in a turn of so many seconds
    {"do": "turn", "number": N}                       N calls: the timer's and wall nanoseconds
    {"do": "pin", "core": C}                          stay on this core, and warm the device up
    {"do": "bandwidth"}                               copy bandwidth of this core, or of the GPU

Each is answered with what it asks for, {"missing": NAME} where the tree lacks what the benchmark
needs, or {"raised": ERROR AND TRACEBACK} where something raised.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.gate.needs import Declined, Missing, check_need
from bench.gate.observing import observed
from bench.gate.subjects import FOLDER_VARIABLE, SUBJECTS_VARIABLE, Subjects
from bench.gate.timers import COPY_BYTES, DEVICE_VARIABLE, device_named, take_turn
from bench.machine.facts import facts
from bench.machine.timing import CpuDevice, Device, device_of
from bench.search.child import answer_questions, listen, open_answers, speak_when_dying

UNTIMED_CALLS: Final = 2
"""Before anything is measured: imports, caches and allocators settle."""

SUITE_VARIABLE: Final = "PAGEDBENCH_GATE_SUITE"
"""Of a worker's environment: `module` or file that has a SUITE."""


def load_suite(
    where: str | None, subjects: Subjects | None = None, *, device: str = "cpu"
) -> tuple[Any, ...]:
    """The benchmarks: SUITE of a module or file, where one is named, and those of subjects."""
    suite: tuple[Any, ...] = ()
    if where is not None and where.endswith(".py"):
        spec = importlib.util.spec_from_file_location("gate_suite", where)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["gate_suite"] = module
        spec.loader.exec_module(module)
        suite = module.SUITE
    elif where:
        try:
            suite = importlib.import_module(where).SUITE
        except (ModuleNotFoundError, AttributeError) as error:
            # Not above: a worker has this room from the tree, and toys have none.
            from reference.errors import BadInput

            raise BadInput(f"suite {where!r}: {error}; name a module that has SUITE") from None
    if subjects is not None:
        from bench.gate.subject_benchmarks import subject_benchmarks

        suite += subject_benchmarks(subjects, device=device_named(device))
    return suite


class Answers:
    """What a worker answers; `bench.gate.turns.WorkerProcess` asks."""

    def __init__(self, suite: tuple[Any, ...], device: Device) -> None:
        self._benchmarks = {benchmark.key: benchmark for benchmark in suite}
        self._device = device
        self._prepared: Any = None
        self._modules = len(sys.modules)

    def prepare(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Set a benchmark up, make its untimed calls, and stop collecting garbage."""
        gc.enable()
        self._prepared = None
        gc.collect()
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            gc.freeze()  # what is imported stays, and is not looked through again
        benchmark = self._benchmarks[question["benchmark"]]
        for need in benchmark.needs:
            check_need(need)
        try:
            self._prepared = benchmark.prepare()
        except Declined as declined:
            return {"declined": str(declined)}
        interpreted: bool = self._prepared.interpreted()
        for _ in range(0 if interpreted else UNTIMED_CALLS):
            self._prepared.call()
        gc.collect()
        gc.disable()
        return {"interpreted": interpreted}

    def outputs(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Write the outputs of the last call; answers name, file and round-off of each."""
        import numpy as np

        described = []
        for index, (name, output) in enumerate(self._prepared.outputs().items()):
            file = Path(question["folder"]) / f"{index}.npy"
            np.save(file, output.values, allow_pickle=False)
            said = {"name": name, "file": str(file), "round_off": output.unit_round_off}
            if output.allowed is not None:
                said["allowed"] = str(file.with_suffix(".allowed.npy"))
                np.save(said["allowed"], output.allowed, allow_pickle=False)
            described.append({**said, "wrong": output.wrong})
        return {"outputs": described}

    def counters(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Counters of one call: the benchmark's own, and those that are taken of all."""
        counts = dict(self._prepared.counters())
        if not self._prepared.interpreted():
            counts |= observed(self._prepared.call)
        return {"counters": {name: asdict(count) for name, count in counts.items()}}

    def calibrate(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Fewest calls that take `turn_s` of the timer; by doubling, so that overhead averages."""
        wanted_ns = question["turn_s"] * 1e9
        number = 1
        while True:
            taken = self.turn({"number": number})["timer_ns"]
            if taken >= wanted_ns / 2:
                return {"number": max(1, round(number * wanted_ns / max(taken, 1)))}
            number *= 2

    def turn(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """A turn: so many calls, by the timer and by the clock on the wall."""
        return dict(take_turn(self._device, self._prepared.call, question["number"]))

    def pin(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Stay on one core; a GPU is brought to its clocks under load."""
        os.sched_setaffinity(0, {question["core"]})
        self._device.preheat()
        return {}

    def bandwidth(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Copy bandwidth: bytes read and written, 10^9 a second, the best of a few."""
        from bench.machine.roof import copy_rates

        return {"copy_gbs": max(copy_rates(self._device, COPY_BYTES[self._device.kind]))}


def describe(device: Device) -> dict[str, Any]:
    """Fields of `bench.machine.environment.GateEnvironment`, as far as this process knows them."""
    return {
        **device.describe(),
        **facts(("cuda", "torch", "triton", "numpy", "python", "cores", "platform")),
        "timer": device.clock,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
    }


def main() -> None:
    """Answer questions until there are no more."""
    # By its file: the room called reference is the tree's, which may not have it.
    file = Path(__file__).parents[2] / "reference" / "stack.py"
    spec = importlib.util.spec_from_file_location("stack_of_the_harness", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not there: this installation is not whole")
    stack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stack)
    # Where one tree calls from a deeper place than the other, that alone could be a difference.
    stack.with_stack_room(_work)()


def _work() -> None:
    answers = open_answers()
    speak_when_dying()
    questions = listen()
    try:
        if folder := os.environ.get(FOLDER_VARIABLE):
            os.chdir(folder)
        file = os.environ.get(SUBJECTS_VARIABLE)
        suite = load_suite(
            os.environ.get(SUITE_VARIABLE),
            Subjects.read(Path(file)) if file else None,
            device=os.environ.get(DEVICE_VARIABLE, "cpu"),
        )
        device = device_of(device_named(os.environ.get(DEVICE_VARIABLE, "cpu")))
        worker = Answers(suite, device)
        # What is imported stays: looking through it before every benchmark takes most of a launch.
        gc.collect()
        gc.freeze()
        introduction = describe(device)
    except BaseException as error:  # whatever it is, it is this tree's or this interpreter's
        said = traceback.format_exception_only(error)[-1].strip()
        introduction = {"unusable": f"{said}\n{traceback.format_exc()}"}
        worker = Answers((), CpuDevice())
    answers.write(json.dumps(introduction) + "\n")
    answer_questions(answers, questions, partial(_answer, worker))


def _answer(worker: Answers, question: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = getattr(worker, question["do"])(question)
        return answer
    except Missing as missing:
        return {"missing": str(missing)}
    except Exception as error:
        said = traceback.format_exception_only(error)[-1].strip()
        return {"raised": f"{said}\n{traceback.format_exc()}"}
