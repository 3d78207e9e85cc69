"""From a name on the command line to a kernel.

A name is a built-in (`torch`, `triton`), `module:function`, or `path/to/file.py:function`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reference.contract import AttentionKernel, Capabilities, capabilities_of

BUILT_IN: Final = {
    "torch": "paged.attention:paged_attention",
    "triton": "kernels.attention:paged_attention",
}
"""Ours, on equal terms with everybody's: resolved by the same code."""


class SubjectError(ValueError):
    """A name that leads to no kernel; the message says at which step, and the remedy."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel under test.

    Attributes
    ----------
    name
        As it was asked for.
    kernel
        The callable.
    capabilities
        What it declares, or everything.
    """

    name: str
    kernel: AttentionKernel
    capabilities: Capabilities


def resolve_kernel(name: str) -> Subject:
    """Import the kernel that a name stands for.

    Raises
    ------
    SubjectError
        If the name has no function part, the module or file does not import, or the function is
        missing or not callable.
    """
    where, colon, attribute = BUILT_IN.get(name, name).rpartition(":")
    if not colon or not where or not attribute:
        raise SubjectError(
            f"{name!r} names no kernel: use module:function, path/to/file.py:function, or one of "
            f"{', '.join(BUILT_IN)}"
        )
    module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    try:
        kernel: Any = module
        for part in attribute.split("."):
            kernel = getattr(kernel, part)
    except AttributeError:
        offered = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise SubjectError(
            f"{where} has no {attribute!r}; it offers {', '.join(offered) or 'nothing callable'}"
        ) from None
    if not callable(kernel):
        raise SubjectError(
            f"{name} is {type(kernel).__name__}, not callable: "
            f"name a function that takes a PagedBatch"
        )
    try:
        capabilities = capabilities_of(kernel)
    except TypeError as error:
        raise SubjectError(str(error)) from None
    return Subject(name, kernel, capabilities)


def _import_module(name: str) -> Any:
    # A console script does not look for modules where it was started; a user expects it to.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SubjectError(
            f"cannot import {name!r} from {Path.cwd()}: {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise SubjectError(f"{path} is not a file (looked from {Path.cwd()})")
    sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it
    spec = importlib.util.spec_from_file_location(f"subject_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SubjectError(f"{path} cannot be loaded as Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SubjectError(f"cannot import {path}: {type(error).__name__}: {error}") from error
    return module
