"""Starts a worker of the gate: the rooms of one tree, the benchmarks of another.

Run by path, `python -P bootstrap.py TREE HOME`. The rooms come from TREE, whatever else is
installed in the interpreter; `bench.gate`, `bench.machine` and `bench.search` come from HOME,
the checkout that runs the gate, whether or not TREE has them. The standard library only.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOMS = ("bench", "kernels", "paged", "reference", "subjects")
FROM_HOME = ("bench.gate", "bench.machine", "bench.search")


class RoomsOfTheTree(MetaPathFinder):
    """Finds the rooms in the tree and nowhere else.

    An installed checkout lies on the path as well: a room that the tree lacks must be missing, not
    be somebody else's.
    """

    def __init__(self, tree: Path, home: Path) -> None:
        self._tree = tree
        self._home = home

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a room lies; None for everything else."""
        if name in FROM_HOME:
            room = self._home.joinpath(*name.split("."))
            return importlib.util.spec_from_file_location(
                name, room / "__init__.py", submodule_search_locations=[str(room)]
            )
        if name not in ROOMS:
            return None
        spec = PathFinder.find_spec(name, [str(self._tree)])
        if spec is None:
            raise ModuleNotFoundError(f"{self._tree} has no room called {name}", name=name)
        return spec


def main() -> None:
    """Become the worker."""
    tree, home = map(Path, sys.argv[1:3])
    sys.path.insert(0, str(tree))
    sys.meta_path.insert(0, RoomsOfTheTree(tree, home))
    from bench.gate.worker import main as work

    work()


if __name__ == "__main__":
    main()
