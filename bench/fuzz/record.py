"""What is kept of a campaign, and of each finding: JSON."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from bench.fuzz.film import Reel
from bench.machine.environment import FuzzEnvironment
from bench.machine.record import StrictRecord
from reference.allocator.machine import Finding
from reference.allocator.programs import Program
from reference.errors import BadInput
from reference.reading import read_whole
from subjects.allocators.resolve import BUILT_IN

FORMAT: Final = "pagedbench fuzz trace 1"

Verdict = Literal["no finding", "wrong", "incomplete"]


def _writable(text: object) -> object:
    return text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text


Said = Annotated[str, BeforeValidator(_writable)]
"""What an allocator says; half a character, which no file can hold, becomes an escape."""


class Subject(StrictRecord):
    """An allocator, and how to get at it."""

    name: str
    """As it was asked for."""
    engine_python: str | None = None
    """Interpreter that was named; None for the one that it needs."""
    version: Said = ""
    """What it says of its version; may be empty."""


class Trace(StrictRecord):
    """A finding and how it was come by, to be run again."""

    format: Literal["pagedbench fuzz trace 1"] = FORMAT
    """Of the file."""
    allocator: Subject
    """Whose it is."""
    check: str
    message: Said
    at_the_end: bool
    """As in `reference.allocator.machine.Finding`."""
    repeats: bool
    """Whether it shows every time: False where the same program did not show it again."""
    program: Program
    """The smallest that shows it."""
    examples: int
    """Programs that it took, this one included."""
    first_steps: int
    """Steps of the program as it was drawn."""
    attempts: int
    """Programs that were run to make it smaller."""
    seed: int
    """Of the campaign."""
    environment: FuzzEnvironment
    """Where it was found."""

    @property
    def finding(self) -> Finding:
        """What is to be shown again."""
        return Finding(self.check, self.message, self.program, self.at_the_end)

    def to_json(self) -> str:
        """The file's text; fields of steps that say nothing are left out."""
        text = self.model_dump_json(indent=1, exclude_defaults=True)
        # Tokens in a row, not in a column.
        text = re.sub(
            r"\[[\d\s,-]+\]", lambda row: "[" + " ".join(row[0][1:-1].split()) + "]", text
        )
        return f'{{\n "format": "{FORMAT}",{text[1:]}\n'


class FindingRecord(StrictRecord):
    """A finding in the record of a campaign."""

    trace: Trace
    """The finding itself."""
    saved_to: str | None
    pytest_file: str | None
    """Files that it was written to; None where that failed."""
    replay: str | None
    """The command that shows it again, to be typed in the same folder."""
    film: Reel | None = None
    """The pool after each step; None where nobody asked, and in older records."""


class KnownRecord(StrictRecord):
    """A finding that was known before."""

    file: str
    """Its trace."""
    check: str
    """What it fails."""
    still_shows: bool
    """Whether it does; if not, it is not known any more but mended."""


class FuzzRecord(StrictRecord):
    """A campaign: what was done, and what was found."""

    allocator: Subject
    seed: int
    last_seed: int | None = None
    """Of a campaign, which began with `seed`."""
    asked_examples: int | None
    asked_seconds: float | None
    """The budget."""
    examples: int
    steps: int
    seconds: float
    steps_per_s: float
    states: int
    calls: dict[str, int]
    """As in `bench.fuzz.campaign.Tally`; shrinking is not in them."""
    checks: dict[str, str]
    """By check: `passed`, `failed`, or `not run: REASON`."""
    not_asked: list[str]
    """Calls that make no sense and that the allocator cannot be asked."""
    known: list[KnownRecord] = Field(default_factory=list)
    """Findings that were known, and not looked for."""
    findings: list[FindingRecord] = Field(default_factory=list)
    verdict: Verdict
    """`no finding`, `wrong`, or `incomplete` where it was interrupted before it found anything."""
    exit_code: int
    environment: FuzzEnvironment


def read_trace(path: Path) -> Trace:
    """Read a trace back. It is data: nothing that it names is started or imported."""
    try:
        return Trace.model_validate_json(read_whole(path, what="a trace"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(
            f"{path} is no trace of a finding: {where}: {first['msg']}; name a file that "
            f"`pagedbench fuzz` saved"
        ) from None


def to_run(
    trace: Trace, path: Path, *, allocator: str | None, python: str | None
) -> tuple[str, str | None]:
    """The allocator and the interpreter to run a trace with.

    What a file names starts only where it is built in, or where the user names it as well.
    """
    said = trace.allocator
    if allocator is not None:
        return allocator, python
    if said.name not in BUILT_IN or (said.engine_python is not None and python is None):
        what = said.name if said.name not in BUILT_IN else said.engine_python
        raise BadInput(
            f"--replay {path}: it names {what}, and a file alone starts no code; if you trust "
            f"that, type: {replay_command(path, said)}"
        )
    return said.name, python


def read_known(paths: Sequence[Path], allocator: str) -> dict[str, Finding]:
    """Read the known findings of an allocator, by the name of their file."""
    known = {}
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            trace = read_trace(file)
            if trace.allocator.name == allocator:
                known[str(file)] = trace.finding
            elif not path.is_dir():
                raise BadInput(f"{file}: a finding of {trace.allocator.name}, not of {allocator}")
    return known


def slug(trace: Trace) -> str:
    """A file's name for a finding: the same for the same program."""
    name = Path(trace.allocator.name).name.replace(".py:", "-")[:80]
    digest = hashlib.sha256(str(trace.program).encode(errors="backslashreplace")).hexdigest()[:8]
    words = f"{name}-{trace.check}-{digest}"
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-").lower()


def replay_command(path: Path, allocator: Subject) -> str:
    """The command that runs a trace again, with every name that the trace may not give itself."""
    words = ["pagedbench", "fuzz", "--replay", str(path)]
    if allocator.name not in BUILT_IN or allocator.engine_python is not None:
        words += ["--allocator", allocator.name]
    if allocator.engine_python is not None:
        words += ["--engine-python", allocator.engine_python]
    return shlex.join(words)
