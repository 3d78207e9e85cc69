"""Where a gate run is reported: the terminal always, and each file that was asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from bench.command.session import check_file
from bench.gate.record import GateRecord
from reference.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Reports besides the terminal's; None where one was not asked for."""

    json: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None
    """Files."""
    github: bool = False
    """Whether to print annotations for a GitHub Actions job, to the standard output."""
    asv: Path | None = None
    """Folder of asv results to export to."""
    store: Path | None = None
    """Folder of the project's own records to add this one to."""

    def check(self) -> None:
        """Raise BadInput where one could not be written. Before the work, not after it."""
        for option in ("json", "markdown", "junit"):
            check_file(f"--{option}", getattr(self, option))
        if self.asv is not None and find_spec("asv") is None:
            raise BadInput(
                f"--asv {self.asv}: asv is not installed, and its format is written by its own "
                f"code; pip install asv"
            )


def deliver_reports(record: GateRecord, console: Console, outputs: Outputs) -> None:
    """Show a record and write every report, each even if another one cannot be written.

    Raises ExceptionGroup: of what went wrong with any of them, after all were tried.
    """
    from bench.gate.report.terminal import show

    steps: list[Callable[[], object]] = [lambda: show(record, console)]
    if outputs.json is not None:
        text = record.model_dump_json(indent=2) + "\n"
        steps.append(_writer(outputs.json, lambda: text))
    if outputs.markdown is not None:
        from bench.gate.report.markdown import markdown

        steps.append(_writer(outputs.markdown, lambda: markdown(record)))
    if outputs.junit is not None:
        from bench.gate.report.junit import junit

        steps.append(_writer(outputs.junit, lambda: junit(record)))
    if outputs.store is not None:
        steps.append(lambda: _store(record, outputs.store))
    if outputs.asv is not None:
        steps.append(lambda: _export(record, outputs.asv, console))
    if outputs.github:
        steps.append(lambda: _annotate(record))
    failed = []
    for step in steps:
        try:
            step()
        except Exception as error:
            failed.append(error)
    if failed:
        raise ExceptionGroup("not every report could be written", failed)


def _writer(file: Path, make: Callable[[], str]) -> Callable[[], object]:
    return lambda: file.write_text(make(), encoding="utf-8")


def _store(record: GateRecord, folder: Path | None) -> None:
    from bench.gate.importing import store_record

    if folder is not None:
        store_record(record, folder)


def _export(record: GateRecord, folder: Path | None, console: Console) -> None:
    from bench.asv.series import export

    if folder is None:
        return
    exported = export(record, folder)
    for path in exported.paths:
        console.print(f"asv: {path}", markup=False, highlight=False, soft_wrap=True)
    for why in exported.left_out:
        console.print(f"asv: {why}", markup=False, highlight=False, soft_wrap=True)


def _annotate(record: GateRecord) -> None:
    from bench.gate.report.annotations import workflow_commands

    # Not through rich: the runner reads whole lines, and a wrapped one is another command.
    sys.stdout.write(workflow_commands(record))
    sys.stdout.flush()
