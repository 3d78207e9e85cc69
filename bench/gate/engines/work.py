"""What comparisons of releases have in common: environments, keys, and what is known so far.

With Ray the steps that a release needs no other one for are taken on the cluster ahead of time,
each release on a node, and what came of them is put where everything is kept. The comparison then
goes on as after an end: what is kept is not done again, and what failed there fails here, and is
said.
"""

from __future__ import annotations

import platform
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.command.progress import Progress, Silence
from bench.gate.engines.assigned import Assigned
from bench.gate.engines.keeping import Store, adapter_digest
from bench.gate.engines.kernel_record import KernelRelease
from bench.gate.engines.record import Release
from bench.machine.facts import version_of
from bench.machine.spread import on_ray, stopped_by, told_by_file
from subjects.environments import BuiltIn
from subjects.interpreters import interpreter_with

R = TypeVar("R", Release, KernelRelease)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What is the same of every comparison of releases."""

    entries: tuple[Assigned, ...]
    store: Path
    """Folder of what is kept."""
    ray: bool = False
    """Whether each release's own steps are taken on a Ray cluster."""
    ray_address: str | None = None
    """As for `on_ray`."""


P = TypeVar("P", bound=Compared)


class Work(Generic[P, R]):
    """A comparison under way."""

    made: type[R]
    kind: str
    built_in: Mapping[str, BuiltIn]

    def __init__(self, plan: P, progress: Progress, stop: threading.Event) -> None:
        self.plan = plan
        self.entries = plan.entries
        self.progress = progress
        self.stop = stop
        self.store = Store(plan.store)
        self.releases: dict[str, R] = {}
        for each in plan.entries:
            known = {
                "name": each.name,
                self.kind: each.subject,
                "requirements": list(each.requirements),
                "adapter": adapter_digest(each.subject, self.built_in),
            }
            self.releases[each.name] = self.made.model_validate(known)

    def alone(self) -> None:
        """Take the steps that a release needs no other one for."""
        raise NotImplementedError

    def ahead(self, plan: P) -> None:
        """Take those of a plan on the Ray cluster, if it is to run on one."""
        if not plan.ray:
            return
        self.progress.begin("on the Ray cluster", len(plan.entries))
        with told_by_file(self.stop) as over:
            calls = [
                (type(self), replace(plan, entries=(entry,)), self.store.texts(entry.name), over)
                for entry in plan.entries
            ]
            for texts in on_ray(
                _there, calls, address=plan.ray_address, cpus=None, over=self.stop.is_set
            ):
                self.store.take(texts)
                self.progress.advance(1)
        if self.stop.is_set():
            raise KeyboardInterrupt

    def build(self) -> None:
        """Every environment. Raises BadInput: one cannot be built."""
        self.progress.begin("building environments", len(self.entries))
        for entry in self.entries:
            if entry.requirements:
                interpreter_with(entry.requirements)
            self.progress.advance(1)

    def key(self, entry: Assigned, **more: Any) -> dict[str, Any]:
        """What every result of a release depends on."""
        return {
            self.kind: entry.subject,
            "requirements": entry.requirements,
            "adapter": self.releases[entry.name].adapter,
            "python": platform.python_version(),
            "torch": version_of("torch"),
            **more,
        }

    def update(self, entry: Assigned, **found: Any) -> None:
        """Put down what was found of a release."""
        self.releases[entry.name] = self.releases[entry.name].model_copy(update=found)

    def trouble(self, entry: Assigned, step: str, why: Exception) -> None:
        """Put down why a step of a release did not come to its end."""
        known = self.releases[entry.name].trouble
        self.update(entry, trouble={**known, step: str(why)})

    def conditions(self) -> dict[str, Any]:
        """Fields of every record: what is known, and on what."""
        return {
            "releases": list(self.releases.values()),
            "python": platform.python_version(),
            "torch": version_of("torch"),
            "pagedbench": version_of("pagedbench"),
            "measured_on": (self.store.last or datetime.now(UTC)).date().isoformat(),
        }


def _there(work: type[Work[P, R]], plan: P, texts: Mapping[str, str], over: Path) -> dict[str, str]:
    """On a node: the files of a release after its own steps, from those that were kept before."""
    with tempfile.TemporaryDirectory() as folder, stopped_by(over) as stop:
        store = Store(Path(folder))
        store.take(texts)
        # Whatever it is, it is done again where the comparison is, and said there.
        with suppress(Exception, KeyboardInterrupt):
            work(replace(plan, store=Path(folder)), Silence(), stop).alone()
        return store.texts()
