"""`pagedbench record`: a recording of a running server, for `pagedbench diagnose`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from bench.command.exit_codes import INTERRUPTED
from bench.command.session import session
from reference.errors import BadInput

RECORD_HELP: Final = """
Records a running server for `pagedbench diagnose`: its metrics, block events and log lines, into a
folder of a bounded size. No prompt, no token and no key leaves the server: of blocks there are
digests, of the log only lines with figures. Ctrl-C ends the recording and keeps it.

[bold]Examples[/]

  pagedbench record --metrics http://localhost:8000/metrics -o monday --for 10m

  pagedbench record --metrics localhost:8000 --events "tcp://*:5557" --log vllm.log -o monday

  pagedbench record --metrics node-1:8000 --metrics node-2:8000 --every 5s -o replicas

[bold]Exit codes[/]

  0 recorded, 2 usage, or nothing ever came, 4 the harness itself failed, 130 stopped by Ctrl-C or
  SIGTERM; what was recorded is kept
"""

_SECONDS: Final = {
    "ms": 0.001,
    "s": 1.0,
    "": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_BYTES: Final = {
    "": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
}


def record(
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to record into; made anew.")
    ],
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Address of /metrics. Again for each further server."),
    ] = None,
    events: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENDPOINT",
            help="Block events: the endpoint that the server was given. Again for each further "
            "one, and each data-parallel rank.",
        ),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="File that the server logs to.")] = None,
    every: Annotated[str, typer.Option(metavar="TIME", help="Time between scrapes.")] = "1s",
    last: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="How long. Default: until Ctrl-C."),
    ] = None,
    max_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The recording ends before it is larger.")
    ] = "100MB",
    every_metric: Annotated[
        bool, typer.Option("--all", help="Keep metrics of names that are not known, too.")
    ] = False,
) -> None:
    """Record a running server."""
    with session(about="the server") as it:
        from bench.diagnose.recording import Wanted, said
        from bench.diagnose.recording import record as run

        wanted = Wanted(
            metrics=tuple(metrics or ()),
            events=tuple(events or ()),
            log=log,
            folder=out,
            every_s=_measured("--every", every, _SECONDS, "100ms", "1h"),
            last_s=None if last is None else _measured("--for", last, _SECONDS, "1s", "30d"),
            max_bytes=int(_measured("--max-size", max_size, _BYTES, "1MB", "100GB")),
            every_metric=every_metric,
        )
        with it.work() as progress:
            progress.begin("recording")
            made = run(wanted, it.stop, progress.tell)
        it.deliver("standard output", lambda: it.out.say(f"{said(made)}, in {out}"))
        if made.ended == "size":
            it.err.say(
                f"ended at --max-size {max_size}; record with a longer --every, or a larger size",
                "yellow",
            )
        if made.ended == "stopped":
            it.end(INTERRUPTED)


def _measured(option: str, said: str, units: dict[str, float], least: str, most: str) -> float:
    """What a number with a unit comes to. Raises BadInput."""
    value = _value(said, units)
    low, high = _value(least, units), _value(most, units)
    if value is None or low is None or high is None or not low <= value <= high:
        raise BadInput(f"{option} {said}: give a number with a unit, from {least} to {most}")
    return value


def _value(said: str, units: dict[str, float]) -> float | None:
    number = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([a-zA-Z]*)", said, re.ASCII)
    if number is None or number[2].lower() not in units:
        return None
    return float(number[1]) * units[number[2].lower()]
