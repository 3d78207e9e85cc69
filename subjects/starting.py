"""How a child finds our modules, in whatever interpreter and folder it is started.

In a checkout the rooms are top-level packages. In an installed package they lie inside
`pagedbench`, so that nobody's `kernels` or `bench` is hidden, and none hides ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

PREFIX: Final = __name__.removesuffix("subjects.starting")
"""What the names of our modules begin with: `pagedbench.` in an installed package, else empty."""

HOME: Final = Path(__file__).resolve().parents[1]
"""The folder that the rooms lie in."""

_ON_THE_PATH: Final = "import sys; sys.path.insert(0, {home!r}); "

# By its file, not by the path: all that is installed beside it would come along, into an
# interpreter that has packages of its own.
_BY_ITS_FILE: Final = (
    "import importlib.util as u, sys; "
    "s = u.spec_from_file_location('pagedbench', {init!r}, submodule_search_locations=[{home!r}]); "
    "m = sys.modules['pagedbench'] = u.module_from_spec(s); s.loader.exec_module(m); "
)


def start_of(module: str) -> str:
    """Code for `python -c` that imports a module of ours as `ours`.

    `module` is its name in a checkout, as `bench.check.worker`. By path, not by `-m`: where a
    command is typed there may be a folder called bench as well. What is imported is no garbage:
    looking for some meanwhile takes a tenth of the start.
    """
    code = _BY_ITS_FILE if PREFIX else _ON_THE_PATH
    home = str(HOME)
    return code.format(home=home, init=str(HOME / "__init__.py")) + (
        f"import gc; gc.disable(); import {PREFIX}{module}; gc.enable(); "
        f"ours = sys.modules[{PREFIX + module!r}]; "
    )
