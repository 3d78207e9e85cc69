import pytest

from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status
from reference.errors import described


class Mute(Exception):
    def __init__(self, second):
        self.second = second

    def __str__(self):
        raise self.second


@pytest.mark.parametrize("second", [RuntimeError("no"), SystemExit(0), KeyboardInterrupt()])
def test_an_error_whose_text_raises_is_described_all_the_same(second):
    said = f"Mute: (no text: its __str__ raised {type(second).__name__})"
    assert described(Mute(second)) == said


def test_an_error_is_described_by_its_type_and_text():
    assert described(ValueError("seven")) == "ValueError: seven"


def test_a_kernel_that_raises_what_has_no_text_fails_its_checks():
    def kernel(batch):
        raise Mute(RuntimeError("no"))

    problem = AttentionProblem.parse("(q1 k9) d16 b16 fp32")
    (truth,) = (check for check in CHECKS if check.name == "truth")
    verdict = run_check(truth, kernel, problem)
    assert verdict.status is Status.FAILED
    (finding,) = verdict.findings
    assert finding.startswith("raised Mute: (no text: its __str__ raised RuntimeError) (at ")
