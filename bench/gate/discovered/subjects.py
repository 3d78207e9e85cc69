"""What asv discovers of a project's own subjects: a class for kernels, and one for allocators.

Its series are `Kernel.time_call('kernel/NAME[POINT]')` and their like: the keys are the gate's. A
subject is imported from the environment, in which asv installed the commit that is measured. What
cannot be told of one, its evictions say, or a compiled kernel's time without a GPU, is n/a.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import chdir
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch

from bench.command.project import Project, find_project
from bench.gate.benchmark import Benchmark, Count, Prepared
from bench.gate.discovered import Group
from bench.gate.needs import Declined, Missing
from bench.gate.observing import observed
from bench.gate.subject_benchmarks import subject_benchmarks
from bench.gate.subjects import subjects_of
from bench.gate.timers import DEVICES, Device
from reference.errors import BadInput

COUNTERS: Final[Mapping[str, Mapping[str, str]]] = {
    "kernel": {
        "calls": "calls",
        "torch_ops": "operations",
        "torch_bytes": "bytes",
        "launches": "launches",
        "loaded": "bytes",
        "stored": "bytes",
    },
    "allocator": {
        "calls": "calls",
        "operations": "operations",
        "peak_blocks": "blocks",
        "wasted_slots": "slots",
        "preemptions": "preemptions",
        "missed_tokens": "tokens",
        "evictions": "evictions",
        "copies": "blocks",
    },
}
"""Counters that are followed, and their units; of all of them less is better."""


def suite(file: str | None = None) -> dict[str, type]:
    """Classes for asv, by name; `file` is that of the suite, in the project: the caller's.

    What the environment does not have installed is imported from the project as it stands, as in
    asv's existing environments.

    Raises BadInput: no pyproject.toml above it has a table, or the table says something unknown.
    """
    folder = Path(file or sys._getframe(1).f_globals["__file__"]).resolve().parent
    project = find_project(folder)
    if project is None:
        raise BadInput(f"no pyproject.toml above {folder} has a table [tool.pagedbench]")
    sys.path += [str(each) for each in project.folders if str(each) not in sys.path]
    return groups_of(project, module=folder.name)


def groups_of(project: Project, *, module: str) -> dict[str, type]:
    """The classes of a project; asv finds them in a module of this name."""
    subjects = subjects_of(project)
    benchmarks = {
        device: {each.key: each for each in subject_benchmarks(subjects, device=device)}
        for device in DEVICES
    }
    found = {}
    for kind in COUNTERS:
        keys = [key for key in benchmarks["cpu"] if key.startswith(f"{kind}/")]
        if keys:
            found[kind.capitalize()] = _group(kind, keys, benchmarks, project.root, module)
    return found


def on_a_gpu() -> bool:
    """Whether kernels are compiled and run on a GPU here. Asked in the process that runs an entry:
    asv forks it from one that must not have opened the device.
    """
    return torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"


def _group(
    kind: str,
    keys: list[str],
    benchmarks: Mapping[Device, Mapping[str, Benchmark]],
    root: Path,
    module: str,
) -> type:
    @lru_cache(maxsize=1)
    def prepared(key: str) -> Prepared:
        device: Device = "cuda" if kind == "kernel" and on_a_gpu() else "cpu"
        with chdir(root):  # files are named relative to it
            return _prepared(benchmarks[device][key])

    @lru_cache(maxsize=1)
    def counted(key: str) -> Mapping[str, int]:
        return _counted(prepared(key))

    def to_be_called(self: Group, key: str) -> None:
        """Take what this process has built."""
        made = prepared(key)
        if made.interpreted():
            raise NotImplementedError("it is interpreted here, of which no time says anything")
        self.call = made.call

    def call(self: Group, key: str) -> None:
        """One call."""
        self.call()
        if kind == "kernel" and on_a_gpu():
            torch.cuda.synchronize()

    members: dict[str, Any] = {
        "__doc__": f"The {kind}s of the project's table.",
        "__module__": module,
        "setup": to_be_called,
        "time_call": _with(call, keys),
        "peakmem_call": _with(lambda self, key: self.call(), keys),
    }
    for name, unit in COUNTERS[kind].items():
        members[f"track_{name}"] = _track(name, unit, keys, counted)
    return type(kind.capitalize(), (Group,), members)


def _track(
    name: str, unit: str, keys: list[str], counted: Callable[[str], Mapping[str, int]]
) -> Callable[..., int]:
    def track(self: Group, key: str) -> int:
        """An exact counter of one call."""
        return counted(key)[name]

    def there(key: str) -> None:
        if name not in counted(key):
            raise NotImplementedError(f"{key} has no {name}")

    track.unit, track.setup = unit, there  # type: ignore[attr-defined]
    found: Callable[..., int] = _with(track, keys)
    return found


def _with(function: Callable[..., Any], keys: list[str]) -> Callable[..., Any]:
    function.params = (keys,)  # type: ignore[attr-defined]
    return function


def _prepared(benchmark: Benchmark) -> Prepared:
    try:
        made = benchmark.prepare()
    except (Declined, Missing, BadInput) as why:
        raise NotImplementedError(str(why)) from None
    if "triton" in sys.modules and not made.interpreted():
        from kernels.interpreter import interpreting

        if benchmark.problem and benchmark.device == "cpu" and not interpreting():
            raise NotImplementedError("needs a GPU to be compiled, or TRITON_INTERPRET=1")
    made.call()
    return made


def _counted(made: Prepared) -> Mapping[str, int]:
    counts: dict[str, Count] = dict(made.counters())
    if not made.interpreted():
        counts |= observed(made.call)
    found = {name: each.value for name, each in counts.items() if not each.more_is_better}
    for moved in ("loaded", "stored"):
        if parts := [value for name, value in found.items() if name.startswith(f"{moved}.")]:
            found[moved] = sum(parts)
    return found
