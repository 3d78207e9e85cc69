"""The child of `pagedbench check`: runs one kernel on the problems that it is asked about.

    python -m bench.worker KERNEL DEVICE

Questions and answers are JSON lines; see `subjects.process`. The question {"describe": true} is
answered with what the kernel declares, {"check": NAME, "problem": SPEC} with a verdict.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from reference.conformance import CHECKS, run_check
from reference.contract import Capabilities
from reference.problem import AttentionProblem
from subjects.resolve import Subject, SubjectError, resolve_kernel

CHECK_BY_NAME = {check.name: check for check in CHECKS}


def answer(subject: Subject, question: dict[str, Any], device: str) -> dict[str, Any]:
    """Answer one question."""
    if "describe" in question:
        return {"capabilities": capabilities_as_json(subject.capabilities)}
    problem = AttentionProblem.parse(question["problem"])
    verdict = run_check(CHECK_BY_NAME[question["check"]], subject.kernel, problem, device=device)
    return {"status": verdict.status.value, "findings": list(verdict.findings)}


def capabilities_as_json(capabilities: Capabilities) -> dict[str, Any]:
    """Sets as sorted lists; None stays None."""
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name in Capabilities.__dataclass_fields__
        for value in [getattr(capabilities, name)]
    }


def capabilities_from_json(fields: dict[str, Any]) -> Capabilities:
    """The inverse of `capabilities_as_json`."""
    values: dict[str, Any] = {
        name: frozenset(v) if isinstance(v, list) else v for name, v in fields.items()
    }
    return Capabilities(**values)


def main() -> None:
    """Answer until standard input ends."""
    name, device = sys.argv[1:]
    torch.set_num_threads(1)
    with os.fdopen(int(os.environ["PAGEDBENCH_ANSWERS"]), "w", buffering=1) as answers:
        try:
            subject = resolve_kernel(name)
        except SubjectError as error:
            answers.write(json.dumps({"error": str(error)}) + "\n")
            return
        if "triton" in sys.modules:
            # Anybody's Triton kernel gets the interpreter's corrections, not only ours.
            import kernels.interpreter  # noqa: F401
        for line in sys.stdin:
            answers.write(json.dumps(answer(subject, json.loads(line), device)) + "\n")


if __name__ == "__main__":
    main()
