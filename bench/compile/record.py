"""The record of `pagedbench compile`, as JSON: figures, and the comparison with a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bench.machine.record import Record
from kernels.compiled.baseline import Baseline, Comparison, Status, TargetBaseline, compare
from kernels.compiled.figures import VariantFigures


class Result(Record):
    """One variant on one target."""

    target: str
    variant: str
    figures: VariantFigures


class Refused(Record):
    """What was not run, and why."""

    target: str
    variant: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What to compare with and what it is called, or why there is nothing."""

    baseline: Baseline | None = None
    name: str | None = None
    missing: str | None = None

    def compared(
        self, results: Iterable[Result], toolchains: Mapping[str, str]
    ) -> Iterator[Comparison]:
        """Results beside a baseline; a target of another assembler counts as one it has not."""
        if self.baseline is None:
            return
        for result in results:
            target = self.baseline.targets.get(result.target)
            same_tools = target and target.toolchain == toolchains.get(result.target)
            base = target.variants.get(result.variant) if target and same_tools else None
            yield compare(result.target, result.variant, base, result.figures)


class CompileRecord(Record):
    """Everything that `pagedbench compile` found."""

    schema_version: int = 1
    pagedbench: str
    triton: str
    toolchains: dict[str, str]
    """What the figures are of: Triton's version, and the assembler of each target."""
    elapsed_s: float
    complete: bool
    """Whether all was compiled that was asked for."""
    results: list[Result]
    refused: list[Refused]
    baseline: str | None
    """Name of the file that was compared with; None where nothing was compared."""
    not_compared: str | None
    """Why nothing was compared; None where something was."""
    comparisons: list[Comparison]
    """One for each result; empty where nothing was compared."""

    @property
    def worse(self) -> bool:
        """Whether something is worse than the baseline, or fails and is not known to."""
        known = {
            (each.target, each.variant)
            for each in self.comparisons
            if each.status in {Status.SAME, Status.CHANGED}
        }
        return any(each.status is Status.WORSE for each in self.comparisons) or any(
            each.figures.failure is not None and (each.target, each.variant) not in known
            for each in self.results
        )

    @property
    def compared(self) -> int:
        """Results that the baseline had figures for."""
        return sum(each.status is not Status.NEW for each in self.comparisons)

    def as_baseline(self) -> Baseline:
        """The figures as a baseline for later runs."""
        targets: dict[str, dict[str, VariantFigures]] = {}
        for result in self.results:
            targets.setdefault(result.target, {})[result.variant] = result.figures
        return Baseline(
            triton=self.triton,
            targets={
                name: TargetBaseline(toolchain=self.toolchains[name], variants=variants)
                for name, variants in targets.items()
            },
        )
