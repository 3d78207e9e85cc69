"""Where a gate run is reported: the terminal always, and each file that was asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.asv.series import check_asv
from bench.command.session import Session, check_file, check_folder
from bench.gate.importing import store_record
from bench.gate.record import GateRecord
from bench.machine.facts import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Reports besides the terminal's; None where one was not asked for."""

    json: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None
    """Files."""
    github: bool = False
    """Whether to print annotations for a GitHub Actions job, to the standard output."""
    asv: Path | None = None
    """Folder of asv results to export to."""
    repository: Path = ROOT
    """Whose commits they are."""
    store: Path | None = None
    """Folder of the project's own records to add this one to."""

    def check(self) -> None:
        """Raise BadInput where one could not be written. Before the work, not after it."""
        for option in ("json", "html", "markdown", "junit"):
            check_file(f"--{option}", getattr(self, option))
        check_asv(self.asv)
        check_folder("--store", self.store)


def deliver_reports(record: GateRecord, it: Session, outputs: Outputs) -> None:
    """Show a record and write every report, each even if another one cannot be written."""
    from bench.gate.page import sheet
    from bench.gate.report.junit import junit
    from bench.gate.report.markdown import markdown
    from bench.gate.report.terminal import show

    it.report(
        record,
        outputs.json,
        lambda: show(record, it.out),
        html=outputs.html,
        sheet=lambda: sheet(record),
    )
    it.write("--markdown", outputs.markdown, lambda: markdown(record))
    it.write("--junit", outputs.junit, lambda: junit(record))
    if outputs.store is not None:
        it.deliver(f"--store {outputs.store}", partial(store_record, record, outputs.store))
    if outputs.asv is not None:
        it.deliver(f"--asv {outputs.asv}", partial(_export, record, outputs, it))
    if outputs.github:
        it.deliver("standard output", lambda: _annotate(record))


def _export(record: GateRecord, outputs: Outputs, it: Session) -> None:
    from bench.gate.asv import export

    assert outputs.asv is not None
    exported = export(record, outputs.asv, outputs.repository)
    for line in (*exported.paths, *exported.left_out):
        it.out.say(f"asv: {line}")


def _annotate(record: GateRecord) -> None:
    from bench.gate.report.annotations import workflow_commands

    # Not through rich: the runner reads whole lines, and a wrapped one is another command.
    sys.stdout.write(workflow_commands(record))
    sys.stdout.flush()
