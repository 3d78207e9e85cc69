"""What the trials are, and the tables of docs/tolerance-rules.md that come of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import torch
from rich.progress import track

from helpers.mutants import plant
from helpers.places import DOCS
from reference.attention.problem import QUERY_DTYPES
from studies.tolerance_rules.rules import OURS_WITHOUT_LSE, RULES
from studies.tolerance_rules.trials import CONTEXTS, Judged, Trials, cases_of, try_bugs
from tests.meta.test_kernel_bugs import BUGS, Bug

DOC: Final = DOCS / "tolerance-rules.md"
BEGIN: Final = "<!-- tables of the rules -->\n"
END: Final = "<!-- end of the tables of the rules -->\n"

ALARMING: Final = 0.05
"""Share of right answers from which a rule's rejections say little; marked in the tables."""

MARK: Final = "†"

MANY: Final = 20
"""Survivors of a rule from which they are counted and not named."""


def compared() -> dict[str, Bug]:
    """The bugs that may change the answer to a single call, and stay in the address space.

    Those that only a law shows change no single answer; those behind 2^31 elements raise.
    """
    return {
        name: bug
        for name, bug in BUGS.items()
        if bug.by.says.split(":")[0] == "truth" and not bug.by.far
    }


def run(bugs: dict[str, Bug]) -> Trials:
    """Try bugs on the problems of their harnesses, harness after harness."""
    trials = Trials()
    harnesses = list(dict.fromkeys(bug.by for bug in bugs.values()))
    with tempfile.TemporaryDirectory() as folder:
        right = plant(None, Path(folder))
        for harness in track(harnesses, description="harnesses"):
            planted = {
                name: plant(bug.mutant, Path(folder))
                for name, bug in bugs.items()
                if bug.by is harness
            }
            trials.add(try_bugs(harness, planted, right, cases_of(harness)))
    return trials


# Counting

Pick = Callable[[Judged], bool]


def is_flat(judged: Judged) -> bool:
    return judged.case.problem.inputs == "flat"


def is_drawn(judged: Judged) -> bool:
    return judged.case.context is None


def is_wrong(judged: Judged) -> bool:
    return judged.out_differs


def in_type(dtype: str) -> Pick:
    return lambda judged: judged.case.problem.dtype == dtype


def over(tokens: int) -> Pick:
    return lambda judged: judged.case.context == tokens


def given_by(subject: str) -> Pick:
    return lambda judged: judged.subject == subject


def picked(all_judged: Iterable[Judged], *picks: Pick) -> list[Judged]:
    return [judged for judged in all_judged if all(pick(judged) for pick in picks)]


def bugs_in(judged: Iterable[Judged]) -> set[str]:
    return {each.subject for each in judged}


def bugs_rejected(judged: Iterable[Judged], rule: str) -> set[str]:
    return {each.subject for each in judged if rule in each.rejected}


def per_cent(part: int, whole: int) -> str:
    """A share, rounded down: 100 % is all of them."""
    return f"{100 * part // whole} %" if whole else "-"


def problems_in(judged: Iterable[Judged]) -> set[str]:
    return {str(each.case.problem) for each in judged}


def alarms(right: list[Judged], rule: str) -> tuple[int, int]:
    """Problems on which a rule rejects a right answer, and all problems, each once."""
    rejected = problems_in(each for each in right if rule in each.rejected)
    return len(rejected), len(problems_in(right))


def alarming(right: list[Judged], rule: str) -> bool:
    rejected, tried = alarms(right, rule)
    return rejected > ALARMING * tried


# The tables


def rows(heading: list[str], cell: Callable[[str, int], str]) -> Iterator[str]:
    """A table with a line for each rule; `cell` is asked for (name of the rule, column)."""
    yield f"| rule | {' | '.join(heading)} |"
    yield "| --- " + "| ---: " * len(heading) + "|"
    for rule in RULES:
        cells = [cell(rule.name, column) for column in range(len(heading))]
        yield f"| {rule.name} | {' | '.join(cells)} |"


KINDS: Final[dict[str, tuple[Pick, ...]]] = {"flat": (is_flat,), "all": ()}
"""Kinds of inputs that the tables count, by name."""

COLUMNS: Final = [(kinds, dtype) for kinds in KINDS for dtype in QUERY_DTYPES]


def power_table(trials: Trials) -> Iterator[str]:
    """Share of the bugs that a rule rejects on one drawn problem at least."""
    picks = [(is_drawn, in_type(dtype), *KINDS[kinds]) for kinds, dtype in COLUMNS]
    wrong = [picked(trials.wrong, is_wrong, *each) for each in picks]
    right = [picked(trials.right, *each) for each in picks]

    def cell(rule: str, column: int) -> str:
        rejected, all_bugs = bugs_rejected(wrong[column], rule), bugs_in(wrong[column])
        return per_cent(len(rejected), len(all_bugs)) + MARK * alarming(right[column], rule)

    heading = [
        f"{kinds} {dtype}, {len(bugs_in(each))}"
        for (kinds, dtype), each in zip(COLUMNS, wrong, strict=True)
    ]
    return rows(heading, cell)


