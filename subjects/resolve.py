"""From a name on the command line to a kernel.

A name is a built-in (`torch`, `triton`), `module:function`, or `path/to/file.py:function`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reference.contract import AttentionKernel, Capabilities, capabilities_of
from reference.problem import MAX_BLOCK_SIZE, MAX_HEAD_DIM

BUILT_IN: Final = {
    "torch": "paged.attention:paged_attention",
    "triton": "kernels.attention:paged_attention",
}
"""Ours, on equal terms with everybody's: resolved by the same code."""

OUR_ROOMS: Final = ("bench", "kernels", "paged", "reference", "subjects")
"""Packages of ours that a user may well have too. In a subject's process ours are meant."""

SMALLEST_HEAD_DIM: Final = 16


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
        If the name has no function part, the module or file does not import, the function is
        missing or not callable, or what it declares leaves no problem that it could be given.
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
    for complaint in _complaints(capabilities):
        raise SubjectError(f"{name}: its capabilities' {complaint}")
    return Subject(name, kernel, capabilities)


def _complaints(capabilities: Capabilities) -> Iterator[str]:
    """What leaves no problem to draw, or no problem of the contract."""
    if not capabilities.dtypes:
        yield "dtypes is empty, so there is nothing to check; name at least one"
    largest = capabilities.max_head_dim
    if not isinstance(largest, int) or largest < SMALLEST_HEAD_DIM:
        yield f"max_head_dim is {largest!r}; the smallest head size is {SMALLEST_HEAD_DIM}"
    head_dims = capabilities.head_dims
    if head_dims is not None and not _all(_is_head_dim, head_dims):
        yield (
            f"head_dims is {_shown(head_dims)}; name multiples of 8 from {SMALLEST_HEAD_DIM} to "
            f"{MAX_HEAD_DIM}, or None for all"
        )
    elif head_dims is not None and max(head_dims) > largest:
        yield f"head_dims has {max(head_dims)}, but max_head_dim is {largest}; raise or drop it"
    sizes = capabilities.block_sizes
    if sizes is not None and not _all(_is_block_size, sizes):
        yield (
            f"block_sizes is {_shown(sizes)}; name powers of two from 1 to {MAX_BLOCK_SIZE}, or "
            f"None for all"
        )


def _all(check: Callable[[object], bool], values: object) -> bool:
    # Annotations bind nobody: a list, or a single number, may stand where a frozenset should.
    return isinstance(values, Collection) and len(values) > 0 and all(map(check, values))


def _is_head_dim(size: object) -> bool:
    return isinstance(size, int) and SMALLEST_HEAD_DIM <= size <= MAX_HEAD_DIM and size % 8 == 0


def _is_block_size(size: object) -> bool:
    return isinstance(size, int) and 1 <= size <= MAX_BLOCK_SIZE and not size & (size - 1)


def _shown(values: object) -> str:
    return repr(sorted(values, key=repr)) if isinstance(values, Collection) else repr(values)


def _import_module(name: str) -> Any:
    # A console script does not look for modules where it was started; a user expects it to.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SubjectError(
            f"cannot import {name!r} from {Path.cwd()}: {type(error).__name__}: {error}"
            f"{_remedy(error)}"
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
        raise SubjectError(
            f"cannot import {path}: {type(error).__name__}: {error}{_remedy(error)}"
        ) from error
    return module


def _remedy(error: Exception) -> str:
    missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
    room = (missing or "").partition(".")[0]
    if room not in OUR_ROOMS:
        return ""
    return (
        f"; here {room!r} is pagedbench's own package: name the kernel's file, path/to/file.py:"
        f"function, and let it import nothing called {room}"
    )
