"""From `module:attribute` or `path/to/file.py:attribute` to the object.

The standard library only: a worker runs this in the interpreter of whatever is under test.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from reference.errors import BadInput, described

OUR_ROOMS: Final = ("bench", "kernels", "paged", "reference", "subjects")
"""Packages of ours that a user may well have too. In a subject's process ours are meant."""


class SubjectError(BadInput):
    """A name that leads to no subject; the message says at which step, and the remedy."""


def load(name: str, *, what: str, built_in: tuple[str, ...] = ()) -> Any:
    """Import what a name stands for: `module:attribute` or `path/to/file.py:attribute`, perhaps
    dotted.

    What it should lead to, and which names would have been known, is for messages. Raises
    SubjectError if the name has no attribute part, or the module, file or attribute is not there.
    """
    where, attribute = split(name, what=what, built_in=built_in)
    module = _import_file(Path(where), what) if where.endswith(".py") else _import(where, what)
    try:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        offered = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise SubjectError(
            f"{where} has no {attribute!r}; it offers {', '.join(offered) or 'nothing callable'}"
        ) from None
    return found


def split(name: str, *, what: str, built_in: tuple[str, ...] = ()) -> tuple[str, str]:
    """The module or file of a name, and the attribute. Nothing is imported. Errors are those of
    `load`.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise SubjectError(
            f"{name!r} names no {what}: use module:function, path/to/file.py:function"
            + (f", or one of {', '.join(built_in)}" if built_in else "")
        )
    if where.endswith(".py") and not Path(where).is_file():
        raise SubjectError(f"{where} is not a file (looked from {Path.cwd()})")
    return where, attribute


def _import(name: str, what: str) -> Any:
    # A console script does not look for modules where it was started; a user expects it to.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return _run(lambda: importlib.import_module(name), f"{name!r} from {Path.cwd()}", what)


def _import_file(path: Path, what: str) -> Any:
    sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it
    spec = importlib.util.spec_from_file_location(f"subject_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SubjectError(f"{path} cannot be loaded as Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _run(partial(spec.loader.exec_module, module), str(path), what)
    return module


def _run(imports: Callable[[], Any], where: str, what: str) -> Any:
    try:
        return imports()
    except (Exception, SystemExit) as error:
        raise SubjectError(
            f"cannot import {where}: {described(error)}{_remedy(error, what)}"
        ) from error


def _remedy(error: BaseException, what: str) -> str:
    missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
    room = (missing or "").partition(".")[0]
    if room not in OUR_ROOMS:
        return ""
    return (
        f"; here {room!r} is pagedbench's own package: name the {what}'s file, path/to/file.py:"
        f"function, and let it import nothing called {room}"
    )
