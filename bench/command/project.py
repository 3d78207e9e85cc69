"""What a repository says once, in `[tool.pagedbench]` of its pyproject.toml: who is under test.

    [tool.pagedbench]
    kernels = ["my_attention.paged:attention"]
    allocators = ["my_attention.pool:make"]

Commands without arguments take its subjects, and the gate compares them between commits.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.command.refusals import refusal
from reference.errors import BadInput
from reference.reading import read_text
from subjects.starting import HOME, PREFIX

FILE: Final = "pyproject.toml"

POINTS: Final = ("8x(q1 k512) h2 g4 d64 b16 bf16", "2x(q32 k256) h2 g4 d64 b16 bf16")
"""Decode and prefill in sizes that a kernel on a CPU, or interpreted, does in milliseconds."""

STREAMS: Final = ("azure-conv:system=256,prompts=4:32",)
"""Requests that share prefixes, so that there is something to find."""


class Project(BaseModel):
    """The table, and the folder that it stands in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    """Folder of the pyproject.toml; names of files in the table are relative to it."""
    kernels: tuple[str, ...] = ()
    """Kernels under test: `module:function` or `path/to/file.py:function`."""
    allocators: tuple[str, ...] = ()
    """Factories of allocators under test, named the same way."""
    points: tuple[str, ...] = POINTS
    """Problems at which the gate and asv take a kernel: specs, or `STREAM:REQUESTS` for a decode
    step of so many requests of a stream, built-in or a trace's file."""
    streams: tuple[str, ...] = STREAMS
    """What allocators serve there: `STREAM:REQUESTS`; a stream as `pagedbench waste --stream` takes
    it."""
    problems: int = Field(100, ge=1)
    """Drawn problems for each kernel, and programs for each allocator, with which the gate finds
    out whether a side is right."""
    path: tuple[str, ...] = ()
    """Folders that modules are imported from. Default: the root, and `src` where there is one."""
    build: str = ""
    """Command of a shell that is run once for each side of the gate, in its root: extensions."""
    requirements: tuple[str, ...] = ()
    """What an environment that the gate builds has besides pagedbench, as pip takes it."""
    suite: str = ""
    """`module` whose SUITE has further benchmarks; see `bench.gate.benchmark`."""
    gate: dict[str, Any] = {}
    """`[tool.pagedbench.gate]`: see `bench.gate.configuration`."""

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """Folders that modules are imported from, absolute."""
        named = self.path or ((".", "src") if (self.root / "src").is_dir() else (".",))
        return tuple((self.root / each).resolve() for each in named)

    def at(self, root: Path) -> Project:
        """The same table over another tree: a commit's, or a copy's."""
        return Project.model_validate({**self.model_dump(), "root": root})

    def importable(self) -> None:
        """Let this process and all that it starts import the project's modules."""
        before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        # Our own rooms are found without, and an engine's interpreter must not find them.
        folders = [str(folder) for folder in self.folders if folder != HOME]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys([*folders, *before])))
        # In a checkout of ours the rooms have short names: here no folder may come before them.
        at = 0 if PREFIX else len(sys.path)
        sys.path[at:at] = [folder for folder in folders if folder not in sys.path]

    def from_here(self, name: str) -> str:
        """A subject's name as it is typed in the present folder: of a file, with its path."""
        where, _, attribute = name.rpartition(":")
        if not where.endswith(".py"):
            return name
        return f"{os.path.relpath(self.root / where)}:{attribute}"


def subjects_under_test(
    kind: Literal["kernels", "allocators"], named: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The subjects that are named, or else those of the present folder's project, if it has some.

    Modules of the project can be imported from then on. Raises BadInput: the table is at fault.
    """
    subjects = tuple(dict.fromkeys(named or ()))
    try:
        project = find_project()
    except BadInput:
        if not subjects:
            raise
        return subjects  # which may well be found without
    if project is not None:
        subjects = subjects or tuple(project.from_here(name) for name in getattr(project, kind))
        if any(map(is_foreign, subjects)):
            project.importable()
    return subjects


def is_foreign(subject: str) -> bool:
    """Whether a subject's name is no built-in one."""
    return ":" in subject


def find_project(start: Path | None = None) -> Project | None:
    """The project of a folder, the present one unless given: the nearest table above it.

    Raises BadInput: the table says something unknown.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        file = folder / FILE
        if os.path.lexists(file) and (project := read_project(file)) is not None:
            return project
    return None


def present_project() -> Project:
    """The project of the present folder.

    Raises BadInput: it has none, or a folder of it is not there and nothing builds it.
    """
    project = find_project()
    if project is None:
        raise BadInput(
            f"no pyproject.toml above {Path.cwd()} has a table [tool.pagedbench], which says what "
            f"is compared: 'pagedbench init' writes one"
        )
    absent = [each for each in project.path if not (project.root / each).is_dir()]
    if absent and not project.build:
        raise BadInput(
            f"{project.root / FILE}: [tool.pagedbench] path: {absent[0]} is no folder; name the "
            f"folders that modules are imported from"
        )
    return project


def read_project(file: Path) -> Project | None:
    """The table of a pyproject.toml; None where it has none.

    Raises BadInput: the file cannot be read, is no TOML, or the table says something unknown.
    """
    text = read_text(file, what="a TOML file")
    try:
        table: Any = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError: 5,000 digits
        raise BadInput(f"{file} is no TOML: {error}; mend it") from None
    for name in ("tool", "pagedbench"):
        table = table.get(name)
        if table is None:
            return None
        if not isinstance(table, dict):
            raise BadInput(f"{file}: {name} is {table!r}; make it a table")
    try:
        return Project.model_validate({**table, "root": file.parent})
    except ValidationError as error:
        said = refusal(error, [name for name in Project.model_fields if name != "root"])
        raise BadInput(
            f"{file}: [tool.pagedbench] {said}; docs/project.md lists the keys"
        ) from None
