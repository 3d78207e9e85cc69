"""Ahead-of-time figures of a side's kernels as counters, by `pagedbench compile` of its tree.

They are facts about the code and its compiler, the same in every run: where sources, interpreter
and so the compiler are the same on both sides, there is nothing to compile. The tree's own command
line is called, by the path of its files: what compiles a kernel is the contestant's code as much as
the kernel is, in its interpreter, and its options are what stays the same from release to release.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from bench.command.project import Project
from bench.gate.benchmark import Count
from bench.gate.children import run_child
from bench.gate.contestant import Side
from bench.gate.subjects import key_of
from bench.gate.temporary import temporary_folder
from bench.gate.trees import digest_of
from bench.gate.truth import tree_command
from bench.gate.turns import FIXED, OF_DEVICE, GateFailure, environment_of

FIGURES: Final[Mapping[str, str]] = {
    "registers": "registers",
    "spill_bytes": "bytes",
    "spill_instructions": "instructions",
    "stack_bytes": "bytes",
    "shared_bytes": "bytes",
    "instructions": "instructions",
}
"""Fields of `kernels.compiled.figures.LaunchFigures`, with their units."""

TARGETS: Final = ("sm_90",)
"""Compiled for unless a configuration names others: half a minute a side."""

SOURCES: Final = ("kernels/**/*.py", "reference/**/*.py", "bench/compile/*.py", "bench/compile*.py")
"""That the figures of a tree depend on."""

RIGHT_OR_WORSE: Final = (0, 1)
"""Exit codes of `pagedbench compile` with which there are figures."""


def could_differ(sides: Mapping[str, Side]) -> bool:
    """Whether the sides' kernels, or what compiles them, are not the same."""
    return len({(side.python, digest_of(side.tree, SOURCES)) for side in sides.values()}) > 1


def compiled_counters(
    side: Side, *, stopped: Callable[[], bool], targets: Sequence[str] = TARGETS
) -> dict[str, dict[str, Count]]:
    """Figures of every kernel on some targets, by `compiled/TARGET/VARIANT`.

    What does not compile has no figures, and one failure: from none to one is worse than any limit.
    """
    bench = side.tree / "bench"
    if not ((bench / "compile").is_dir() or (bench / "compile.py").is_file()):
        return {}
    record = _compiled(side, [], {}, stopped=stopped, targets=targets)
    return {
        f"compiled/{result['target']}/{result['variant']}": dict(_counted(result["figures"]))
        for result in record["results"]
    }


def subject_counters(
    side: Side,
    project: Project,
    problems: Mapping[str, Sequence[str]],
    *,
    stopped: Callable[[], bool],
    targets: Sequence[str] = TARGETS,
) -> dict[str, dict[str, Count]]:
    """The same of the Triton kernels that subjects launch for some problems, as for a GPU.

    Raises GateFailure: as above.
    """
    found = {}
    for subject, specs in problems.items():
        options = ["--kernel", subject]
        options += [part for spec in specs for part in ("--problem", spec)]
        record = _compiled(
            side, options, environment_of(side, project), stopped=stopped, targets=targets
        )
        for result in record["results"]:
            key = key_of(f"compiled/{result['target']}", subject, result["variant"])
            found[key] = dict(_counted(result["figures"]))
    return found


def _compiled(
    side: Side,
    options: Sequence[str],
    environment: Mapping[str, str],
    *,
    stopped: Callable[[], bool],
    targets: Sequence[str],
) -> dict[str, Any]:
    """The record of `pagedbench compile`; one without results if stopped."""
    with temporary_folder() as folder:
        file = folder / "compiled.json"
        words = ["compile", *options, "--json", str(file)]
        words += [part for target in targets for part in ("--target", target)]
        ended = run_child(
            tree_command(side, *words),
            folder=folder if side.ours else side.root,
            log=folder / "log",
            environment={**FIXED, **OF_DEVICE["cpu"], "TRITON_INTERPRET": "0", **environment},
            stopped=stopped,
        )
        if ended is None or stopped():
            return {"results": []}
        if ended.code not in RIGHT_OR_WORSE or not file.is_file():
            raise GateFailure(
                f"{side.record.name}: pagedbench compile ended with {ended.code}: "
                f"{ended.said.strip()[-1000:]}"
            )
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return record


def _counted(figures: Mapping[str, Any]) -> Iterator[tuple[str, Count]]:
    """Counters of one variant; of several launches each has its own, by kernel and number."""
    yield "failures", Count(int(bool(figures["failure"])), "failures to compile")
    for number, launched in enumerate(figures["launches"]):
        where = f"{launched['kernel']}#{number}" if number else launched["kernel"]
        for name, unit in FIGURES.items():
            if name in launched:
                yield f"{name}.{where}", Count(launched[name], unit)
        if launched.get("loop"):
            loop = launched["loop"]["instructions"]
            yield f"instructions.loop.{where}", Count(loop, "instructions")
