"""`pagedbench diagnose`: what is wrong with a server's KV cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from bench.command.exit_codes import INCONCLUSIVE, RIGHT, WRONG
from bench.command.options import Html, Json, check_chart
from bench.command.session import check_file, session

DIAGNOSE_HELP: Final = """
Says what is wrong with a server's KV cache from what it exposes anyway: scrapes of /metrics over
time, logs, block events, request logs, spans. Files and folders, any of them; the more is given,
the more can be told. Names the cause, the three figures that decide, what it is not and why, what
could not be seen, and what to change. Where that cannot be told from what was given, it says so
and which input would decide.

[bold]Examples[/]

  pagedbench record --metrics http://localhost:8000/metrics -o incident

  pagedbench diagnose incident

  pagedbench diagnose metrics.prom.gz server.log --simulate

  pagedbench diagnose incident --markdown post-mortem.md --plot incident.png

[bold]Exit codes[/]

  0 healthy, 1 a cause was found, 2 usage, 3 it cannot be told, 4 the harness itself failed
"""

_CODES: Final = {"healthy": RIGHT, "found": WRONG, "cannot tell": INCONCLUSIVE}


def diagnose(
    *,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files, or folders of files.")
    ],
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="Try changes on a simulation of the server that was seen."),
    ] = False,
    json: Json = None,
    html: Html = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a post-mortem to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the series and their changes (png, svg, pdf).")
    ] = None,
) -> None:
    """Say what is wrong with a server's KV cache."""
    with session(about="the server") as it:
        check_chart(plot)
        for option, file in (
            ("--json", json),
            ("--html", html),
            ("--markdown", markdown),
            ("--plot", plot),
        ):
            check_file(option, file)
        from bench.diagnose.markdown import markdown as as_markdown
        from bench.diagnose.page import sheet
        from bench.diagnose.plot import draw
        from bench.diagnose.readers import read_all
        from bench.diagnose.report import show
        from bench.diagnose.run import diagnose as run
        from bench.machine.facts import version_of

        observed = read_all(paths)
        found = run(observed, simulate=simulate).model_copy(
            update={"pagedbench": version_of("pagedbench")}
        )
        it.write("--markdown", markdown, lambda: as_markdown(found))
        if plot is not None:
            it.deliver(f"--plot {plot}", lambda: draw(found, plot))
        it.report(
            found,
            json,
            lambda: show(found, it.out),
            html=html,
            sheet=lambda: sheet(found),
        )
        it.end(_CODES[found.verdict])
