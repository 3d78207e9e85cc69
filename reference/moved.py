"""Old import paths: they go on working for one release, and warn.

A room says in its `__init__` which of its modules have moved.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class MovedModules(MetaPathFinder, Loader):
    """Finds modules of a room under the names that they had before."""

    def __init__(self, room: str, moved: Mapping[str, str]) -> None:
        self._now = {f"{room}.{old}": f"{room}.{new}" for old, new in moved.items()}
        self._spec: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the old names only."""
        return ModuleSpec(name, self) if self._name_now(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Warn, and give the module of the new name."""
        now = self._name_now(spec.name)
        warnings.warn(
            f"{spec.name} is {now} now, and this path goes with the next release; what is meant "
            f"for others is in pagedbench and pagedbench.testing",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(now)
        self._spec[spec.name] = module.__spec__
        return module

    def _name_now(self, name: str) -> str:
        """Of a module that has moved, or that lies in a package that has; empty for others."""
        package, _, module = name.rpartition(".")
        if name in self._now or package not in self._now:
            return self._now.get(name, "")
        return f"{self._now[package]}.{module}"

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is: it has run, under its own name."""
        old = module.__spec__
        assert old is not None
        module.__spec__ = self._spec.pop(old.name)


def moved_modules(room: str, moved: Mapping[str, str]) -> None:
    """Let modules of a room be imported by their old names, given within the room."""
    # First: what lies in a package of an old name would be loaded a second time otherwise.
    sys.meta_path.insert(0, MovedModules(room, moved))


def moved_names(package: str, homes: Mapping[str, str], name: str) -> object:
    """What a package's `__getattr__` returns for names that lay in a module of its name.

    `homes` has, for each name, the module of the package that it lies in now.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    now = f"{package}.{homes[name]}"
    warnings.warn(
        f"{package}.{name} is in {now} now, and this path goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
    found = getattr(importlib.import_module(now), name)
    setattr(sys.modules[package], name, found)  # and said once
    return found
