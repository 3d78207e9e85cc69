"""A finding as a test: a file that pytest runs as it is, anywhere pagedbench is installed.

Names, messages and versions come from allocators: in the file they are literals in ASCII, so that
none of them ends a string, a line or the file.
"""

from __future__ import annotations

import textwrap
from dataclasses import fields
from typing import Final

from bench.fuzz.record import Trace, slug
from reference.allocator.programs import Pool, Step

_TEMPLATE: Final = '''"""{about}"""

from pagedbench.testing import Pool, Program, Step, open_allocator, run_program

PROGRAM = Program(
    {pool},
    (
{steps}    ),
)


def test_{name}() -> None:
    with open_allocator({allocator}) as subject:
        finding = run_program(subject.factory, PROGRAM, capabilities=subject.capabilities)
    assert finding is None, f"{{finding}}\\n{{finding.program}}"
'''


def pytest_file(trace: Trace) -> str:
    """The text of the file."""
    arguments = ascii(trace.allocator.name)
    if trace.allocator.engine_python is not None:
        arguments += f", python={trace.allocator.engine_python!a}"
    version = f" ({trace.allocator.version})" if trace.allocator.version else ""
    message = "\n".join(
        textwrap.fill(line, 98) for line in trace.message.splitlines() if line.strip()
    )
    about = (
        f"{trace.allocator.name}{version}: {trace.check}.\n\n{message}\n\n"
        f"Found by `pagedbench fuzz`, version {trace.environment.pagedbench}, "
        f"after {trace.examples:,} programs.\n"
    )
    return _TEMPLATE.format(
        about="\n".join(_literal(line) for line in about.split("\n")),
        pool=_said(trace.program.pool),
        steps="".join(f"        {_said(step)},\n" for step in trace.program.steps),
        name=slug(trace).replace("-", "_"),
        allocator=arguments,
    )


def _literal(line: str) -> str:
    """A line of a docstring that evaluates to this text, half a character to its escape.

    Python 3.13 refuses a docstring that has half a character.
    """
    whole = line.encode(errors="backslashreplace").decode()
    return whole.encode("unicode_escape").decode().replace('"', '\\"')


def _said(what: Pool | Step) -> str:
    """The call that makes it, without what is as by default."""
    given = [
        ("" if field.name in ("call", "sequence") else f"{field.name}=") + ascii(value)
        for field in fields(what)
        if (value := getattr(what, field.name)) != field.default
    ]
    return f"{type(what).__name__}({', '.join(given)})"
