"""The child of `pagedbench compile`: compiles for one target what it is asked about.

It is started with a target's name (`kernels.compiled.targets`) and speaks JSON lines; see
`subjects.process`. The introduction is {"target": NAME, "triton": VERSION, "toolchain": TEXT}.

Question, all values strings unless said:

    {"subject": NAME, "problem": SPEC, "keys": [NAME, ...], "only_triton": true}

`subject` is `module:function`, `file.py:function` or a built-in name; its function takes a
`PagedBatch`. `problem` is the spec of the batch. `keys` is optional: the constexprs that may hold
the KV tokens of one iteration of the main loop, first match. With `only_triton`, also optional,
a subject that launches no Triton kernel is not supported; else it is a failure.

Answer, one of

    {"launches": [...], "notes": [...]}     as in `kernels.compiled.figures.VariantFigures`
    {"failure": MESSAGE}                    the subject raised, or the compiler refused
    {"unsupported": REASON}                 the subject declares that it cannot do this problem
    {"unknown": MESSAGE}                    the name leads to no function, the spec to no problem
    {"harness": TRACEBACK}                  what went wrong is ours
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from functools import partial
from typing import Any, Final

import torch

from bench.machine.facts import version_of
from bench.search.child import answer_questions, listen, open_answers, speak_when_dying
from kernels.compiled.batch import engine_batch
from kernels.compiled.capture import NothingLaunched, capture, install
from kernels.compiled.measure import KEY_NAMES, measure, toolchain
from kernels.compiled.targets import Target, find_target
from reference.attention.problem import AttentionProblem, InvalidProblem
from subjects.attention.resolve import resolve_kernel
from subjects.loading import SubjectError

LONGEST: Final = 12
"""Lines of a compiler's message that are kept."""


def main() -> None:
    """Answer until standard input ends."""
    target = find_target(sys.argv[1])
    torch.set_num_threads(1)
    speak_when_dying()
    questions = listen()
    with open_answers() as answers:
        install(target)
        said = {
            "target": target.name,
            "triton": version_of("triton"),
            "toolchain": toolchain(target),
        }
        answers.write(json.dumps(said) + "\n")
        answer_questions(answers, questions, partial(answer, target=target))


def answer(question: dict[str, Any], target: Target) -> dict[str, Any]:
    """Answer one question."""
    try:
        subject = resolve_kernel(question["subject"])
        problem = AttentionProblem.parse(question["problem"])
        if reason := subject.capabilities.refusal(problem):
            return {"unsupported": f"it declares that it cannot do {reason}"}
        batch = engine_batch(problem, with_lse="lse" in subject.capabilities.variants)
    except (SubjectError, InvalidProblem) as error:
        return {"unknown": str(error)}
    except Exception:
        return {"harness": traceback.format_exc()}
    try:
        captured = capture(subject.kernel, batch)
    except Exception as error:
        if isinstance(error, NothingLaunched) and question.get("only_triton"):
            return {"unsupported": f"{question['subject']} launches no Triton kernel"}
        return {"failure": told(error)}
    try:
        key_names = question.get("keys") or KEY_NAMES
        launches = [measure(each, target, key_names=key_names) for each in captured.launches]
    except Exception:
        return {"harness": traceback.format_exc()}
    return {
        "launches": [figures.model_dump(mode="json") for figures in launches],
        "notes": captured.notes,
    }


def told(error: Exception) -> str:
    """What a host function or a compiler says, its last word first, without names of scratch files.

    A compile error of Triton is a source excerpt with the complaint below it, and each inlined
    function wraps another one around it: the innermost one is the cause.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause).strip()
    assembler = [line for line in text.splitlines() if re.match(r"ptxas.*\b(error|fatal)\b", line)]
    if assembler:
        return "\n".join(re.sub(r"/\S+\.ptx", "PTX", line) for line in assembler[:LONGEST])
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "no message"
    rest = "\n".join(lines[:-1][-LONGEST:])
    return f"{type(cause).__name__}: {last}" + (f"\n{rest}" if rest else "")
