"""The house plan: imports go downwards only, and three rooms stay free of Triton and CUDA.

It holds between the rooms, between the jobs inside ``bench``, and between the halves of
``reference`` and of ``subjects``, which know nothing of each other.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.places import ROOT

# A room, and the rooms that it may import besides itself.
MAY_IMPORT = {
    "reference": set(),
    "subjects": {"reference"},
    "paged": {"reference"},
    "kernels": {"reference"},
    "bench": {"reference", "subjects", "paged", "kernels"},
    "pagedbench": {"reference", "subjects", "paged", "kernels", "bench"},
}
OURS = {*MAY_IMPORT, "studies", "scripts", "tests", "helpers"}
LIGHT_ROOMS = ("reference", "subjects", "paged")

# Inside bench: each floor may import the floors after it, and nobody their neighbours on a floor.
BENCH_FLOORS = (
    ("cli",),
    ("commands",),
    ("gate", "throughput", "diagnose"),
    ("waste",),
    ("check", "fuzz", "compile", "asv"),
    ("command", "machine", "search", "workloads"),
)
# Imports that go against the floors and are known: a list that only shrinks.
KNOWN_EXCEPTIONS: set[tuple[str, str]] = set()
HALVES = {"reference": ("attention", "allocator"), "subjects": ("attention", "allocators")}

# Imports every module named in argv and reports what came along. Run in a fresh interpreter: what
# another test imported would hide the answer.
LIGHT_IMPORT_PROBE = """
import importlib, json, sys
findings = []
for name in sys.argv[1:]:
    had_triton = "triton" in sys.modules
    module = importlib.import_module(name)
    if "triton" in sys.modules and not had_triton:
        findings.append(f"{name} imports triton")
torch = sys.modules.get("torch")
if torch is not None and torch.cuda.is_initialized():
    findings.append("CUDA is initialised")
