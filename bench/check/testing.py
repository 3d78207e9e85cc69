"""Conformance tests for anybody's kernel, in their own test file, with pytest.

    from bench.check.testing import parametrize_with_checks
    from my_kernel import attention

    @parametrize_with_checks([attention])
    def test_attention(kernel, check):
        check(kernel)

Each kernel and check is a test of its own. The kernel runs in pytest's process: what may crash or
hang is for `pagedbench check`. This module is in `bench`, and not beside the checks in
`reference`, because Triton kernels need the interpreter's corrections and its memory checker, which
`reference` may not import. Nothing else of pagedbench imports pytest.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from bench.check.expected_file import read_expected
from bench.check.record import Failure, replay_command
from bench.check.trial import PROBLEMS, Trial, TrialOutcome, run_trial
from bench.check.watching import watcher
from bench.command.project import subjects_under_test
from reference.attention.catalogue import CHECKS, Check
from reference.attention.checks import Watch
from reference.attention.contract import AttentionKernel, capabilities_of
from reference.attention.coverage import can_show
from reference.attention.expected import Expectations, ExpectedFailure, ExpectedState, strangers
from reference.attention.verdict import Status
from subjects.attention.resolve import as_subject, resolve_kernel

__all__ = [
    "ExpectedFailure",
    "KernelCheck",
    "StaleExpectedFailure",
    "UnmetExpectedFailure",
    "parametrize_with_checks",
]

DEVICES: Final = ("cpu", "cuda")


class StaleExpectedFailure(UserWarning):
    """A failure is expected that no longer happens: every problem that it covers passed."""


class UnmetExpectedFailure(UserWarning):
    """A failure is expected that nothing here could show: another kernel, or no such problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCheck:
    """A check that is bound to a kernel's name: what a test calls."""

    name: str
    """Of the kernel: how the command line would find it, or what it is called."""
    replayable: bool
    """Whether the command line finds it by that name."""
    check: Check
    """The check."""
    expected: tuple[ExpectedFailure, ...]
    """Failures that are expected of this kernel in this check."""
    problems: int
    seed: int
    device: str
    watch: Watch | None
    """As in `parametrize_with_checks`."""

    def __repr__(self) -> str:
        return self.check.name

    def __call__(self, kernel: AttentionKernel) -> None:
        """Draw problems and hold the kernel to the check.

        Fails with the smallest problem that shows a failure, skips where the check can show
        nothing of the kernel, and is an expected failure if only what was expected failed.
        """
        __tracebackhide__ = True
        if not can_show(self.check, capabilities_of(kernel)):
            pytest.skip(f"{self.check.name}: {self.name} supports no problem that can show it")
        expectations = Expectations.of(self.expected, self.name)
        trial = Trial(
            kernel=kernel,
            check=self.check,
            problems=self.problems,
            seed=self.seed,
            device=self.device,
            watch=self.watch or watcher(),
        )
        outcome = run_trial(trial, expectations)
        if outcome.failure is not None:
            pytest.fail(self._report(outcome.failure), pytrace=False)
        self._conclude(outcome, expectations)

    def _conclude(self, outcome: TrialOutcome, expectations: Expectations) -> None:
        __tracebackhide__ = True
        judged = outcome.counts[Status.PASSED] + outcome.counts[Status.EXPECTED]
        if not judged:
            reason = next(iter(outcome.unseen), "it supports none of the problems that were drawn")
            pytest.skip(f"{self.check.name}: {reason}")
        for met in expectations.met:
            if met.state is ExpectedState.STALE:
                warnings.warn(StaleExpectedFailure(met.said), stacklevel=3)
            elif met.state is ExpectedState.UNMET:
                warnings.warn(UnmetExpectedFailure(met.said), stacklevel=3)
        failing = [met for met in expectations.met if met.state is ExpectedState.FAILED]
        if failing:
            pytest.xfail("; ".join(met.said for met in failing))

    def _report(self, failure: Failure) -> str:
        lines = [
            f"{self.name} fails {self.check.name}: {self.check.law}",
            *(f"  seen     {finding}" for finding in failure.findings),
            f"  problem  {failure.problem}",
        ]
        if failure.first_problem != failure.problem:
            lines.append(f"  drawn as {failure.first_problem}")
        if self.replayable:
            command = replay_command(self.name, self.device, failure.problem)
            lines.append(f"  replay   {command}")
        else:
            lines.append(
                f"  replay   pagedbench check cannot find {self.name}: make it a function of a "
                f"module to replay it there"
            )
        return "\n".join(lines)


