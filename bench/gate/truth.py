"""The project's subjects of each side against the truth, before anything is compared.

Each is judged in processes of its own, by `pagedbench check` and `pagedbench fuzz`, with the same
seed on both sides: of a tree of pagedbench by that tree's own commands, else by ours, with the
subject in the side's interpreter.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.command.exit_codes import INTERRUPTED, RIGHT, USAGE, WRONG
from bench.command.project import Project
from bench.gate.benchmark import Benchmark
from bench.gate.children import QUIET, our_command, run_child
from bench.gate.contestant import Side, same_code
from bench.gate.record import SideTruth, SubjectKind, TruthRecord
from bench.gate.temporary import temporary_folder
from bench.gate.turns import GateFailure, environment_of

FROM_THE_TREE: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = sys.argv[2:]; "
    "from bench.cli import main; main()"
)
"""Runs the command line of a tree of pagedbench, which is its first argument."""

FEW: Final = 50
"""Problems that one child has done before another one has imported torch."""

SAVED: Final = ".pagedbench"
"""In the project's folder: where head's findings are kept, made when there is one."""


def tree_command(side: Side, *arguments: str) -> list[str]:
    """`pagedbench ARGUMENTS` in a side's interpreter: the tree's own, else ours."""
    if side.ours:
        return [side.python, "-P", "-c", FROM_THE_TREE, str(side.tree), *arguments]
    return our_command(*arguments, python=side.python)


@dataclass(frozen=True, slots=True, kw_only=True)
class Court:
    """Whose subjects are to be judged, and by what."""

    project: Project
    kernels: Sequence[str]
    allocators: Sequence[str]
    """Those that are asked about."""
    device: str
    seed: int
    """Of the problems and programs."""
    stopped: Callable[[], bool]
    """Whether to end."""

    @property
    def subjects(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.kernels, *self.allocators)

    def judge(self, sides: Mapping[str, Side]) -> list[TruthRecord]:
        """Judge all subjects, those of trees that are the same once; none if stopped.

        Raises GateFailure: a command failed, which is no finding about a subject.
        """
        alike = same_code(sides.values())
        # Head first: it is what is judged, and the base only explains it.
        head = self._side(sides["head"], keep=True)
        base = head if alike else self._side(sides["base"], keep=False)
        if self.stopped():
            return []
        found = []
        for (kind, subject), said in head.items():
            theirs = base[kind, subject]
            if isinstance(said, Unusable) and isinstance(theirs, Unusable):
                raise GateFailure(f"{subject}: {said}")
            found.append(
                TruthRecord(
                    subject=subject,
                    kind=kind,
                    seed=self.seed,
                    base=_not_checked(theirs) if isinstance(theirs, Unusable) else theirs,
                    head=_broken(said) if isinstance(said, Unusable) else said,
                )
            )
        return found

    def _side(self, side: Side, *, keep: bool) -> dict[tuple[SubjectKind, str], Judged]:
        found: dict[tuple[SubjectKind, str], Judged] = {}
        for name, judged in self._checked(side, self.kernels).items():
            found["kernel", name] = judged
        for name in self.allocators:
            found["allocator", name] = self._fuzzed(side, name, keep=keep)
        return found

    def _checked(self, side: Side, names: Sequence[str]) -> dict[str, Judged]:
        """What `pagedbench check` says of kernels."""
        if not names or self.stopped():
            return {}
        options = [part for name in names for part in ("--kernel", name)]
        options += ["--problems", str(self.project.problems), "--no-timing"]
        options += ["--device", self.device, "--seed", str(self.seed)]
        if self.project.problems <= FEW:
            options += ["--lanes", "1"]
        record = self._asked(side, "check", options)
        if isinstance(record, Unusable) and len(names) > 1:
            # One that cannot be imported keeps the others from being checked.
            one_by_one = [self._checked(side, [name]) for name in names]
            return {name: judged for each in one_by_one for name, judged in each.items()}
        if isinstance(record, Unusable):
            return dict.fromkeys(names, record)
        return {each["name"]: _of_kernel(each) for each in record["kernels"]}

    def _fuzzed(self, side: Side, name: str, *, keep: bool) -> Judged:
        """What `pagedbench fuzz` says of an allocator; `keep` what it finds."""
        options = ["--allocator", name, "--examples", str(self.project.problems)]
        options += ["--seed", str(self.seed), "--database", "none", "--findings", "1"]
        kept = self.project.root / SAVED if keep else None
        record = self._asked(side, "fuzz", options, save=kept)
        if isinstance(record, Unusable):
            return record
        return _of_allocator(record, shlex.join(["pagedbench", "fuzz", *options]))

    def _asked(
        self, side: Side, command: str, options: Sequence[str], *, save: Path | None = None
    ) -> dict[str, Any] | Unusable:
        """The record of a command; or what it says of a subject that it cannot use."""
        engine: list[str] = []
        if not side.ours and side.python != sys.executable:
            engine = ["--engine-python", side.python]
        with temporary_folder() as folder:
            file = folder / "record.json"
            words = [command, *options, *engine, "--json", str(file)]
            words += ["--save", str(save or folder / "saved")]
            # Who judges is ours; whoever is judged has the side's interpreter.
            judge = side if side.ours else replace(side, python=sys.executable)
            ended = run_child(
                tree_command(judge, *words),
                folder=side.root,
                log=folder / "log",
                environment={**environment_of(side, self.project), **QUIET},
                stopped=self.stopped,
            )
            if ended is None or ended.code == INTERRUPTED:
                return Unusable("the run was ended before it was checked")
            if ended.code in (RIGHT, WRONG) and file.is_file():
                record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                return record
            said = side.named_in(ended.said.strip())
            if ended.code == USAGE:
                return Unusable(said.rpartition("error: ")[2].strip())
            if side.ours and ended.code == WRONG:  # Python's own, of a tree that does not import
                return Unusable(said.rpartition("\n")[2])
            raise GateFailure(
                f"{side.record.name}: pagedbench {command} ended with {ended.code}: {said[-1000:]}"
            )


def truth_at_a_point(benchmark: Benchmark, wrong: Mapping[str, str], device: str) -> TruthRecord:
    """A subject that is wrong where it is measured, on which sides, and what was seen."""
    kernel = bool(benchmark.problem)

    def of(role: str) -> SideTruth:
        if role not in wrong:
            return SideTruth(verdict="right", tried=1)
        words = ["pagedbench", "check", "--kernel", benchmark.subject, "--device", device]
        return SideTruth(
            verdict="wrong",
            tried=1,
            check="truth" if kernel else "serving",
            finding=wrong[role],
            problem=benchmark.problem,
            replay=shlex.join([*words, "--problem", benchmark.problem]) if kernel else "",
        )

    return TruthRecord(
        subject=benchmark.subject,
        kind="kernel" if kernel else "allocator",
        seed=0,
        base=of("base"),
        head=of("head"),
    )


def with_points(
    drawn: Sequence[TruthRecord], at_points: Sequence[TruthRecord]
) -> list[TruthRecord]:
    """What drawn problems showed of each subject; where they showed nothing, what a point did."""
    found = {each.subject: each for each in drawn}
    for each in at_points:
        known = found.get(each.subject, each)
        sides = {
            role: getattr(each if getattr(known, role).verdict != "wrong" else known, role)
            for role in ("base", "head")
            if getattr(each, role).verdict == "wrong"
        }
        found[each.subject] = known.model_copy(update=sides)
    return list(found.values())


class Unusable(str):
    """What a command says of a subject that it cannot use; no finding of its own."""

    __slots__ = ()


Judged = SideTruth | Unusable


def _broken(said: str) -> SideTruth:
    """Head's subject cannot be used, and base's could."""
    return SideTruth(verdict="wrong", check="import", finding=said)


def _not_checked(said: str) -> SideTruth:
    return SideTruth(verdict="not checked", finding=said)


def _of_kernel(record: Mapping[str, Any]) -> SideTruth:
    failure = record["failure"]
    if failure is None:
        if not record["problems"]:
            return SideTruth(verdict="not checked", finding="no problem that it can do was drawn")
        return SideTruth(verdict="right", tried=record["problems"])
    return SideTruth(
        verdict="wrong",
        tried=record["problems"],
        check=failure["check"],
        finding="; ".join(failure["findings"][:2]),
        problem=failure["problem"],
        replay=failure["replay"],
    )


def _of_allocator(record: Mapping[str, Any], again: str) -> SideTruth:
    if not record["findings"]:
        return SideTruth(verdict="right", tried=record["examples"])
    first = record["findings"][0]
    return SideTruth(
        verdict="wrong",
        tried=record["examples"],
        check=first["trace"]["check"],
        finding=first["trace"]["message"],
        replay=first["replay"] if first["replay"] and SAVED in first["replay"] else again,
    )
