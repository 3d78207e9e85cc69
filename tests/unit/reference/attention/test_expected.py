"""Expected failures: what may be written down, whom it covers, and what comes of it."""

import pytest

from reference.attention.expected import (
    Expectations,
    ExpectedFailure,
    ExpectedState,
    strangers,
)
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict

URL = "https://example.org/issues/12"
E5M2 = AttentionProblem.parse("(q1 k9) d16 b16 bf16 kv=e5m2")
PLAIN = AttentionProblem.parse("(q1 k9) d16 b16 bf16")


def waiver(check: str = "truth", *when: str, **changes: str) -> ExpectedFailure:
    return ExpectedFailure(
        **{"kernel": "k.py:f", "check": check, "when": when, "reason": URL, **changes}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("reason", [URL, "http://a.b", "Sums in another order.", "see issue 12"])
def test_a_reason_is_a_url_or_a_sentence(reason: str) -> None:
    assert waiver(reason=reason).reason == reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reason": ""}, r"reason='' for k\.py:f truth: give the URL of a report, or a sentence"),
        ({"reason": "  "}, "give the URL of a report"),
        ({"reason": "todo"}, "reason='todo'"),
        ({"reason": "known bug"}, "reason='known bug'"),
        ({"reason": "https://"}, "reason='https://'"),
        ({"check": "truths"}, "check='truths' is no check; use one of memory, truth,"),
        ({"kernel": " "}, "kernel=' ': name the kernel that fails"),
        ({"when": ("windows",)}, "'windows' is no feature of a problem; use one of dtype=fp32"),
        ({"when": "window"}, r"when='window': features are a list, such as \['window'\]"),
        ({"when": ("window", "noncausal")}, "no problem has all of these and can show truth"),
        ({"line": "k.py"}, "line='k.py': write FILE:LINE"),
        ({"message": "a ("}, r"message='a \(' is no regular expression"),
        ({"check": "growth", "when": ("decode",)}, "no problem has all of these and can show"),
    ],
)
def test_what_says_nothing_is_refused_with_the_remedy(
    changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        waiver(**changes)


@pytest.mark.parametrize(
    ("written", "kernel", "same"),
    [
        ("k.py:f", "k.py:f", True),
        ("f", "k.py:f", True),
        ("f", "package.module:f", True),
        ("torch", "torch", True),
        ("k.py:f", "k.py:g", False),
        ("k.py", "k.py:f", False),
        ("other.py:f", "k.py:f", False),
    ],
)
def test_a_kernel_goes_by_its_name_or_the_functions(
    written: str, kernel: str, same: object
) -> None:
    assert waiver(kernel=written).is_of(kernel) is same


def test_only_problems_with_all_its_features_are_covered() -> None:
    assert waiver().covers("truth", PLAIN)
    assert not waiver().covers("alone", PLAIN)
    assert waiver("truth", "kv_dtype=e5m2").covers("truth", E5M2)
    assert not waiver("truth", "kv_dtype=e5m2").covers("truth", PLAIN)
    assert not waiver("truth", "kv_dtype=e5m2", "window").covers("truth", E5M2)


def test_what_is_expected_is_no_fault_and_is_counted() -> None:
    expectations = Expectations.of([waiver("truth", "kv_dtype=e5m2"), waiver(kernel="g")], "k.py:f")
    assert [met.state for met in expectations.met] == [ExpectedState.UNMET]

    failed = Verdict("truth", Status.FAILED, ("off", "and more"))
    assert expectations.judge(E5M2, Verdict("truth", Status.PASSED)).status is Status.PASSED
    (met,) = expectations.met
    assert (met.state, met.problems, met.failed) == (ExpectedState.STALE, 1, 0)

    verdict = expectations.judge(E5M2, failed)
    assert verdict == Verdict("truth", Status.EXPECTED, failed.findings)
    assert not verdict.wrong
    assert expectations.judge(PLAIN, failed) is failed
    (met,) = expectations.met
    assert (met.state, met.problems, met.failed) == (ExpectedState.FAILED, 2, 1)
    assert (met.finding, met.problem) == ("off; and more", str(E5M2))

    crashed = Verdict("truth", Status.CRASHED, ("died",))
    assert expectations.judge(E5M2, crashed).status is Status.EXPECTED
    (met,) = expectations.met
    assert met.finding == "off; and more"  # the first is kept
    assert (met.problems, met.failed) == (3, 2)


@pytest.mark.parametrize("status", [Status.NOT_RUN, Status.NOT_SUPPORTED])
def test_what_was_not_run_meets_no_expectation(status: Status) -> None:
    expectations = Expectations.of([waiver()], "k.py:f")
    verdict = Verdict("truth", status, ("because",))
    assert expectations.judge(PLAIN, verdict) is verdict
    assert expectations.met[0].state is ExpectedState.UNMET


def test_each_state_is_said_with_what_to_do() -> None:
    expectations = Expectations.of([waiver("truth", "kv_dtype=e5m2")], "k.py:f")
    assert expectations.met[0].said == (
        "k.py:f truth [kv_dtype=e5m2] met no problem: draw more problems, or remove it"
    )
    expectations.judge(E5M2, Verdict("truth", Status.PASSED))
    assert expectations.met[0].said == (
        "k.py:f truth [kv_dtype=e5m2] no longer fails: passed on 1 of 1 problems; remove it, or "
        "narrow it down"
    )
    expectations.judge(E5M2, Verdict("truth", Status.FAILED, ("off",)))
    assert (
        expectations.met[0].said
        == f"k.py:f truth [kv_dtype=e5m2] fails 1 of 2 problems, as expected: {URL}"
    )


def test_a_line_or_a_message_waives_what_it_names_and_nothing_beside_it() -> None:
    at = "outside the tensor: load of block_table in k.py:42, attend program (0, 0, 0)"
    other = at.replace("k.py:42", "k.py:429")
    hint = "it is the right answer to logits times 2"
    seen = Verdict("truth", Status.FAILED, (other, at, hint))
    left = Expectations.of([waiver(line="k.py:42")], "k.py:f").judge(PLAIN, seen)
    assert left == Verdict("truth", Status.FAILED, (other,))
    both = [waiver(message=r"k\.py:42\d"), waiver(message="block_table in k.py:42,")]
    expectations = Expectations.of(both, "k.py:f")
    assert expectations.judge(PLAIN, seen).status is Status.EXPECTED
    assert [met.finding for met in expectations.met] == [other, f"{at}; {hint}"]
    assert not expectations.cover("truth", PLAIN)


def test_those_of_other_kernels_are_found() -> None:
    one, other = waiver(kernel="f"), waiver(kernel="g")
    assert strangers([one, other], ["k.py:f", "torch"]) == [other]
