"""Kernels that were written to be called right: none is, and each is told why."""

import sys

import pytest

from bench.check import worker
from bench.check.apart import ApartKernel
from bench.check.children import kernel_process
from helpers.cheating_kernels import CHEATS, PATH

NOT_WRITTEN = "out is not written"
OFF = " is "
SAID = {
    "patched_torch": "wrote to the key or value cache",
    "replaced_judge": OFF,
    "cached_answer": OFF,
    "answer_of_another_call": OFF,
    "read_files": OFF,
    "read_environment": "raised ValueError: it knows [] and []",
    "later_threads": NOT_WRITTEN,
    "forged_answer": "broke the protocol",
    "half_a_line": "broke the protocol",
    "ahead_of_the_answer": "broke the protocol",  # its second answer, whenever it was written
    "early_return": "ended with code 0",
}


@pytest.fixture(scope="module")
def judged():
    def start(file):
        return kernel_process(f"{PATH}:cheat", "cpu", python=sys.executable, file=file)

    with ApartKernel(start, time_limit_s=30.0) as kernel:
        yield lambda question: worker.answer(kernel, question)


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_no_cheating_kernel_is_right(cheat, judged):
    heads = CHEATS.index(cheat) + 1
    said = []
    for seed in (1, 2):
        spec = f"2x(q1 k41) h{heads} d16 b16 fp32 inputs=flat seed={seed}"
        said.append(judged({"check": "truth", "problem": spec}))
        if "died" in said[-1]:
            break
    assert any(
        SAID[cheat.__name__] in words
        for answer in said
        for words in [*answer.get("findings", ()), answer.get("died", "")]
    ), said
    assert any(answer.get("status") != "passed" for answer in said)
