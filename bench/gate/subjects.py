"""A project's subjects and what they are measured on, as data: the same for both sides.

Points and streams are resolved once, by the gate, whatever a side's tree has under their names. A
worker reads them from a file; so this module imports none of the rooms before they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bench.command.project import Project
    from bench.workloads.stream import RequestStream

SUBJECTS_VARIABLE: Final = "PAGEDBENCH_GATE_SUBJECTS"
"""Of a worker's environment: the file that has them."""

TREE_VARIABLE: Final = "PAGEDBENCH_GATE_TREE"
FOLDER_VARIABLE: Final = "PAGEDBENCH_GATE_FOLDER"
"""The same: the side's tree, in which the project's modules have to lie, and the project's folder
in it, in which a worker works."""

SIZES: Final = "h2 g4 d64 b16 bf16"
"""Of a point that only says which requests run."""

_OF_A_STREAM: Final = re.compile(r"(?P<stream>\S+):(?P<count>\d{1,18})(?: (?P<sizes>.+))?")

MAX_REQUESTS: Final = 999_999
"""Of a stream."""

LAW_REQUESTS: Final = 2000
"""Requests of a stream, of which those that run at once are drawn."""

DRAWN_EACH: Final = 4
"""Requests that are drawn for each that is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Requests as an allocator sees them."""

    prompt_tokens: list[int]
    output_tokens: list[int]
    """Tokens of each."""
    prefix: list[list[int]]
    """Ids of the prefix blocks of each: equal ids are equal tokens. Empty where none are known."""
    tokens_per_block: int
    """Of a prefix block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """Who is measured, and on what."""

    kernels: tuple[str, ...] = ()
    allocators: tuple[str, ...] = ()
    """As the project names them."""
    points: Mapping[str, str] = field(default_factory=dict)
    """Specs of problems, by the words of the project."""
    streams: Mapping[str, Lengths] = field(default_factory=dict)
    """What allocators serve, by the words of the project."""

    def write(self, file: Path) -> None:
        """Write them for a worker."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Subjects:
        """What `write` wrote."""
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        streams = {name: Lengths(**each) for name, each in said.pop("streams").items()}
        kernels, allocators = tuple(said.pop("kernels")), tuple(said.pop("allocators"))
        return cls(kernels=kernels, allocators=allocators, streams=streams, **said)


def subjects_of(project: Project) -> Subjects:
    """The subjects of a project, with its points and streams.

    Raises BadInput: a point is no problem, or a stream is none.
    """
    points = {point: spec_of(point, folder=project.root) for point in project.points}
    streams = {
        stream: lengths_of(stream, folder=project.root)
        for stream in (project.streams if project.allocators else ())
    }
    return Subjects(
        kernels=project.kernels,
        allocators=project.allocators,
        points=points if project.kernels else {},
        streams=streams,
    )


def suite_of(project: Project) -> str:
    """Where the project's own SUITE is: a file, or a module of ours; empty without one.

    A module of the project's becomes its file: it is the same for both sides.
    """
    where = project.suite.replace(".", "/")
    for folder in project.folders if where and not where.startswith("bench/") else ():
        for file in (folder / f"{where}.py", folder / where / "__init__.py"):
            if file.is_file():
                return str(file)
    return project.suite


def spec_of(point: str, *, folder: Path) -> str:
    """The problem of a point, as its spec: a spec itself, or `STREAM:REQUESTS [SIZES]`.

    Raises BadInput: it is neither.
    """
    from bench.workloads.running import running_lengths
    from reference.attention.problem import AttentionProblem
    from reference.attention.size import check_reference

    match = _matched(point)
    spec = point
    if match is not None:
        stream = _read(match["stream"], LAW_REQUESTS, folder=folder, said=point)
        lengths = running_lengths(stream, int(match["count"]), seed=0)
        requests = " ".join(f"(q1 k{length})" for length in sorted(lengths, reverse=True))
        spec = f"{requests} {match['sizes'] or SIZES}"
    problem = AttentionProblem.parse(spec)
    check_reference(problem)
    return str(problem)


def lengths_of(stream: str, *, folder: Path) -> Lengths:
    """What `STREAM:REQUESTS` stands for.

    Raises BadInput: there is no such stream.
    """
    from reference.errors import BadInput

    match = _matched(stream)
    if match is None or match["sizes"]:
        raise BadInput(
            f"[tool.pagedbench] streams: {stream!r}: write STREAM:REQUESTS, as in azure-conv:128"
        )
    found = _read(match["stream"], int(match["count"]), folder=folder, said=stream)
    blocks = found.prefix
    return Lengths(
        prompt_tokens=found.prompt_tokens.tolist(),
        # Every request that is served generates a token.
        output_tokens=[max(each, 1) for each in found.output_tokens.tolist()],
        prefix=[[] if blocks is None else blocks.of(row).tolist() for row in range(len(found))],
        tokens_per_block=1 if blocks is None else blocks.tokens_per_block,
    )


def _matched(said: str) -> re.Match[str] | None:
    from reference.errors import BadInput

    match = _OF_A_STREAM.fullmatch(said)
    if match is not None and not 1 <= (requests := int(match["count"])) <= MAX_REQUESTS:
        raise BadInput(
            f"[tool.pagedbench] {said!r}: {requests:,} requests; take 1 to {MAX_REQUESTS:,}"
        )
    return match


def _read(name: str, requests: int, *, folder: Path, said: str) -> RequestStream:
    from bench.workloads.source import head, read_all
    from bench.workloads.spec import parse_source
    from reference.errors import BadInput

    if (file := folder / name.removeprefix("trace:")).is_file():
        name = f"trace:{file}"
    try:
        # More than are asked for: keys of the stream may drop some.
        drawn = parse_source(name, requests=max(LAW_REQUESTS, DRAWN_EACH * requests))
        return read_all(head(drawn, requests))
    except (ValueError, OSError) as error:
        raise BadInput(f"[tool.pagedbench] {said!r}: {error}") from None


def key_of(kind: str, subject: str, where: str) -> str:
    """Of a benchmark: without blanks, as all keys are."""
    return f"{kind}/{subject}[{','.join(where.split())}]"
