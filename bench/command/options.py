"""Options that several commands share, word for word, and what they come to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from reference.errors import BadInput

Json = Annotated[Path | None, typer.Option(help="Write the record to this file.")]

Html = Annotated[
    Path | None, typer.Option(help="Write a page to look at to this file.", metavar="FILE")
]

OrderSeed = Annotated[
    int | None, typer.Option(min=0, help="Of all random orders. Default: another each time.")
]

TimedDevice = Annotated[
    str, typer.Option(help="What is timed: the cpu, or the benchmarks of a GPU with cuda.")
]

AsvFolder = Annotated[
    Path | None, typer.Option(help="Folder of asv results to export to.", metavar="DIR")
]


CHARTS: Final = ("png", "svg", "pdf")
"""Endings of files that a chart can be drawn to."""


def check_chart(file: Path | None) -> None:
    """Raise BadInput where the ending of the file that --plot names is none of `CHARTS`."""
    if file is not None and file.suffix.removeprefix(".").lower() not in CHARTS:
        raise BadInput(
            f"--plot {file}: end the name with {', '.join(f'.{known}' for known in CHARTS)}"
        )


def default_lanes(*, most: int = 4) -> int:
    """One child for each core that this process may use, so many at most."""
    return min(len(os.sched_getaffinity(0)), most)


Ray = Annotated[
    bool,
    typer.Option(
        "--ray", help="Run --seeds on a Ray cluster: that of RAY_ADDRESS, or one started here."
    ),
]

RayAddress = Annotated[
    str | None, typer.Option(help="Address of that cluster; implies --ray.", metavar="ADDRESS")
]


def on_a_cluster(*, ray: bool, address: str | None, campaign: range | None) -> bool:
    """Whether a campaign runs on a Ray cluster. Raises BadInput where there is no campaign."""
    asked = ray or address is not None
    if asked and campaign is None:
        raise BadInput("--ray: one seed runs on this machine; give several with --seeds")
    return asked


MAX_SEED: Final = 2**32 - 1

SEEDS_HELP: Final = "Campaign: seeds A..B, each as many, spread over the cores."


def seeds_of(text: str) -> range:
    """The seeds of A..B, both included."""
    first, dots, last = text.partition("..")
    digits = first.isascii() and last.isascii() and first.isdecimal() and last.isdecimal()
    if not (dots and digits and len(last) <= 10 and int(first) <= int(last) <= MAX_SEED):
        raise BadInput(f"--seeds {text}: give the first and the last, as in 0..99")
    return range(int(first), int(last) + 1)