print(json.dumps(findings))
"""


def imported_names(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of each import in ``tree``, a module inside ``package``.

    Counts imports inside functions and under ``TYPE_CHECKING``, and ``import_module("literal")``.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                # One dot is the package itself, each further dot climbs; above a room lie others.
                base = package[: max(0, len(package) - level + 1)] + ([module] if module else [])
                yield from ((node.lineno, ".".join([*base, alias.name])) for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="__import__" | "import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def room_files(root: Path, room: str) -> list[Path]:
    return sorted((root / room).rglob("*.py"))


def violations(root: Path, room: str) -> list[str]:
    """Imports in ``root/room`` that the plan forbids: file, line, name and the allowed rooms."""
    allowed = MAY_IMPORT[room]
    found = []
    for path in room_files(root, room):
        where = path.relative_to(root)
        for line, name in imports_of(root, path):
            target = name.partition(".")[0]
            if target in OURS - allowed - {room}:
                may = ", ".join(sorted(allowed)) or "nothing of ours"
                found.append(f"{where}:{line}: imports {name}; {room} may import: {may}")
    return found


def imports_of(root: Path, path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return sorted(imported_names(tree, list(path.relative_to(root).parts[:-1])))


def floor_of(job: str) -> int:
    """The floor of a sub-room of bench, counted from the top; an unknown one has no floor."""
    for number, jobs in enumerate(BENCH_FLOORS):
        if job in jobs:
            return number
    raise ValueError(f"bench.{job} stands on no floor: add it to BENCH_FLOORS")


def against_the_floors(root: Path) -> dict[tuple[str, str], str]:
    """(File, job) of each import inside bench that does not go to a lower floor, with its line."""
    found = {}
    for path in room_files(root, "bench"):
        where = path.relative_to(root)
        if where.parts[1:] == ("__init__.py",):
            continue
        job = where.parts[1].removesuffix(".py")
        for line, name in imports_of(root, path):
            room, _, inside = name.partition(".")
            target = inside.partition(".")[0]
            if room != "bench" or target in ("", job):
                continue
            if floor_of(target) <= floor_of(job):
                found[str(where), target] = f"{where}:{line}: imports {name}"
    return found


def arrows(root: Path) -> set[tuple[str, str]]:
    """Pairs of rooms of bench of which one imports the other."""
    found = set()
    for path in room_files(root, "bench"):
        job = path.relative_to(root).parts[1].removesuffix(".py")
        for _, name in imports_of(root, path):
            room, _, inside = name.partition(".")
            target = inside.partition(".")[0]
            if room == "bench" and target not in ("", job) and job != "__init__":
                found.add((job, target))
    return found


def meetings(root: Path, room: str) -> list[str]:
    """Where one half of ``room`` imports the other, itself or by way of a file that both share."""
    halves = HALVES[room]
    shared = {path.stem: path for path in sorted((root / room).glob("*.py"))}

    def reached(path: Path, seen: frozenset[str]) -> set[str]:
        parts = [name.split(".") for _, name in imports_of(root, path)]
        inside = {name[1] for name in parts if name[0] == room and len(name) > 1}
        further = (inside & shared.keys()) - seen
        return inside.union(*(reached(shared[stem], seen | inside) for stem in further))

    return [
        f"{path.relative_to(root)} reaches {room}.{other}"
        for half, other in (halves, halves[::-1])
        for path in room_files(root, f"{room}/{half}")
        if other in reached(path, frozenset())
    ]


def heavy_imports(root: Path, *rooms: str) -> list[str]:
    """What importing every module of these rooms afresh brings along and must not."""
    modules = [
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for room in rooms
        for path in room_files(root, room)
        if path.name != "__main__.py"
    ]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    probe = subprocess.run(
        [sys.executable, "-c", LIGHT_IMPORT_PROBE, *modules],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert probe.returncode == 0, f"importing {rooms} failed:\n{probe.stderr}"
    return json.loads(probe.stdout.splitlines()[-1])


def plant(root: Path, file: str, source: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(source, encoding="utf-8")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_downwards_only(room: str) -> None:
    assert room_files(ROOT, room), f"{room}/ has no modules: nothing was checked"
    assert not violations(ROOT, room), "\n".join(violations(ROOT, room))


def test_plan_keeps_paged_and_kernels_apart() -> None:
    assert "kernels" not in MAY_IMPORT["paged"]
    assert "paged" not in MAY_IMPORT["kernels"]


def test_jobs_of_bench_import_lower_floors_only() -> None:
    found = against_the_floors(ROOT)
    new = sorted(found.keys() - KNOWN_EXCEPTIONS)
    assert not new, "\n".join(found[key] for key in new)
    mended = sorted(KNOWN_EXCEPTIONS - found.keys())
    assert not mended, f"mended: take out of KNOWN_EXCEPTIONS: {mended}"


def test_every_job_of_the_floors_exists() -> None:
    for job in (job for floor in BENCH_FLOORS for job in floor):
        assert (ROOT / "bench" / job / "__init__.py").is_file() or (
            ROOT / "bench" / f"{job}.py"
        ).is_file(), job


@pytest.mark.parametrize("room", HALVES)
def test_halves_of_a_room_do_not_meet(room: str) -> None:
    for half in HALVES[room]:
        assert room_files(ROOT, f"{room}/{half}"), f"{room}/{half} has no modules"
    assert meetings(ROOT, room) == []


def test_light_rooms_import_neither_triton_nor_cuda() -> None:
    for room in LIGHT_ROOMS:
        assert room_files(ROOT, room), f"{room}/ has no modules: nothing was checked"
    assert heavy_imports(ROOT, *LIGHT_ROOMS) == []


@pytest.mark.parametrize(
    ("file", "source", "line", "name"),
    [
        ("reference/a.py", "import paged.cache", 1, "paged.cache"),
        ("reference/a.py", "import os, paged", 1, "paged"),
        (
            "paged/a.py",
            "import torch\nfrom kernels.decode import decode",
            2,
            "kernels.decode.decode",
        ),
        ("kernels/deep/a.py", "def f():\n    from paged import pool", 2, "paged.pool"),
        ("kernels/deep/a.py", "from ...paged import pool", 1, "paged.pool"),
        ("kernels/a.py", "from .. import paged", 1, "paged"),
        ("subjects/a.py", "import importlib\nimportlib.import_module('kernels.x')", 2, "kernels.x"),
        ("subjects/a.py", "if TYPE_CHECKING:\n    import bench.gate as g", 2, "bench.gate"),
        ("bench/a.py", "from tests.helpers import profiles", 1, "tests.helpers.profiles"),
        ("bench/a.py", "import helpers", 1, "helpers"),
        ("bench/a.py", "import pagedbench.testing", 1, "pagedbench.testing"),
        ("pagedbench/a.py", "from studies import resample", 1, "studies.resample"),
    ],
)
def test_planted_upward_import_is_named(
    tmp_path: Path, file: str, source: str, line: int, name: str
) -> None:
    plant(tmp_path, file, source)
    room = file.partition("/")[0]
    (finding,) = violations(tmp_path, room)
    assert finding.startswith(f"{file}:{line}: imports {name}; {room} may import: ")


def test_downward_and_inner_imports_are_not_violations(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "bench/gate/a.py",
        "import numpy, paged_by_others\nfrom ..report import b\nfrom . import c\n"
        "from kernels.decode import d\nimport reference.attention.problem, subjects, paged\n",
    )
    assert violations(tmp_path, "bench") == []


@pytest.mark.parametrize(
    ("file", "source", "target"),
    [
        ("bench/machine/a.py", "from bench.gate.record import GpuState", "gate"),
        ("bench/check/a.py", "def f():\n    from bench import fuzz", "fuzz"),
        ("bench/gate/deep/a.py", "from ...throughput import points", "throughput"),
        ("bench/asv/a.py", "import bench.cli", "cli"),
        ("bench/workloads/a.py", "from ..command.session import Progress", "command"),
        ("bench/cli.py", "import bench.commands\nfrom bench.check import run", None),
        ("bench/waste/a.py", "import bench.waste.b, bench.asv.series\nimport bench", None),
    ],
)
def test_planted_import_against_the_floors_is_named(
    tmp_path: Path, file: str, source: str, target: str | None
) -> None:
    plant(tmp_path, file, source)
    found = against_the_floors(tmp_path)
    assert set(found) == ({(file, target)} if target else set())


def test_job_without_a_floor_is_asked_for(tmp_path: Path) -> None:
    plant(tmp_path, "bench/attic/a.py", "import bench.waste")
    with pytest.raises(
        ValueError, match=r"bench\.attic stands on no floor: add it to BENCH_FLOORS"
    ):
        against_the_floors(tmp_path)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("reference/attention/a.py", "from reference.allocator.shadow import ShadowCache"),
        ("reference/allocator/deep/a.py", "from reference import attention"),
        ("reference/allocator/a.py", "from .. import shared"),  # which imports the other half
    ],
)
def test_planted_meeting_of_halves_is_named(tmp_path: Path, file: str, source: str) -> None:
    plant(tmp_path, "reference/shared.py", "import reference.further\nimport reference.errors")
    plant(tmp_path, "reference/further.py", "from reference.attention.problem import Request")
    plant(tmp_path, "reference/attention/b.py", "import reference.errors, reference.shared")
    plant(tmp_path, "reference/errors.py", "import reference.further_still")
    plant(tmp_path, file, source)
    assert [finding.split()[0] for finding in meetings(tmp_path, "reference")] == [file]


def needed_at_import(root: Path, file: str) -> set[str]:
    """Packages other than ours and Python's that a module's imports at its top come to."""
    found, seen, ahead = set[str](), set[Path](), [root / file]
    while ahead:
        path = ahead.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        top = ast.Module(ast.parse(path.read_text(encoding="utf-8")).body, [])
        top.body = [each for each in top.body if isinstance(each, ast.Import | ast.ImportFrom)]
        for _, name in imported_names(top, list(path.relative_to(root).parts[:-1])):
            room, *inside = name.split(".")
            if room in OURS:
                ahead += [root.joinpath(room, *inside).with_suffix(".py")]
                ahead += [root.joinpath(room, *inside[:n], "__init__.py") for n in range(9)]
                ahead += [root.joinpath(room, *inside[:-1]).with_suffix(".py")]
            elif room not in sys.stdlib_module_names:
                found.add(room)
    return found


def test_a_kernels_interpreter_needs_torch_and_no_more() -> None:
    """It is the engine's own, which has what the engine needs."""
    assert needed_at_import(ROOT, "bench/check/subject.py") <= {"torch", "numpy"}


