"""`pagedbench history`: the steps that asv's detection finds in stored results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from bench.command.session import check_file, session
from reference.errors import BadInput
from reference.reading import read_text

HISTORY_HELP: Final = """
Lists the steps that asv's detection finds in stored results: those of `make asv` and those that
`pagedbench gate --asv` exported. A step is where the level of a series changes for longer than its
noise explains; it says between which commits. Thresholds are those of the asv configuration.

[bold]Examples[/]

  pagedbench history

  pagedbench history --worse --benchmark "^gate[.]" --json history.json

[bold]Exit codes[/]

  0 looked, whatever was found, 2 usage, 4 the harness itself failed; a verdict is `pagedbench gate`
"""


def history(
    *,
    results: Annotated[
        Path | None, typer.Option(help="Folder of asv results. Default: that of the configuration.")
    ] = None,
    config: Annotated[Path, typer.Option(help="asv's configuration.")] = Path("asv.conf.json"),
    repo: Annotated[Path, typer.Option(help="Git repository that was measured.")] = Path(),
    benchmark: Annotated[
        str | None, typer.Option(help="Regular expression that the name contains.")
    ] = None,
    worse: Annotated[bool, typer.Option("--worse", help="Steps for the worse only.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the steps to this file.")] = None,
) -> None:
    """List the steps in stored results."""
    with session(about="the code") as it:
        check_file("--json", json)
        from bench.asv.history import find_steps
        from bench.asv.history_report import show

        folder, thresholds = _configured(config, results)
        found = find_steps(folder, repo, pattern=benchmark, thresholds=thresholds)
        if worse:
            kept = [step for step in found.steps if step.kind == "worse"]
            found = found.model_copy(update={"steps": kept})
        it.report(found, json, lambda: show(found, it.out))


def _configured(config: Path, results: Path | None) -> tuple[Path, dict[str, float]]:
    if not config.is_file():
        if results is None:
            raise BadInput(
                f"--config {config}: there is no such file; name it, or the folder of results with "
                f"--results"
            )
        return results, {}
    try:
        from asv.config import Config
        from asv.util import UserError
    except ImportError:
        raise BadInput("asv is not installed; the detection is its own: pip install asv") from None
    read_text(config, what="asv's configuration")  # with a bound; asv reads it anew
    try:
        loaded = Config.load(str(config))
        thresholds = {
            re.compile(regex).pattern: float(value)
            for regex, value in loaded.regressions_thresholds.items()
        }
        return results or config.parent / loaded.results_dir, thresholds
    except (UserError, ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise BadInput(f"--config {config}: {error}; name a configuration of asv") from None
