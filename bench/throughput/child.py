"""The parent's side of the measuring process: asks it, and says which subject ended it.

All subjects share one process, because ratios need rounds in turns. What was timed when one of them
ends that process is measured again without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from bench.throughput.candidates import Absent, Candidate
from bench.throughput.worker import CANDIDATE
from subjects.loading import SubjectError
from subjects.process import SubjectDied, SubjectProcess
from subjects.starting import start_of

OURS_S: Final = 600.0
"""For what is no subject's work: making inputs, and saving answers."""

IMPORT_S: Final = 120.0
"""Least seconds for importing a subject, and torch with it."""

WORK: Final = ("planning", "calling", "timing")
"""What a subject may be at, as the child says it."""


class Ended(Exception):
    """A subject ended the process, or was ended with it for its silence."""

    def __init__(self, name: str, *, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name
        self.why = why


def start(device: str) -> SubjectProcess:
    """A child that measures; see `bench.throughput.worker` for what it can be asked."""
    main = f"{start_of('bench.throughput.worker')}ours.main()"
    return SubjectProcess([sys.executable, "-u", "-P", "-c", main, device])


class Child:
    """The measuring process; after a death the next question starts another one."""

    def __init__(
        self, process: SubjectProcess, *, splits: Sequence[int | None], time_limit_s: float
    ):
        self._process = process
        self._splits = list(splits)
        self._limit_s = time_limit_s
        self._knows: set[str] = set()
        self._at, self._doing = "", ""
        self.copies = 1

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def find(self, name: str) -> list[Candidate] | Absent:
        """Who a name stands for; importing it may end the process."""
        try:
            answer = self._ask({"do": "find", "name": name, "splits": self._splits}, at=name)
        except Ended as death:
            return Absent(name=name, why=death.why, died=True)
        if "unknown" in answer:
            raise SubjectError(answer["unknown"])
        if "absent" in answer:
            return Absent(name=name, why=answer["absent"])
        self._knows.add(name)
        return [CANDIDATE.validate_python(each) for each in answer["found"]]

    def prepare(self, problem: str, *, copies: int, candidates: Sequence[Candidate]) -> None:
        """Have the inputs made, in a process that knows the candidates. Raises Ended."""
        self.copies = copies
        for each in candidates:
            if each.subject not in self._knows:
                found = self.find(each.subject)
                if isinstance(found, Absent):
                    raise Ended(each.name, why=found.why)
        self._ask({"do": "inputs", "problem": problem, "copies": copies})

    def plan(self, name: str) -> str:
        """Have a candidate plan its calls, and make one; what it raised. Raises Ended."""
        answer = self._ask({"do": "plan", "name": name}, at=name)
        raised: str = answer.get("raised", "")
        if answer.get("spent"):
            self._process.close()
            self._knows.clear()
            raise Ended(name, why=raised)
        return raised

    def rounds(
        self,
        question: Mapping[str, Any],
        *,
        judge: Callable[[Sequence[str]], str],
        advance: Callable[[int], bool],
    ) -> dict[str, dict[str, Any]]:
        """Have the rounds run; `judge` gets what the child saw, `advance` says whether to stop."""
        answer = self._ask({"do": "rounds", **question})
        while "times" not in answer:
            if "judge" in answer:
                reply: dict[str, Any] = {"finding": judge(answer["unwritten"])}
            else:
                reply = {"stop": advance(answer["round"])}
            answer = self._ask(reply, at=self._at)
        times: dict[str, dict[str, Any]] = answer["times"]
        return times

    def _ask(self, question: Mapping[str, Any], *, at: str = "") -> dict[str, Any]:
        """The answer, after all news of who is at work."""
        self._at, self._doing = at, "importing"
        limit_s = max(self._limit_s, IMPORT_S) if question.get("do") == "find" else OURS_S
        try:
            answer = self._process.ask(question, limit_s=limit_s)
            while doing := next((word for word in WORK if word in answer), ""):
                self._at, self._doing = answer[doing], doing
                inputs = self.copies if doing == "timing" else 1
                answer = self._process.next_answer(limit_s=inputs * self._limit_s)
        except SubjectDied as death:
            self._knows.clear()
            if not self._at:
                raise RuntimeError(f"the measuring process {death.how}") from None
            how = death.how.splitlines()[0].removesuffix(": Stack (most recent call first):")
            remedy = "; give it more with --time-limit" if death.timed_out else ""
            raise Ended(self._at, why=f"{self._doing} it, the process {how}{remedy}") from None
        return answer
