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

import sys
import traceback
from functools import partial
from typing import Any

import torch

from bench.check.apart import ApartKernel, Gone
from bench.check.children import CAPABILITIES, CHECK_BY_NAME, kernel_process
from bench.check.drawing import drawing
from bench.search.child import (
    answer_questions,
    end_with_parent,
    listen,
    open_answers,
    speak_when_dying,
)
from bench.search.nursery import Nursery
from reference.attention.checks import Subject, run_check
from reference.attention.far import keep_in_files
from reference.attention.inputs import make_inputs
from reference.attention.problem import AttentionProblem


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
