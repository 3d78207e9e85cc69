"""The child of `pagedbench throughput`: all subjects are timed in it, side by side.

It is started with a device and speaks JSON lines; see `subjects.process`. Questions are

    {"do": "find", "name": NAME, "splits": [N or null, ...]}
    {"do": "inputs", "problem": SPEC, "copies": N}     makes them, after forgetting the last
    {"do": "plan", "name": NAME}                       and calls it once for the first input
    {"do": "rounds", "rounds": N, "warm_up": N, "seed": N, "warm": BOOL, "names": [...],
     "rows": [[ROW, ...], ...], "file": PATH}          times them; `rows` are of each input

A question may be followed by news, whose keys are `planning`, `calling` or `timing` with the name
of the subject that is at work from then on. Asked for `rounds`, the child asks in return: {"judge":
NAME, "unwritten": [WORDS, ...]}, once the rows of all its inputs are in the file, is answered with
{"finding": WORDS}, and {"round": N} with {"stop": BOOL}.

The last answer to a question is {"absent": WHY} or {"found": [...]}; {"unknown": MESSAGE} where a
name leads to no kernel; {"raised": WORDS, "spent": BOOL}, where the device may be unusable from
then on; {"times": {NAME: TIMES}}; or {}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from bench.machine.timing import (
    Call,
    Device,
    Side,
    Timer,
    describe,
    device_of,
    forget,
    is_lost,
)
from bench.search.child import listen, open_answers, speak_when_dying
from bench.throughput.candidates import Absent, Candidate, Planner, find_candidates
from reference.attention.contract import PagedBatch
from reference.attention.layout import usual
from reference.attention.problem import AttentionProblem
from reference.stack import with_stack_room
from subjects.loading import SubjectError

Message = dict[str, Any]

CANDIDATE = TypeAdapter(Candidate)


@with_stack_room
def main() -> None:
    """Answer until standard input ends."""
    (kind,) = sys.argv[1:]
    if kind == "cuda":
        os.environ["TRITON_INTERPRET"] = "0"  # read when triton is imported
    else:
        # With several threads a small operation waits for the slowest: the times of a busy machine
        # are then of its other work.
        torch.set_num_threads(1)
    speak_when_dying()
    questions = listen()
    number = 0
    with open_answers() as answers:

        def hear() -> Message:
            nonlocal number
            question: Message = json.loads(questions.get())
            number = question.pop("question_number")
            return question

        def say(message: Message) -> None:
            answers.write(json.dumps({**message, "question_number": number}) + "\n")

        say({})
        child = Measuring(device_of(kind), hear=hear, say=say)
        with torch.no_grad():
            while True:
                child.answer_next()


class Measuring:
    """What can be asked of the child."""

    def __init__(
        self, device: Device, *, hear: Callable[[], Message], say: Callable[[Message], None]
    ) -> None:
        self._device = device
        self._hear, self._say = hear, say
        self._planners: dict[str, Planner] = {}
        self._inputs: list[PagedBatch] = []
        self._outs: dict[str, list[Tensor]] = {}
        self._sides: dict[str, Side] = {}

    def answer_next(self) -> None:
        """Answer one question."""
        question = self._hear()
        do: Callable[..., Message] = getattr(self, question.pop("do"))
        self._say(do(**question))

    def find(self, name: str, splits: list[int | None]) -> Message:
        """Import a subject, and say what it declares."""
        try:
            found = find_candidates(name, device=self._device.kind, splits=splits)
        except SubjectError as error:
            return {"unknown": str(error)}
        if isinstance(found, Absent):
            return {"absent": found.why}
        self._planners.update({candidate.name: planner for candidate, planner in found})
        return {"found": [CANDIDATE.dump_python(each, mode="json") for each, _ in found]}

    def inputs(self, problem: str, copies: int) -> Message:
        """Make the inputs of a point."""
        self._inputs, self._outs, self._sides = [], {}, {}
        parsed = AttentionProblem.parse(problem)
        for seed in range(parsed.seed, parsed.seed + copies):
            self._inputs.append(usual(parsed, device=self._device.kind, seed=seed))
        return {}

    def plan(self, name: str) -> Message:
        """Do what is not timed, and make one call: what dies in it is not planning any more."""
        outs = [torch.full_like(batch.out, torch.nan) for batch in self._inputs]
        calls: list[Call] = []
        try:
            for batch, out in zip(self._inputs, outs, strict=True):
                self._say({"planning": name})
                calls.append(self._planners[name](batch.replace(out=out)))
            self._say({"calling": name})
            calls[0]()
            self._device.synchronize()
        except Exception as error:  # a peer that raises ends nobody's run but its own
            return {"raised": describe(error), "spent": is_lost(self._device.synchronize)}
        self._outs[name] = outs
        self._sides[name] = Side(name=name, calls=tuple(calls))
        return {}

    def rounds(
        self,
        names: list[str],
        rows: list[list[int]],
        file: str,
        rounds: int,
        warm_up: int,
        seed: int,
        warm: bool,  # noqa: FBT001 - by name, from JSON
    ) -> Message:
        """Time the sides that are planned."""
        stop = threading.Event()
        at = [torch.tensor(each, device=self._device.kind) for each in rows]

        def judge(name: str) -> str:
            outs = self._outs[name]
            torch.save([out[each].cpu() for out, each in zip(outs, at, strict=True)], file)
            self._say({"judge": name, "unwritten": [unwritten(out) for out in outs]})
            finding: str = self._hear()["finding"]
            return finding

        def advance(count: int) -> None:
            self._say({"round": count})
            if self._hear()["stop"]:
                stop.set()

        times = Timer(self._device, rounds=rounds, warm_up=warm_up, seed=seed, warm=warm).time(
            [self._sides[name] for name in names],
            before_round=partial(forget, [out for name in names for out in self._outs[name]]),
            before_side=lambda name: self._say({"timing": name}),
            judge=judge,
            advance=advance,
            stop=stop,
        )
        return {"times": {name: asdict(each) for name, each in times.items()}}


def unwritten(out: Tensor) -> str:
    """Which rows are not finite, in words; empty if all are."""
    if bool(out.isfinite().all()):
        return ""
    rows = (~out.isfinite()).flatten(1).any(1).nonzero().flatten()
    return f"{len(rows)} of {len(out)} rows are not finite, row {int(rows[0])} the first"