def alarm_table(trials: Trials) -> Iterator[str]:
    """Problems on which a rule rejects right implementations, drawn and long."""
    subjects = list(dict.fromkeys(judged.subject for judged in trials.right))
    right = [picked(trials.right, in_type(dtype), *KINDS[kinds]) for kinds, dtype in COLUMNS]

    def cell(rule: str, column: int) -> str:
        counts = (alarms(picked(right[column], given_by(s)), rule)[0] for s in subjects)
        return " / ".join(map(str, counts))

    heading = [
        f"{kinds} {dtype}, {len(problems_in(each))}"
        for (kinds, dtype), each in zip(COLUMNS, right, strict=True)
    ]
    return rows(heading, cell)


def context_table(trials: Trials) -> Iterator[str]:
    """Share of the wrong answers over long contexts that a rule rejects."""
    columns = [(dtype, tokens) for dtype in QUERY_DTYPES for tokens in CONTEXTS]
    picks = [(in_type(dtype), over(tokens)) for dtype, tokens in columns]
    wrong = [picked(trials.wrong, is_wrong, *each) for each in picks]
    right = [picked(trials.right, *each) for each in picks]

    def cell(rule: str, column: int) -> str:
        rejected = sum(rule in each.rejected for each in wrong[column])
        return per_cent(rejected, len(wrong[column])) + MARK * alarming(right[column], rule)

    heading = [
        f"{dtype} {tokens:,}, {len(each)}"
        for (dtype, tokens), each in zip(columns, wrong, strict=True)
    ]
    return rows(heading, cell)


def disagreement_table(trials: Trials) -> Iterator[str]:
    """Wrong answers that a rule rejects and ours, seeing `out` only, accepts; and the reverse."""
    wrong = {dtype: picked(trials.wrong, is_wrong, in_type(dtype)) for dtype in QUERY_DTYPES}
    columns = [(whose, dtype) for whose in ("by it", "by ours") for dtype in QUERY_DTYPES]

    def cell(rule: str, column: int) -> str:
        whose, dtype = columns[column]
        one, other = OURS_WITHOUT_LSE.name, rule
        if whose == "by it":
            one, other = other, one
        return str(
            sum(one in each.rejected and other not in each.rejected for each in wrong[dtype])
        )

    return rows([f"only {whose}, {dtype}" for whose, dtype in columns], cell)


def survivors(trials: Trials) -> Iterator[str]:
    """For each rule the bugs that it rejects on no problem at all, with the dtypes."""
    wrong = picked(trials.wrong, is_wrong)
    yield "| rule | bugs that survive every problem, and in which type |"
    yield "| --- | --- |"
    for rule in RULES:
        lives: dict[str, list[str]] = {}
        for dtype in QUERY_DTYPES:
            in_dtype = picked(wrong, in_type(dtype))
            for name in sorted(bugs_in(in_dtype) - bugs_rejected(in_dtype, rule.name)):
                lives.setdefault(name, []).append(dtype)
        words = [f"`{name}` ({' '.join(dtypes)})" for name, dtypes in sorted(lives.items())]
        if len(words) > MANY:
            words = [f"{len(words)} of {len(bugs_in(wrong))}"]
        yield f"| {rule.name} | {', '.join(words) or 'none'} |"


def beyond_out(trials: Trials, bugs: dict[str, Bug]) -> Iterator[str]:
    """The bugs about which `out` says nothing."""
    in_out = bugs_in(picked(trials.wrong, is_wrong))
    in_lse = bugs_in(trials.wrong) - in_out
    for what, names in (
        ("Only the log-sum-exp is wrong", in_lse),
        (
            "Neither `out` nor the log-sum-exp has another bit on these problems",
            trials.asked - in_out - in_lse,
        ),
        ("Not asked, because the harness wants longer contexts", set(bugs) - trials.asked),
        ("Raises an exception on some problem, which is not counted", trials.raised),
    ):
        listed = ", ".join(f"`{name}`" for name in bugs if name in names)
        yield f"- {what}: {listed or 'none'}."


def tables(trials: Trials, bugs: dict[str, Bug]) -> str:
    """What stands between the marks of the page."""
    parts = [
        ("### Planted bugs rejected", power_table(trials)),
        ("### Right answers rejected", alarm_table(trials)),
        ("### Wrong answers rejected, by tokens in the cache", context_table(trials)),
        ("### Where a rule and ours disagree", disagreement_table(trials)),
        ("### What survives", survivors(trials)),
        ("### Not in the tables", beyond_out(trials, bugs)),
    ]
    return "\n".join(f"{title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts)


def main() -> None:
    torch.set_num_threads(1)
    bugs = compared()
    written = tables(run(bugs), bugs)
    before, begin, rest = DOC.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    DOC.write_text(f"{before}{begin}\n{written}\n{end}{after}")
