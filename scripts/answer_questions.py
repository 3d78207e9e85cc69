"""Run the commands of docs/questions.md again, and put what they print where it stands there.

    python -m scripts.answer_questions [FILE]

Every block that begins with `$ pagedbench` is run, 100 columns wide. Of what it prints the page has
the tables and what is said of them: not the captions, which are the same every time, nor, but in a
block that says `latency`, the percentiles, nor the last line, whose seconds differ from run to run.
The questions and the answers are written by hand.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[1] / "docs" / "questions.md"
_BLOCK: Final = re.compile(
    r"```console(?P<latency> latency)?\n\$ pagedbench (?P<command>.*)\n(?:.*\n)*?```"
)
_CAPTIONS: Final = re.compile(
    r"^(?:% of the slots|% of the pool's bytes|requests completed a second;"
    r"|By the server's clock|By tenant|req/s: req)"
    r".*?(?:mean\s+and\s+peak|share\s+of\s+the\s+steps|TTFT\s+nor\s+end\s+to\s+end|too\s+slow"
    r"|of\s+the\s+span|as\s+large\s+for\s+all\s+groups)\.\n",
    re.MULTILINE | re.DOTALL,
)
_LATENCY: Final = re.compile(
    r"^policy +time .*?TTFT\s+nor\s+end\s+to\s+end\.\n", re.MULTILINE | re.DOTALL
)
_TIMED: Final = re.compile(r"^\d+ of \d+ simulations? in .*(?:\n.*)*", re.MULTILINE)


def run_here(command: str) -> str:
    """Run a command in this process, and return what it prints."""
    from typer.testing import CliRunner

    from bench import cli

    result = CliRunner().invoke(cli.app, [*shlex.split(command), "-q"], env={"COLUMNS": "100"})
    if result.exit_code:
        raise SystemExit(f"pagedbench {command}: exit {result.exit_code}\n{result.output}")
    return result.output


def shortened(output: str, *, latency: bool) -> str:
    """Leave out what the page has not."""
    text = "\n".join(line.rstrip() for line in output.splitlines()) + "\n"
    if not latency:
        text = _LATENCY.sub("", text)
    return _TIMED.sub("", _CAPTIONS.sub("", text)).strip() + "\n"


def answered(page: str, run: Callable[[str], str] = run_here) -> str:
    """Return the page with what its commands print now."""

    def again(block: re.Match[str]) -> str:
        command, latency = block["command"], block["latency"] or ""
        output = shortened(run(command), latency=bool(latency))
        return f"```console{latency}\n$ pagedbench {command}\n{output}```"

    return _BLOCK.sub(again, page)


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    file.write_text(answered(file.read_text(encoding="utf-8")), encoding="utf-8")
