"""The child of `subjects.allocators.remote`: runs one allocator in whatever interpreter it needs.

The standard library only, and nothing of ours but `subjects.loading`, `mixed_stream` and
`bytecodes`.

Importing an engine takes seconds, and a fuzzer may crash it hundreds of times. So this process
imports it once and does nothing else; a fork of it does the work, and when that dies the next one
takes over within milliseconds. What it died of is the answer to the question that killed it.

Questions and answers are JSON lines; see `subjects.process`. The introduction is {"capabilities":
..., "version": ...}, or {"error": ...} where the name leads to no allocator. Then:

- {"new": {"num_blocks": ..., ...}} makes an empty allocator, instead of the one before;
- {"call": NAME, "with": [ARGUMENTS], "named": {ARGUMENTS}} makes a call;
- {"serve": {"requests": ..., ...}} serves a stream from an allocator of its own, and is answered
  with the fields of `subjects.allocators.mixed_stream.Served`.

The first two are answered with {"answer": ..., "counts": [free, idle, used], "slots": {SEQUENCE:
[...]}, "idle": [...]}, where `slots` has what is new since the answer before, or with {"answer":
..., "unseen": {CALL: "Type: words"}} where looking raised; with {"raised": "Type: words", ...}
where the call raised; or with {"died": HOW, "timed_out": ...}. Each answer has
the number of its question.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import gc
import json
import mmap
import os
import resource
import signal
import traceback
from collections.abc import Iterable, Mapping
from typing import IO, Any, Final

from reference.errors import described
from reference.stack import with_stack_room
from subjects.allocators.bytecodes import CountedAllocator
from subjects.allocators.mixed_stream import STREAMS, serve
from subjects.loading import SubjectError, load

LIVES_AFTER: Final = {"admit": 0, "fork": 1, "swap_in": 0}
"""Calls after which a sequence is there, if they were granted, and which argument names it."""

DIES_WITH: Final = frozenset({"free", "preempt", "swap_out"})


class Desk:
    """Makes the calls on one allocator after another, and tells what can be seen of it."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._allocator: Any = None
        self._watch_idle = False
        self._told: dict[str, list[int] | None] = {}

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one question."""
        try:
            if "serve" in question:
                return self._serve(**question["serve"])
            if "new" in question:
                said = self._new(question["new"])
            else:
                said = self._call(question["call"], question["with"], question["named"])
        except Exception as error:
            said = {"raised": described(error) + _origin(error)}
        return said | self._sight()

    def _new(self, pool: dict[str, Any]) -> dict[str, Any]:
        self._told = {}
        self._allocator = None  # the old pool goes before the new one comes
        self._watch_idle = pool.pop("watch_idle")
        self._allocator = self._factory(pool.pop("num_blocks"), pool.pop("block_size"), **pool)
        return {"answer": None}

    def _serve(
        self,
        *,
        requests: int,
        pool: dict[str, Any],
        stream: str = "mixed",
        counted: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        asked = STREAMS[stream](requests)
        allocator = self._factory(pool.pop("num_blocks"), pool.pop("block_size"), **pool)
        gc.collect()
        if not counted:
            return dataclasses.asdict(serve(allocator, asked, **options))
        allocator = CountedAllocator(allocator)
        served = dataclasses.asdict(serve(allocator, asked, **options))
        return {**served, "bytecodes": allocator.bytecodes()}

    def _call(self, name: str, given: list[Any], named: dict[str, Any]) -> dict[str, Any]:
        answer = getattr(self._allocator, name)(*given, **named)
        if name in LIVES_AFTER and answer is not None and answer is not False:
            self._told.setdefault(given[LIVES_AFTER[name]], None)
        elif name in DIES_WITH and not (name == "swap_out" and answer is None):
            self._told.pop(given[0], None)
        return {"answer": _plain(answer)}

    def _sight(self) -> dict[str, Any]:
        allocator = self._allocator
        if allocator is None:
            return {}
        changed: dict[str, Any] = {}
        call = "slots"
        try:
            for name, told in self._told.items():
                slots = allocator.slots(name)
                # What is no row of numbers is for the one who asked to judge.
                slots = _plain(list(slots) if isinstance(slots, Iterable) else slots)
                if slots != told:
                    self._told[name] = changed[name] = slots
            call = "counts"
            sight = {"counts": _plain(allocator.counts()), "slots": changed}
            call = "idle_blocks"
            if self._watch_idle:
                sight["idle"] = _plain(allocator.idle_blocks())
        except Exception as error:
            return {"unseen": {call: described(error) + _origin(error)}}
        return sight


def _plain(value: Any) -> Any:
    """What JSON can say: engines answer with numbers of numpy and torch, and with tuples."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        if all(type(each) is int for each in value):
            return list(value)
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__index__"):
        return int(value)
    return repr(value)


