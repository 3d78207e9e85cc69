"""What comparisons of releases have in common: environments, keys, and what is known so far."""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.command.progress import Progress
from bench.gate.engines.assigned import Assigned
from bench.gate.engines.keeping import Store, adapter_digest
from bench.gate.engines.kernel_record import KernelRelease
from bench.gate.engines.record import Release
from bench.machine.facts import version_of
from subjects.environments import BuiltIn
from subjects.interpreters import interpreter_with

R = TypeVar("R", Release, KernelRelease)


class Work(Generic[R]):
    """A comparison under way."""

    def __init__(
        self,
        made: type[R],
        kind: str,
        entries: Sequence[Assigned],
        built_in: Mapping[str, BuiltIn],
        *,
        store: Path,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self.kind = kind
        self.entries = entries
        self.progress = progress
        self.stop = stop
        self.store = Store(store)
        self.releases: dict[str, R] = {}
        for each in entries:
            known = {
                "name": each.name,
                kind: each.subject,
                "requirements": list(each.requirements),
                "adapter": adapter_digest(each.subject, built_in),
            }
            self.releases[each.name] = made.model_validate(known)

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
