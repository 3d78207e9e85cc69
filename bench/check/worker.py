"""The judge of `pagedbench check`: asks one kernel, in a process of its own, and judges it.

The truth, the canaries and the verdict are here, and nothing of the kernel is: what it replaces or
overwrites is not what judges it. It is started with the kernel's name, the device, the kernel's
interpreter, the seconds for a check and, where that is known, what the kernel declared. Questions
and answers are JSON lines; see `subjects.process`. The question {"check": NAME, "problem": SPEC} is
answered with a verdict; {"moved": SPEC} with {"moved": ...}, the bytes that the kernel moves of
each tensor, null where nobody can see; {"drawn": SPEC, "findings": ...} with {"drawn": ...}, what a
page shows of a problem, with the error of each row, null where there is none. Other answers are
{"died": HOW, "timed_out": ...} of the kernel's process, {"error": ...} where its name leads to no
kernel, and {"harness": TRACEBACK} where what went wrong is ours.
"""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from bench.check.apart import ApartKernel, Gone, kernel_process
from bench.check.drawing import drawing
from bench.check.subject import CAPABILITIES
from bench.search.child import (
    answer_questions,
    end_with_parent,
    listen,
    open_answers,
    speak_when_dying,
)
from bench.search.lanes import HarnessError
from bench.search.nursery import Nursery
from reference.attention.catalogue import CHECKS
from reference.attention.checks import Subject, run_check
from reference.attention.far import keep_in_files
from reference.attention.inputs import make_inputs
from reference.attention.problem import AttentionProblem
from subjects.process import LAST_WORDS_S, SubjectDied, SubjectProcess

__all__ = ["CAPABILITIES", "CHECK_BY_NAME", "JudgeProcess", "answer"]

_JUDGE_DIED = "memory ran out, or a kernel ended more than its own process: the judge's process"

CHECK_BY_NAME = {check.name: check for check in CHECKS}


class JudgeProcess(SubjectProcess):
    """A judge in a process of its own; that the kernel's died is said as of the one that is asked.

    The kernel's has its time limit from the judge.
    """

    def ask(self, question: Mapping[str, Any], *, limit_s: float | None = None) -> dict[str, Any]:
        """As of any process. Raises SubjectDied: the kernel's process died; HarnessError: the
        judge's did, twice.
        """
        try:
            said = super().ask(question, limit_s=limit_s)
        except SubjectDied:
            try:
                said = super().ask(question, limit_s=limit_s)
            except SubjectDied as death:
                raise HarnessError(f"{_JUDGE_DIED} {death.how}") from None
        if "died" in said:
            raise SubjectDied(str(said["died"]), timed_out=bool(said["timed_out"]))
        return said

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        # It has time to end its kernel, and what that started: out of the kernel's reach it leads
        # another group.
        assert child.stdin is not None
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            child.stdin.close()
            child.wait(LAST_WORDS_S)
        super()._kill(child)


def answer(kernel: ApartKernel, question: dict[str, Any]) -> dict[str, Any]:
    """Answer one question."""
    try:
        error = kernel.introduce()
        if error is not None:
            return {"error": error}
        if "moved" in question:
            return {"moved": _moved(kernel, AttentionProblem.parse(question["moved"]))}
        if "drawn" in question:
            problem = AttentionProblem.parse(question["drawn"])
            return {"drawn": _drawn(kernel, problem, question["findings"])}
        check = CHECK_BY_NAME[question["check"]]
        problem = AttentionProblem.parse(question["problem"])
        watch = kernel.watch if kernel.watchable else None
        verdict = run_check(check, kernel, problem, watch=watch)
        late = kernel.late()
    except Gone as death:
        return {"died": death.how, "timed_out": death.timed_out}
    except Exception:
        return {"harness": traceback.format_exc()}  # what the kernel raises is in the verdict
    status = "failed" if late else verdict.status.value
    return {"status": status, "findings": [*verdict.findings, *late]}


def _moved(kernel: ApartKernel, problem: AttentionProblem) -> dict[str, dict[str, int]] | None:
    try:
        subject = Subject(kernel, "cpu", kernel.capabilities)
        return kernel.moved(subject.place(make_inputs(problem), far=False).batch)
    except Exception:
        return None  # what the kernel raises is in the verdicts


def _drawn(
    kernel: ApartKernel, problem: AttentionProblem, findings: list[str]
) -> dict[str, Any] | None:
    try:
        answer = Subject(kernel, "cpu", kernel.capabilities).answer(make_inputs(problem)).batch
    except Exception:
        answer = None  # what the kernel raises is in the verdicts
    made = drawing(problem, findings, answer)
    return None if made is None else made.model_dump(mode="json")


def main() -> None:
    """Answer until standard input ends."""
    name, device, python, limit_s, *declared = sys.argv[1:]
    able = CAPABILITIES.validate_json(declared[0]) if declared else None
    torch.set_num_threads(1)
    end_with_parent()
    speak_when_dying()
    keep_in_files()
    nursery = Nursery.inherited()
    start = partial(kernel_process, name, device, python=python, nursery=nursery)
    with (
        open_answers() as answers,
        ApartKernel(
            lambda file: start(file=file), time_limit_s=float(limit_s), declared=able
        ) as kernel,
    ):
        questions = listen(ending=kernel.kill)
        answers.write("{}\n")
        answer_questions(answers, questions, partial(answer, kernel))