def _origin(error: BaseException) -> str:
    """Where it was raised: an engine's own assertions often have no words."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""


def attend(
    factory: Any, questions: IO[str], answers: IO[str], asked: mmap.mmap, *, time_limit_s: float
) -> None:
    """Answer until there are no more questions; a call that takes too long ends this process."""
    # The signal's default ends the process whatever it is doing, in C code as well.
    faulthandler.register(signal.SIGALRM, all_threads=False, chain=True)
    desk = Desk(factory)
    while line := questions.readline():
        question = json.loads(line)
        number = question["question_number"]
        asked[:8] = number.to_bytes(8, "little")
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)
        answer = desk.answer(question)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer["question_number"] = number
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def introduction(name: str) -> tuple[Any, dict[str, Any]]:
    """The factory that a name stands for, and what is said of it."""
    try:
        factory = load(name, what="allocator")
        if not callable(factory):
            raise SubjectError(f"{name} is {type(factory).__name__}, not callable: name a factory")
        declared = getattr(factory, "capabilities", None)
        getattr(factory, "prepare", lambda: None)()  # before this process is forked
    except SubjectError as error:
        return None, {"error": str(error)}
    if dataclasses.is_dataclass(declared) and not isinstance(declared, type):
        declared = dataclasses.asdict(declared)
    if declared is not None and not isinstance(declared, Mapping):
        return None, {"error": f"{name}.capabilities is {declared!r}; it must be a mapping"}
    capabilities = {key: _plain(value) for key, value in (declared or {}).items()}
    return factory, {"capabilities": capabilities, "version": str(getattr(factory, "version", ""))}


@with_stack_room
def main(name: str, time_limit_s: float) -> None:
    """Import the allocator, then fork one process after another to answer questions."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(all_threads=False)
    descriptor = int(os.environ.pop("PAGEDBENCH_ANSWERS"))
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword
    # A subject that reads standard input must not get the questions.
    mine = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with os.fdopen(descriptor, "w") as answers:
        answers.write("{}\n")
        answers.flush()
        factory, said = introduction(name)
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        # Shared with the children: which question is under way, and whether there are no more. A
        # subject that exits with code 0 looks the same from outside.
        asked, over = mmap.mmap(-1, 8), mmap.mmap(-1, 1)
        while factory is not None:
            child = os.fork()
            if child == 0:
                # A buffer of its own: what the next one is asked must not be in it.
                with os.fdopen(mine, buffering=1) as questions:
                    attend(factory, questions, answers, asked, time_limit_s=time_limit_s)
                over[0] = 1
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if over[0]:
                return
            # It may have died in the middle of a line.
            number = int.from_bytes(asked[:], "little")
            said = death(status, time_limit_s) | {"question_number": number}
            answers.write("\n" + json.dumps(said) + "\n")
            answers.flush()


def death(status: int, time_limit_s: float) -> dict[str, Any]:
    """How a process ended, in words."""
    if os.WIFEXITED(status):
        return {"died": f"ended with code {os.WEXITSTATUS(status)}", "timed_out": False}
    number = os.WTERMSIG(status)
    if number == signal.SIGALRM:
        return {"died": f"gave no answer within {time_limit_s:g} s", "timed_out": True}
    return {"died": f"was killed by {signal.Signals(number).name}", "timed_out": False}