def parametrize_with_checks(
    kernels: Sequence[AttentionKernel | str] | None = None,
    *,
    expected_failures: Iterable[ExpectedFailure] | str | os.PathLike[str] = (),
    problems: int = PROBLEMS,
    seed: int = 0,
    device: str = "cpu",
    watch: Watch | None = None,
) -> pytest.MarkDecorator:
    """Decorate a test of (kernel, check): it runs once for each kernel and each check.

    Parameters
    ----------
    kernels
        Functions of a `PagedBatch`, or names as for `pagedbench check --kernel`. Left out: those of
        the project's pyproject.toml.
    expected_failures
        Known failures with their reasons, or a TOML file of them (`bench.check.expected_file`).
    problems
        How many to draw for each check.
    seed
        The same seed draws the same problems.
    device
        `cpu` or `cuda`.
    watch
        Who watches memory accesses; by default the memory checker, where Triton is interpreted.

    Raises ValueError if there is no kernel, a number is out of range, a device is unknown, the file
    is at fault, or an expected failure in a list is about none of the kernels. Raises SubjectError
    if a kernel cannot be found, is not callable, or its capabilities leave nothing to check.

    Warns
    -----
    UnmetExpectedFailure
        If an expected failure in a file is about none of the kernels.
    """
    kernels = subjects_under_test("kernels") if kernels is None else kernels
    if isinstance(kernels, str) or not kernels:
        raise ValueError(f"kernels={kernels!r}: give a list with at least one kernel")
    if problems < 1:
        raise ValueError(f"problems={problems}: draw at least 1 for each check")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: seeds are 0 to {2**32 - 1}")
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: choose one of {', '.join(DEVICES)}")
    named = [_named(kernel, device) for kernel in kernels]
    expected = _expected(expected_failures, [name for _, name, _ in named])
    return pytest.mark.parametrize(
        ("kernel", "check"),
        [
            pytest.param(
                kernel,
                KernelCheck(
                    name=name,
                    replayable=replayable,
                    check=check,
                    expected=tuple(
                        one for one in expected if one.is_of(name) and one.check == check.name
                    ),
                    problems=problems,
                    seed=seed,
                    device=device,
                    watch=watch,
                ),
                id=f"{name.rpartition(':')[2]}-{check.name}",
            )
            for kernel, name, replayable in named
            for check in CHECKS
            if check.concerns(capabilities_of(kernel))
        ],
    )


def _expected(
    given: Iterable[ExpectedFailure] | str | os.PathLike[str], names: list[str]
) -> tuple[ExpectedFailure, ...]:
    if isinstance(given, str | os.PathLike):
        expected = read_expected(Path(given))
        for one in strangers(expected, names):
            message = f"{given}: {one} is about none of {', '.join(names)}; remove or correct it"
            warnings.warn(UnmetExpectedFailure(message), stacklevel=3)
        return expected
    expected = tuple(given)
    for one in expected:
        if not isinstance(one, ExpectedFailure):
            raise ValueError(
                f"expected_failures has {one!r}; give ExpectedFailure(kernel=..., "
                f"check=..., reason=...), or the path of a file"
            )
    for one in strangers(expected, names):
        raise ValueError(f"expected failure {one} is about none of {', '.join(names)}; correct it")
    return expected


def _named(kernel: AttentionKernel | str, device: str) -> tuple[AttentionKernel, str, bool]:
    """A kernel, its name, and whether the command line finds it by that name."""
    if isinstance(kernel, str):
        return resolve_kernel(kernel, device=device).kernel, kernel, True
    found = _place(kernel)
    name: str = found or getattr(kernel, "__qualname__", None) or type(kernel).__name__
    return as_subject(kernel, name, device=device).kernel, name, found is not None


def _place(kernel: Any) -> str | None:
    """Where the command line finds a kernel, as `--kernel` has it; None if nowhere."""
    module_name, qualified = (
        getattr(kernel, "__module__", None),
        getattr(kernel, "__qualname__", ""),
    )
    found: Any = sys.modules.get(module_name or "")
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if found is not kernel or module_name is None:
        return None  # a lambda, a local function, an object
    if "." in module_name:
        return f"{module_name}:{qualified}"  # its package may be needed to import it
    file = Path(inspect.getsourcefile(inspect.unwrap(kernel)) or "")
    inside = file.is_relative_to(Path.cwd())
    return f"{file.relative_to(Path.cwd()) if inside else file}:{qualified}"
