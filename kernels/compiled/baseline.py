"""Stored figures, and a run's figures beside them.

Figures are those of one Triton version and one assembler: under others they say nothing, and are
not compared. `baselines/` has one file for each Triton version that we know.
"""

from __future__ import annotations

import json
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from kernels.compiled.explain import Change, better, explain, is_better, is_worse, worse
from kernels.compiled.figures import LaunchFigures, VariantFigures
from reference.errors import BadInput
from reference.reading import read_whole

SCHEMA_VERSION: Final = 1

FOLDER: Final = Path(__file__).parent / "baselines"


class BaselineError(BadInput):
    """A baseline that cannot be compared with; the message has the remedy."""


class TargetBaseline(BaseModel):
    """One target's figures, by variant, and the assembler that they are of."""

    model_config = ConfigDict(frozen=True)

    toolchain: str
    variants: dict[str, VariantFigures]


class Baseline(BaseModel):
    """The figures of one Triton version."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    triton: str
    targets: dict[str, TargetBaseline]

    def updated(self, other: Baseline) -> Baseline:
        """With what another one of the same version has in place of what this one has."""
        targets = dict(self.targets)
        for name, new in other.targets.items():
            old = targets.get(name)
            kept = old.variants if old and old.toolchain == new.toolchain else {}
            targets[name] = TargetBaseline(
                toolchain=new.toolchain, variants={**kept, **new.variants}
            )
        return Baseline(triton=self.triton, targets=targets)


class Status(StrEnum):
    """What a comparison comes to."""

    SAME = "same"
    WORSE = "worse"
    BETTER = "better"
    CHANGED = "changed"
    """Different, and neither worse nor better."""
    NEW = "new"
    """The baseline does not have it, or has it for another problem or another assembler."""


class Comparison(BaseModel):
    """One variant on one target, beside its baseline."""

    model_config = ConfigDict(frozen=True)

    target: str
    variant: str
    status: Status
    changes: tuple[Change, ...] = ()


def built_in_path(triton: str) -> Path:
    """Where the baseline of a Triton version is kept, whether it is there or not."""
    return FOLDER / f"triton-{triton}.json"


def known_versions() -> list[str]:
    """Triton versions that we keep a baseline for."""
    return sorted(path.stem.removeprefix("triton-") for path in FOLDER.glob("triton-*.json"))


def read_baseline(path: Path) -> Baseline:
    """Read a baseline. Raises BadInput: there is no such file, or it is none of this schema."""
    text = read_whole(path, what=f"a baseline (make one with --save {path})")
    try:
        baseline = Baseline.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BaselineError(
            f"baseline {path}: {where}: {first['msg']}; make it anew with --save {path}"
        ) from None
    if baseline.schema_version != SCHEMA_VERSION:
        raise BaselineError(
            f"baseline {path}: schema {baseline.schema_version}, and this is {SCHEMA_VERSION}; "
            f"make it anew with --save {path}"
        )
    return baseline


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Write a baseline with each launch in a line of its own, so that a diff shows which moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_lines(baseline)))


def _lines(baseline: Baseline) -> list[str]:
    head = {"schema_version": baseline.schema_version, "triton": baseline.triton}
    lines = [json.dumps(head)[:-1] + ', "targets": {\n']
    for place, (name, target) in enumerate(baseline.targets.items()):
        lines.append(f'"{name}": {{"toolchain": {json.dumps(target.toolchain)}, "variants": {{\n')
        for row, (variant, figures) in enumerate(target.variants.items()):
            said = figures.model_dump(mode="json", exclude_defaults=True, exclude={"launches"})
            lines.append(f"{json.dumps(variant)}: {json.dumps(said)[:-1]}, ")
            launches = [
                json.dumps(
                    each.model_dump(mode="json", exclude_defaults=True), separators=(",", ":")
                )
                for each in figures.launches
            ]
            lines.append('"launches": [\n' + ",\n".join(launches) + "]}")
            lines.append(",\n" if row + 1 < len(target.variants) else "\n")
        lines.append("}}" + (",\n" if place + 1 < len(baseline.targets) else "\n"))
    return [*lines, "}}\n"]


def compare(
    target: str, variant: str, base: VariantFigures | None, now: VariantFigures
) -> Comparison:
    """Set a variant's figures beside those of the baseline."""
    if base is None or base.problem != now.problem:
        return Comparison(target=target, variant=variant, status=Status.NEW)
    changes = _outcome(base, now) or _launches(base, now)
    if is_worse(changes):
        status = Status.WORSE
    elif is_better(changes):
        status = Status.BETTER
    else:
        status = Status.CHANGED if changes else Status.SAME
    return Comparison(target=target, variant=variant, status=status, changes=changes)


def _outcome(base: VariantFigures, now: VariantFigures) -> tuple[Change, ...]:
    if now.failure is not None and base.failure is None:
        return (worse(f"does not compile: {now.failure.splitlines()[0]}"),)
    if base.failure is not None and now.failure is None:
        return (better("compiles, which it did not"),)
    return ()


def _launches(base: VariantFigures, now: VariantFigures) -> tuple[Change, ...]:
    before, after = _numbered(base.launches), _numbered(now.launches)
    little = "figures of other kernels say little"
    gone = [key for key in before if key not in after]
    come = [key for key in after if key not in before]
    changes = [worse(f"{_name(key)} is no longer launched; {little}") for key in gone]
    changes += [worse(f"{_name(key)} is launched besides; {little}") for key in come]
    for key in [key for key in before if key in after]:
        prefix = f"{_name(key)}: " if len(before) > 1 else ""
        changes += [
            Change(judgement=change.judgement, words=prefix + change.words)
            for change in explain(before[key], after[key])
        ]
    return tuple(changes)


def _numbered(launches: tuple[LaunchFigures, ...]) -> dict[tuple[str, int], LaunchFigures]:
    """Launches by the name of their kernel and how many came before with that name."""
    seen: Counter[str] = Counter()
    numbered = {}
    for launch in launches:
        numbered[launch.kernel, seen[launch.kernel]] = launch
        seen[launch.kernel] += 1
    return numbered


def _name(key: tuple[str, int]) -> str:
    name, before = key
    return f"{name} ({before + 1})" if before else name
