"""The record of `pagedbench compile`, as JSON: figures, and the comparison with a baseline."""

from __future__ import annotations

from bench.compile.run import Compiled, Refused, Result
from bench.machine.record import Record
from kernels.compiled.baseline import Baseline, Comparison, Status, TargetBaseline, compare
from kernels.compiled.figures import VariantFigures


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


def compile_record(
    compiled: Compiled,
    baseline: Baseline | None,
    *,
    baseline_name: str | None,
    not_compared: str | None,
    pagedbench: str,
    elapsed_s: float,
) -> CompileRecord:
    """Turn a run into data, beside a baseline of the same tools or the reason for none."""
    comparisons = []
    if baseline is not None:
        for result in compiled.results:
            target = baseline.targets.get(result.target)
            same_tools = target and target.toolchain == compiled.toolchains.get(result.target)
            base = target.variants.get(result.variant) if target and same_tools else None
            comparisons.append(compare(result.target, result.variant, base, result.figures))
    return CompileRecord(
        pagedbench=pagedbench,
        triton=compiled.triton,
        toolchains=compiled.toolchains,
        elapsed_s=elapsed_s,
        complete=compiled.complete,
        results=compiled.results,
        refused=compiled.refused,
        baseline=baseline_name,
        not_compared=not_compared,
        comparisons=comparisons,
    )


def as_baseline(compiled: Compiled) -> Baseline:
    """A run's figures as a baseline for later ones."""
    targets: dict[str, dict[str, VariantFigures]] = {}
    for result in compiled.results:
        targets.setdefault(result.target, {})[result.variant] = result.figures
    return Baseline(
        triton=compiled.triton,
        targets={
            name: TargetBaseline(toolchain=compiled.toolchains[name], variants=variants)
            for name, variants in targets.items()
        },
    )
