"""What `pagedbench init` puts into a repository: a table, tests, benchmarks and a workflow.

Nothing that is there is changed, but for the table at the end of a pyproject.toml. What becomes of
each file is planned first; then all of it is written, or nothing.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.command.project import FILE, Project, read_project
from reference.errors import BadInput
from reference.reading import read_text

TEMPLATES: Final = Path(__file__).parent / "templates"

SERVICES: Final = ("github", "gitlab", "none")

ACTION: Final = "OWNER/pagedbench@v1"
"""The action of a workflow for GitHub, where none is named: who publishes it is not known here."""

EXAMPLE: Final = "paged_example"
"""The package that is written where no subject is named."""

TEST_FILE: Final = '''"""The subjects of [tool.pagedbench] in pyproject.toml: each check is a test.

On a machine without a GPU a Triton kernel needs TRITON_INTERPRET=1 in the environment.
"""

from pagedbench.testing import {imports}
'''

KERNEL_TEST: Final = """

@parametrize_with_checks()
def test_kernel(kernel, check):
    check(kernel)
"""

ALLOCATOR_TEST: Final = """

@parametrize_with_allocators()
def test_allocator(allocator, fuzz):
    fuzz(allocator)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be put where."""

    root: Path
    kernels: tuple[str, ...] = ()
    allocators: tuple[str, ...] = ()
    """Subjects of the table; where there are neither, those of the example."""
    ci: str = "github"
    """Whose workflow is written."""
    version: str
    """Of pagedbench, which a job for GitLab installs."""
    action: str = ACTION
    """`OWNER/REPOSITORY@VERSION` of the action that a workflow for GitHub uses."""
    force: bool = False
    """Whether files that are there are written anew; never a pyproject.toml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What becomes of one file."""

    file: Path
    text: str | None
    """What is written; None where the file stays as it is."""
    end: bool = False
    """Whether the text comes after what is there."""
    note: str = ""
    """What is left to its owner."""


def plan(asked: Asked) -> list[Step]:
    """What becomes of each file. Nothing is written.

    Raises BadInput: a file that is there cannot be read or added to, or cannot be written; or no
    workflow is looked for here.
    """
    if asked.ci not in SERVICES:
        raise BadInput(f"--ci {asked.ci}: choose {', '.join(SERVICES)}")
    top = next((each for each in asked.root.parents if (each / ".git").exists()), None)
    if asked.ci != "none" and top is not None and not (asked.root / ".git").exists():
        raise BadInput(
            f"--ci {asked.ci}: a workflow belongs into {top}, the top of this repository; set up "
            f"that folder, or say --ci none"
        )
    file = asked.root / FILE
    project = read_project(file) if file.exists() else None
    steps = list(_steps(asked, project))
    for step in steps:
        if step.text is not None:
            _check_writable(step.file)
    return steps


def write(step: Step) -> None:
    """Take a step."""
    if step.text is None:
        return
    try:
        step.file.parent.mkdir(parents=True, exist_ok=True)
        with step.file.open("ab" if step.end else "wb") as out:
            out.write(step.text.encode())
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise BadInput(
            f"{step.file}: {error.strerror}; mend that, and type the command again"
        ) from None


def _steps(asked: Asked, project: Project | None) -> Iterator[Step]:
    root = asked.root
    kernels, allocators = asked.kernels, asked.allocators
    if project is not None:
        _check_named(asked, project)
        kernels, allocators = project.kernels, project.allocators
        yield Step(file=root / FILE, text=None, note="it has a table [tool.pagedbench]")
    if not kernels and not allocators:
        if project is not None:
            raise BadInput(
                f"{root / FILE}: [tool.pagedbench] names no subject; add kernels or allocators, "
                f"or remove the table"
            )
        kernels, allocators = (f"{EXAMPLE}.attention:attention",), (f"{EXAMPLE}.pool:make",)
        package = root / ("src" if (root / "src").is_dir() else "") / EXAMPLE
        yield _file(asked, package / "__init__.py", "")
        for name in ("attention.py", "pool.py"):
            yield _file(asked, package / name, _template(f"{name}.txt"))
    if project is None:
        yield _table(root / FILE, kernels, allocators)
    yield _file(asked, root / "tests" / "test_pagedbench.py", _tests(kernels, allocators))
    yield from _benchmarks(asked)
    yield from _workflow(asked)
    ignored = root / ".gitignore"
    if not ignored.exists():
        yield Step(file=ignored, text=_template("gitignore.txt"))


def _check_named(asked: Asked, project: Project) -> None:
    known = {*project.kernels, *project.allocators}
    for name in (*asked.kernels, *asked.allocators):
        if name not in known:
            raise BadInput(
                f"{name}: {project.root / FILE} has a table [tool.pagedbench] that does not name "
                f"it, and what is there is not changed; add it there"
            )


def _file(asked: Asked, file: Path, text: str) -> Step:
    if not os.path.lexists(file) or (asked.force and not _has(file, text)):
        return Step(file=file, text=text)
    return Step(file=file, text=None, note="" if _has(file, text) else "--force writes it anew")


def _has(file: Path, text: str) -> bool:
    return file.is_file() and file.read_bytes() == text.encode()


def _table(file: Path, kernels: tuple[str, ...], allocators: tuple[str, ...]) -> Step:
    lines = ["[tool.pagedbench]"]
    for key, names in (("kernels", kernels), ("allocators", allocators)):
        if names:
            lines.append(f"{key} = {json.dumps(names, ensure_ascii=False)}")
    text = "\n".join([*lines, ""])
    if not file.exists():
        return Step(file=file, text=text)
    there = read_text(file, what="a TOML file")
    end = "\r\n" if "\r\n" in there else "\n"
    text = text.replace("\n", end)
    text = ("" if there.endswith("\n") or not there else end) + (end if there else "") + text
    try:
        tomllib.loads(there + text)
    except ValueError as error:
        raise BadInput(
            f"{file}: no table can be added at its end ({error}); write it there yourself: "
            f"{' '.join(lines)}"
        ) from None
    return Step(file=file, text=text, end=True)


def _tests(kernels: tuple[str, ...], allocators: tuple[str, ...]) -> str:
    imports = []
    if allocators:
        imports.append("parametrize_with_allocators")
    if kernels:
        imports.append("parametrize_with_checks")
    text = TEST_FILE.format(imports=", ".join(imports))
    return text + (KERNEL_TEST if kernels else "") + (ALLOCATOR_TEST if allocators else "")


def _benchmarks(asked: Asked) -> Iterator[Step]:
    text = _template("benchmarks.py.txt")
    project = json.dumps(asked.root.name, ensure_ascii=False)[1:-1]
    configuration = asked.root / "asv.conf.json"
    step = _file(asked, configuration, _template("asv.conf.json", PROJECT=project))
    yield replace(step, note="its environments need pagedbench") if step.note else step
    folder = asked.root / ("benchmarks" if step.text else _benchmark_folder(configuration))
    package = folder / "__init__.py"
    if not os.path.lexists(package) or _has(package, text):
        yield _file(asked, package, text)
    else:  # a suite of their own, beside which asv finds every module
        yield _file(asked, folder / "paged_subjects.py", text)


def _benchmark_folder(configuration: Path) -> str:
    """Where asv looks for benchmarks. The file may hold comments, so it is not read as JSON."""
    text = read_text(configuration, what="a configuration of asv")
    found = re.search(r'^[^/\n]*"benchmark_dir"\s*:\s*"([^"]+)"', text, re.MULTILINE)
    return found[1] if found else "benchmarks"


def _workflow(asked: Asked) -> Iterator[Step]:
    pyproject = asked.root / FILE
    package = pyproject.is_file() and "project" in tomllib.loads(pyproject.read_text("utf-8"))
    requirements = "." if package else ""
    if asked.ci == "github":
        yield _file(
            asked,
            asked.root / ".github" / "workflows" / "pagedbench.yml",
            _template("github.yml", ACTION=asked.action, REQUIREMENTS=requirements),
        )
    elif asked.ci == "gitlab":
        job = _template("gitlab.yml", VERSION=asked.version, REQUIREMENTS=requirements)
        yield _file(asked, asked.root / ".gitlab" / "pagedbench.yml", job)
        # All of the pipeline, and nothing but the line: never written anew.
        pipeline = asked.root / ".gitlab-ci.yml"
        include = _template("gitlab-ci.yml")
        if not os.path.lexists(pipeline) or _has(pipeline, include):
            yield _file(asked, pipeline, include)
        else:
            yield Step(file=pipeline, text=None, note=f"add {' '.join(include.split())}")


def _template(name: str, **words: str) -> str:
    text = (TEMPLATES / name).read_text("utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _check_writable(file: Path) -> None:
    if file.is_dir():
        raise BadInput(f"{file}: that is a folder, and a file is to be written there; move it")
    there = next(path for path in (file, *file.absolute().parents) if os.path.lexists(path))
    if there != file and not there.is_dir():
        raise BadInput(f"{file}: {there} is no folder; move it, or write that file yourself")
    if not os.access(there, os.W_OK):
        raise BadInput(f"{file}: no permission to write there; nothing was written")
