"""What a project sets once instead of on every command line: limits and margins, in TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.command.project import FILE, Project, read_project
from bench.command.refusals import refusal
from bench.gate.machine_code import TARGETS
from bench.gate.record import Design
from reference.errors import BadInput
from reference.reading import read_text


class GateConfiguration(BaseModel):
    """`[tool.pagedbench.gate]` of a pyproject.toml, or the whole of another TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    margin: float | None = Field(None, ge=0)
    equivalence: float | None = Field(None, gt=0)
    wall_margin: float | None = Field(None, gt=0)
    quarantine_sd: float | None = Field(None, gt=0)
    """As in `bench.gate.record.GateParameters`; None: the default."""
    compiled_targets: tuple[str, ...] = TARGETS
    """Targets that kernels are compiled for, as `pagedbench compile --target` names them."""
    limits: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """By how much counters may be worse, as fractions; see `bench.gate.counters.DEFAULT_LIMITS`."""

    def design(self) -> Design:
        """The tests with these margins.

        Raises BadInput: they contradict each other.
        """
        names = ("margin", "equivalence", "wall_margin", "quarantine_sd")
        given = {name: getattr(self, name) for name in names}
        try:
            return Design(**{k: v for k, v in given.items() if v is not None})
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise BadInput(f"gate configuration: {said}") from None


def configured(project: Project) -> GateConfiguration:
    """`[tool.pagedbench.gate]` of a project.

    Raises BadInput: it says something unknown.
    """
    return _validated(project.gate, f"{project.root / FILE}: [tool.pagedbench.gate]")


def read_configuration(file: Path) -> GateConfiguration:
    """The configuration of a file, `[tool.pagedbench.gate]` if it is a pyproject.toml.

    Raises BadInput: the file cannot be read, is no TOML, or says something unknown.
    """
    if file.name == FILE:
        project = read_project(file)
        return GateConfiguration() if project is None else configured(project)
    text = read_text(file, what="a TOML file")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError: 5,000 digits
        raise BadInput(f"{file} is no TOML: {error}; mend it or name another one") from None
    return _validated(content, str(file))


def _validated(content: dict[str, Any], where: str) -> GateConfiguration:
    try:
        return GateConfiguration.model_validate(content)
    except ValidationError as error:
        said = refusal(error, GateConfiguration.model_fields)
        raise BadInput(f"{where}: {said}; docs/gate.md lists what may be set") from None