def test_a_planted_need_is_found_two_modules_deep(tmp_path: Path) -> None:
    plant(tmp_path, "bench/check/subject.py", "from bench.check.children import NAME")
    plant(tmp_path, "bench/check/children.py", "from bench.search import lanes")
    plant(tmp_path, "bench/search/lanes.py", "import json, pydantic")
    assert needed_at_import(tmp_path, "bench/check/subject.py") == {"pydantic"}


def test_planted_heavy_imports_are_found(tmp_path: Path) -> None:
    plant(tmp_path, "paged/clean.py", "import math")
    plant(tmp_path, "paged/heavy.py", "from paged import helper")  # two modules deep
    plant(tmp_path, "paged/helper.py", "import triton")
    # What a context leaves behind, set by hand: there may be no device to initialise.
    plant(tmp_path, "reference/eager.py", "import torch.cuda\ntorch.cuda._initialized = True")
    found = heavy_imports(tmp_path, "paged", "reference")
    assert found == ["paged.heavy imports triton", "CUDA is initialised"]


def test_bench_is_seen_at_a_glance() -> None:
    """Rooms and arrows on its floor plan: a new one is paid for by one that goes."""
    found = arrows(ROOT)
    assert len({room for pair in found for room in pair} - {"cli"}) <= 14
    assert len(found) <= 45


def test_files_are_short() -> None:
    """What a reader can hold: the product's files, each and on average."""
    files = [file for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")]
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert sum(lines.values()) / len(files) < 170
    assert {file.name: count for file, count in lines.items() if count > 600} == {}
