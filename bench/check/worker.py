"""The child of `pagedbench check`: runs one kernel on the problems that it is asked about.

It is started with a kernel's name and a device. Questions and answers are JSON lines; see
`subjects.process`. The introduction is {"capabilities": ...}, or {"error": ...} where the name
leads to no kernel. The question {"check": NAME, "problem": SPEC} is answered with a verdict, or
with {"harness": TRACEBACK} where what went wrong is ours; {"moved": SPEC} with {"moved": ...}, the
bytes that the kernel moves of each tensor, null where nobody can see.
"""

from __future__ import annotations

import json
import sys
import traceback
from functools import partial
from typing import Any

import torch
from pydantic import TypeAdapter

# Imported before the subject, to be found again afterwards: where it lies there may be folders of
# the same names.
import kernels as kernels_room
import paged as paged_room
from bench.check.watching import bytes_moved, watcher
from bench.machine.timing import is_lost
from bench.search.child import answer_questions, listen, open_answers, speak_when_dying
from reference.attention.checks import CHECKS, run_check
from reference.attention.contract import Capabilities
from reference.attention.problem import AttentionProblem
from subjects.attention.resolve import Subject, resolve_kernel
from subjects.loading import SubjectError

CHECK_BY_NAME = {check.name: check for check in CHECKS}
CAPABILITIES = TypeAdapter(Capabilities)
"""What a kernel declares, as JSON."""
ROOMS = (kernels_room, paged_room)


def answer(subject: Subject, question: dict[str, Any], device: str) -> dict[str, Any]:
    """Answer one question."""
    if "moved" in question:
        return {"moved": _moved(subject, AttentionProblem.parse(question["moved"]))}
    try:
        check = CHECK_BY_NAME[question["check"]]
        problem = AttentionProblem.parse(question["problem"])
        verdict = run_check(check, subject.kernel, problem, device=device, watch=watcher())
    except Exception:
        return {"harness": traceback.format_exc()}  # what the kernel raises is in the verdict
    return {
        "status": verdict.status.value,
        "findings": list(verdict.findings),
        "spent": verdict.wrong and device == "cuda" and is_lost(torch.cuda.synchronize),
    }


def _moved(subject: Subject, problem: AttentionProblem) -> dict[str, dict[str, int]] | None:
    try:
        return bytes_moved(subject.kernel, problem)
    except Exception:
        return None  # what the kernel raises is in the verdicts


def introduction(name: str, device: str = "cpu") -> tuple[Subject | None, dict[str, Any]]:
    """The kernel that a name stands for, and what is said of it."""
    try:
        subject = resolve_kernel(name, device=device)
    except SubjectError as error:
        return None, {"error": str(error)}
    if "triton" in sys.modules:
        # Anybody's Triton kernel gets the interpreter's corrections, not only ours.
        import kernels.interpreter  # noqa: F401
    declared = CAPABILITIES.dump_python(subject.capabilities, mode="json", warnings=False)
    return subject, {"capabilities": declared}


def main() -> None:
    """Answer until standard input ends."""
    name, device = sys.argv[1:]
    torch.set_num_threads(1)
    speak_when_dying()
    questions = listen()
    with open_answers() as answers:
        subject, said = introduction(name, device)
        answers.write(json.dumps(said) + "\n")
        if subject is not None:
            answer_questions(answers, questions, partial(answer, subject, device=device))
