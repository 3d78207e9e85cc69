"""One contestant's process: prepares benchmarks, counts, and takes its turns.

`bench.gate.bootstrap` starts it. Questions and answers are JSON lines; see `subjects.process`. The
introduction has the environment, or {"unusable": REASON} where the tree cannot be imported. Then

    {"do": "prepare", "benchmark": KEY}               sets one up, after forgetting the last
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

from bench.gate.observing import observed
from bench.gate.timers import COPY_BYTES, DEVICE_VARIABLE, device_named, take_turn
from bench.machine.facts import facts
from bench.machine.timing import CpuDevice, Device, device_of
from bench.search.child import answer_questions, listen, open_answers, speak_when_dying

UNTIMED_CALLS: Final = 2
"""Before anything is measured: imports, caches and allocators settle."""

SUITE_VARIABLE: Final = "PAGEDBENCH_GATE_SUITE"
"""`module` or file that has another SUITE, for trying the gate out; the gate's own if not set."""


class Missing(Exception):
    """The tree does not have what a benchmark needs."""


def load_suite(where: str | None) -> tuple[Any, ...]:
    """The benchmarks: the gate's own, or SUITE of another module or file."""
    if not where:
        from bench.gate.suite import SUITE

        return SUITE
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location("gate_suite", where)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["gate_suite"] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    suite: tuple[Any, ...] = module.SUITE
    return suite


class Answers:
    """What a worker answers; `bench.gate.turns.WorkerProcess` asks."""

    def __init__(self, suite: tuple[Any, ...], device: Device) -> None:
        self._benchmarks = {benchmark.key: benchmark for benchmark in suite}
        self._device = device
        self._prepared: Any = None

    def prepare(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Set a benchmark up, make its untimed calls, and stop collecting garbage."""
        gc.enable()
        self._prepared = None
        gc.unfreeze()
        gc.collect()
        benchmark = self._benchmarks[question["benchmark"]]
        for need in benchmark.needs:
            check_need(need)
        self._prepared = benchmark.prepare()
        for _ in range(UNTIMED_CALLS):
            self._prepared.call()
        gc.collect()
        gc.freeze()
        gc.disable()
        return {}

    def outputs(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Write the outputs of the last call; answers name, file and round-off of each."""
        import numpy as np

        described = []
        for index, (name, output) in enumerate(self._prepared.outputs().items()):
            file = Path(question["folder"]) / f"{index}.npy"
            np.save(file, output.values, allow_pickle=False)
            described.append({"name": name, "file": str(file), "round_off": output.unit_round_off})
        return {"outputs": described}

    def counters(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Counters of one call: the benchmark's own, and those that are taken of all."""
        counts = {**self._prepared.counters(), **observed(self._prepared.call)}
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


def check_need(need: str) -> None:
    """Look for `module:name`.

    Raises Missing: the tree does not have it.
    """
    module_name, _, name = need.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Of the need itself, or of a package that it lies in; anything else is a broken tree.
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise Missing(need) from None
        raise
    if name and not hasattr(module, name):
        raise Missing(need)


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
    answers = open_answers()
    speak_when_dying()
    questions = listen()
    try:
        suite = load_suite(os.environ.get(SUITE_VARIABLE))
        device = device_of(device_named(os.environ.get(DEVICE_VARIABLE, "cpu")))
        worker = Answers(suite, device)
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
