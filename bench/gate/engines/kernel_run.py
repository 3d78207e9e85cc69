"""Releases of kernels: judged and compiled by `pagedbench check` and `pagedbench compile`.

Both are children, told to use the release's environment. What was kept is not done again. What was
kept when nothing was expected to fail is judged by what is expected now: a release that was right
is so still, and one whose failure nothing of it covers is as wrong. Only others are run again.
"""

from __future__ import annotations

import itertools
import json
import shlex
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from bench.command.exit_codes import HARNESS_FAILED, INTERRUPTED, RIGHT, USAGE, WRONG
from bench.command.progress import Progress
from bench.gate.children import QUIET, our_command, run_child
from bench.gate.engines.assigned import Assigned, assigned
from bench.gate.engines.history import placed
from bench.gate.engines.keeping import Result
from bench.gate.engines.kernel_record import (
    Checked,
    Code,
    Compiled,
    Judged,
    KernelRelease,
    KernelSettings,
    KernelsRecord,
    Wrong,
)
from bench.gate.engines.record import Located
from bench.gate.engines.work import Compared, Work
from bench.gate.temporary import temporary_folder
from bench.machine.facts import version_of
from reference.attention.expected import ExpectedFailure
from reference.attention.problem import AttentionProblem
from reference.errors import BadInput
from subjects.attention.resolve import BUILT_IN, check_name

WITH_ENGINES: Final = {name: known for name, known in BUILT_IN.items() if known.environment}
"""Kernels that an engine's environment is for; all others run in any that has none."""

LAST: Final = 600
"""Letters of a command's last words that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsPlan(Compared):
    """What to compare."""

    settings: KernelSettings
    waivers: tuple[ExpectedFailure, ...] = ()
    """What the settings' text of expected failures says."""


def plan_kernels(
    kernels: Sequence[str], environments: Sequence[str], *, settings: KernelSettings, **more: Any
) -> KernelsPlan:
    """Which kernel is judged in which environment. Raises BadInput: as `assigned`."""
    for name in kernels:
        check_name(name)
    entries = assigned(kernels, environments, WITH_ENGINES)
    return KernelsPlan(entries=tuple(entries), settings=settings, **more)


def compare_kernels(
    plan: KernelsPlan, *, progress: Progress, stop: threading.Event
) -> KernelsRecord:
    """Take every step that has not been taken; KeyboardInterrupt ends it, and what is done counts.

    Raises BadInput: an environment cannot be built, or check refuses a kernel or a release.
    """
    work = _Work(plan, progress, stop)
    complete = False
    with suppress(KeyboardInterrupt):
        work.all()
        complete = True
    return work.record(complete=complete)


class _Failed(Exception):
    """A command did not do its work; the message has its last words."""


