"""`pagedbench init`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from bench.command.project import find_project
from bench.command.scaffold import ACTION, Asked, Step, plan, write
from bench.command.session import session
from bench.machine.facts import version_of
from subjects.allocators.resolve import check_allocator_name
from subjects.attention.resolve import check_name

INIT_HELP: Final = """
Sets up the present folder, the top of a repository: a table in pyproject.toml that says who is
under test, a test file, a suite for asv, and a workflow that gates pull requests. Nothing that is
there is changed; only the table is added to a pyproject.toml. docs/project.md has the keys.

[bold]Examples[/]

  pagedbench init

  pagedbench init --kernel my_attention.paged:attention --allocator my_attention.pool:make

  pagedbench init --ci gitlab

[bold]Exit codes[/]

  0 done, 2 usage, 4 the harness itself failed, 130 interrupted
"""


def init(
    *,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            help="Kernel under test: module:function or path/to/file.py:function. May be repeated."
        ),
    ] = None,
    allocator: Annotated[
        list[str] | None,
        typer.Option(
            help="Factory of an allocator under test. May be repeated. Default, where no subject "
            "is named: an example of each is written."
        ),
    ] = None,
    ci: Annotated[str, typer.Option(help="Workflow to write: github, gitlab or none.")] = "github",
    action: Annotated[
        str,
        typer.Option(
            help="Action that a workflow for GitHub uses.", metavar="OWNER/REPOSITORY@VERSION"
        ),
    ] = ACTION,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write files anew that are there; never pyproject.toml or .gitignore."
        ),
    ] = False,
) -> None:
    """Set up a repository."""
    with session(about="the subjects") as it:
        for name in kernel or ():
            check_name(name)
        for name in allocator or ():
            check_allocator_name(name)
        asked = Asked(
            root=Path.cwd(),
            kernels=tuple(dict.fromkeys(kernel or ())),
            allocators=tuple(dict.fromkeys(allocator or ())),
            ci=ci,
            version=version_of("pagedbench"),
            action=action,
            force=force,
        )
        steps = plan(asked)
        for step in steps:
            write(step)
            note = f": {step.note}" if step.note else ""
            it.out.say(f"{_done(step):<9} {step.file.relative_to(asked.root)}{note}")
        for line in _next(asked):
            it.out.say(line)


def _done(step: Step) -> str:
    if step.text is None:
        return "unchanged"
    return "added to" if step.end else "written"


def _next(asked: Asked) -> Iterator[str]:
    project = find_project(asked.root)
    yield "next:"
    if not any((each / ".git").exists() for each in (asked.root, *asked.root.parents)):
        yield "  git init"
    if project and project.kernels:
        yield "  pagedbench check"
    if project and project.allocators:
        yield "  pagedbench fuzz"
    yield "  python -m pytest tests/test_pagedbench.py"
    yield "  git add . && git commit -m 'Set up pagedbench' && pagedbench gate HEAD"
    yield "  asv run --quick"
    if asked.ci == "github" and asked.action == ACTION:
        yield (
            f"{ACTION} in the workflow: for OWNER write the GitHub account that has pagedbench, or "
            f"set up with --action ACCOUNT/pagedbench@v1"
        )