class _Work(Work[KernelsPlan, KernelRelease]):
    """A comparison under way."""

    made, kind, built_in = KernelRelease, "kernel", BUILT_IN

    def alone(self) -> None:
        """Compile and check every release, and judge it at the problems that were asked for."""
        entries = self.entries
        self.build()
        self.progress.begin("compiling", len(entries))
        for entry in entries:
            self._compile(entry)
            self.progress.advance(1)
        self.progress.begin("checking", len(entries))
        for entry in entries:
            self._check(entry)
            self.progress.advance(1)
        also = self.plan.settings.also
        self._judge_all("running known findings", dict.fromkeys(entries, also))

    def all(self) -> None:
        """Every step, of every release."""
        plan = self.plan
        self.ahead(plan)
        self.alone()
        found = {entry: tuple(self._problems(entry.subject)) for entry in self.entries}
        if any(found.values()):
            also = tuple(dict.fromkeys(itertools.chain(*found.values())))
            settings = plan.settings.model_copy(update={"also": also})
            self.ahead(replace(plan, settings=settings))
        self._judge_all("running each other's findings", found)

    def _judge_all(self, what: str, problems: Mapping[Assigned, Sequence[str]]) -> None:
        asked = [
            (entry, problem)
            for entry, mine in problems.items()
            for problem in mine
            if problem not in self.releases[entry.name].wrong_at
        ]
        self.progress.begin(what, len(asked))
        for entry, problem in asked:
            self._judge(entry, problem)
            self.progress.advance(1)

    def record(self, *, complete: bool) -> KernelsRecord:
        """What is known now."""
        releases = list(self.releases.values())
        code = RIGHT
        if not complete:
            code = INTERRUPTED
        elif any(each.trouble for each in releases):
            code = HARNESS_FAILED
        elif any(
            wrong and before.wrong_at.get(problem) is False
            for before, after in pairwise(releases)
            if before.kernel == after.kernel
            for problem, wrong in after.wrong_at.items()
        ):
            code = WRONG
        return KernelsRecord(
            settings=self.plan.settings,
            located=self._located(),
            complete=complete,
            exit_code=code,
            **self.conditions(),
        )

    def _check(self, entry: Assigned) -> None:
        settings = self.plan.settings
        asked = {"problems": settings.problems, "seed": settings.seed, "device": settings.device}

        def do() -> Checked:
            options = [f"--{name}={value}" for name, value in asked.items()]
            found = self._record(
                "check", entry, [*options, "--findings=1", "--no-timing"], save=True
            )
            (kernel,) = found["kernels"]
            failure = kernel["failure"]
            return Checked(
                problems=kernel["problems"],
                wrong=failure
                and Wrong(
                    check=failure["check"],
                    problem=failure["problem"],
                    first_problem=failure["first_problem"],
                    finding="; ".join(failure["findings"][:1]),
                ),
            )

        def covered(kept: Checked) -> bool:
            wrong = kept.wrong
            if wrong is None:
                return False
            specs = filter(None, (wrong.problem, wrong.first_problem))
            return self._expects(entry, specs, check=wrong.check)

        try:
            key = self.key(entry, **asked)
            checked = self._once("checked", entry, key, Checked, do, covered=covered)
        except _Failed as failed:
            self.trouble(entry, "check", failed)
        else:
            wrong_at = {checked.wrong.problem: True} if checked.wrong is not None else {}
            self.update(entry, checked=checked, wrong_at=wrong_at)

    def _judge(self, entry: Assigned, problem: str) -> None:
        device = self.plan.settings.device

        def do() -> Judged:
            options = [f"--problem={problem}", f"--device={device}"]
            code, said, _ = self._asked("check", entry, options)
            if code not in {RIGHT, WRONG, USAGE}:
                raise _Failed(said)
            return Judged(wrong={RIGHT: False, WRONG: True}.get(code))

        def covered(kept: Judged) -> bool:
            return bool(kept.wrong) and self._expects(entry, [problem])

        key = self.key(entry, problem=problem, device=device)
        try:
            judged = self._once("judged", entry, key, Judged, do, covered=covered)
        except _Failed as failed:
            self.trouble(entry, f"check at {problem}", failed)
            return
        if judged.wrong is not None:
            known = self.releases[entry.name].wrong_at
            self.update(entry, wrong_at={**known, problem: judged.wrong})

    def _once(
        self,
        step: str,
        entry: Assigned,
        key: dict[str, Any],
        kind: type[Result],
        do: Callable[[], Result],
        *,
        covered: Callable[[Result], bool],
    ) -> Result:
        """As of the store; `covered`: whether a failure may be one of those that are expected."""
        expected = [
            (one.check, one.when, one.line, one.message) for one in self._expected_of(entry)
        ]
        _, plain = self.store.find(step, entry.name, key, kind)
        if expected and (plain is None or covered(plain)):
            key = {**key, "expected": sorted(expected)}
        return self.store.once(step, entry.name, key, kind, do)

    def _expected_of(self, entry: Assigned) -> list[ExpectedFailure]:
        return [one for one in self.plan.waivers if one.is_of(entry.subject)]

    def _expects(self, entry: Assigned, specs: Iterable[str], *, check: str | None = None) -> bool:
        """Whether one of these problems is expected to fail a check: any, if none is named."""
        problems = [AttentionProblem.parse(spec) for spec in specs]
        return any(
            one.covers(check or one.check, problem)
            for one in self._expected_of(entry)
            for problem in problems
        )

    def _compile(self, entry: Assigned) -> None:
        targets = self.plan.settings.targets

        def do() -> Compiled:
            options = [f"--target={target}" for target in targets]
            return _compiled(self._record("compile", entry, [*options, "--no-compare"]))

        key = self.key(entry, targets=targets, triton=version_of("triton"))
        try:
            compiled = self.store.once("compiled", entry.name, key, Compiled, do)
        except (_Failed, BadInput) as failed:
            # A kernel without Triton, or one that declines these problems, can be right all the
            # same; one that is refused, check refuses next.
            self.trouble(entry, "compile", failed)
        else:
            self.update(entry, compiled=compiled)

    def _record(
        self, command: str, entry: Assigned, options: Sequence[str], *, save: bool = False
    ) -> dict[str, Any]:
        """The record that a command wrote.

        Raises BadInput: it refuses what it is asked. Raises _Failed: it wrote none.
        """
        code, said, record = self._asked(command, entry, options, save=save, json_too=True)
        if code == USAGE:
            raise BadInput(f"{entry.name}: {said.rpartition('error: ')[2].strip()[-LAST:]}")
        if record is None or code not in {RIGHT, WRONG}:
            raise _Failed(f"pagedbench {command} ended with {code}: {said.strip()[-LAST:]}")
        return record

    def _asked(
        self,
        command: str,
        entry: Assigned,
        options: Sequence[str],
        *,
        save: bool = False,
        json_too: bool = False,
    ) -> tuple[int, str, dict[str, Any] | None]:
        """A command's exit code, its words, and its record where one was asked for."""
        words = [command, "--kernel", entry.subject, *_engine(entry), *options]
        with temporary_folder() as folder:
            file = folder / "record.json"
            words += ["--json", str(file)] if json_too else []
            words += ["--save", str(folder / "saved")] if save else []
            if command == "check" and (text := self.plan.settings.expected):
                (folder / "expected.toml").write_text(text, encoding="utf-8")
                words += ["--expected", str(folder / "expected.toml")]
            ended = run_child(
                our_command(*words),
                folder=Path.cwd(),
                log=folder / "log",
                environment=QUIET,
                stopped=self.stop.is_set,
            )
            if ended is None or ended.code == INTERRUPTED:
                raise KeyboardInterrupt
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            return ended.code, ended.said, found

    def _problems(self, kernel: str) -> dict[str, str]:
        """Problems that a release of a kernel was found wrong at, and by which check."""
        return {
            wrong.problem: wrong.check
            for each in self.releases.values()
            if each.kernel == kernel and each.checked is not None
            for wrong in [each.checked.wrong]
            if wrong is not None
        }

    def _located(self) -> list[Located]:
        located = []
        for kernel in dict.fromkeys(entry.subject for entry in self.plan.entries):
            mine = [each for each in self.releases.values() if each.kernel == kernel]
            checks = self._problems(kernel)
            for problem in dict.fromkeys(problem for each in mine for problem in each.wrong_at):
                spans, gone_in, missing = placed(
                    [(each.name, each.wrong_at.get(problem)) for each in mine]
                )
                if not spans:
                    continue
                last = next(each for each in mine if each.name == spans[-1][-1])
                located.append(
                    Located(
                        allocator=kernel,
                        check=f"{checks.get(problem, 'wrong')} at {problem}",
                        spans=spans,
                        gone_in=gone_in,
                        missing=missing,
                        trace=None,
                        replay=self._replay(last, problem),
                    )
                )
        return located

    def _replay(self, release: KernelRelease, problem: str) -> str:
        words = ["pagedbench", "check", "--kernel", release.kernel]
        words += ["--engine-python", ",".join(release.requirements)] * bool(release.requirements)
        return shlex.join([*words, "--device", self.plan.settings.device, "--problem", problem])


def _engine(entry: Assigned) -> list[str]:
    """How a command is told the environment."""
    return ["--engine-python", ",".join(entry.requirements)] if entry.requirements else []


def _compiled(record: dict[str, Any]) -> Compiled:
    """What is kept of the record of `pagedbench compile`."""
    code, failures = [], {}
    for result in record["results"]:
        figures = result["figures"]
        target, problem = result["target"], figures["problem"]
        if figures["failure"] is not None:
            failures[f"{target} {problem}"] = figures["failure"].partition("\n")[0]
        for launch in figures["launches"]:
            loop = launch["loop"]
            keys = loop["keys"] if loop is not None else None
            code.append(
                Code(
                    target=target,
                    problem=problem,
                    kernel=launch["kernel"],
                    registers=launch["registers"],
                    spills=launch["spill_instructions"],
                    instructions=launch["instructions"],
                    instructions_per_key=loop["instructions"] / keys if keys else None,
                )
            )
    return Compiled(
        triton=record["triton"],
        toolchains=record["toolchains"],
        code=code,
        failures=failures,
    )
