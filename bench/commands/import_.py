"""`pagedbench import`: take in records that were made on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from bench.command.exit_codes import RIGHT
from bench.command.session import session
from reference.errors import BadInput

IMPORT_HELP: Final = """
Takes records of `pagedbench gate --json`, made on another machine, into the store of this checkout.
A record is refused, with the reason, if it is of another schema, does not say on what device and
versions it was measured, or if its verdicts are not those that its own launches give.

[bold]Examples[/]

  pagedbench import gate-h100.json

  pagedbench import runs/*.json --asv .asv/results

[bold]Exit codes[/]

  0 all are in the store, 2 one was refused (the others are in the store), 4 the harness itself
  failed
"""


def import_records(
    *,
    files: Annotated[list[Path], typer.Argument(help="Records.", show_default=False)],
    store: Annotated[
        Path | None, typer.Option(help="Folder of records. Default: .pagedbench/gate.")
    ] = None,
    asv: Annotated[
        Path | None, typer.Option(help="Export them to this folder of asv results, too.")
    ] = None,
) -> None:
    """Take records into the store."""
    with session(about="the code") as it:
        from bench.gate.importing import STORE, import_record, read_record

        refused = RIGHT
        for file in files:
            try:
                path = import_record(file, store or STORE)
                it.out.say(f"{file}: {path}")
                if asv is not None:
                    from bench.gate.asv import export

                    exported = export(read_record(path), asv)
                    for line in (*map(str, exported.paths), *exported.left_out):
                        it.out.say(f"  {line}")
            except BadInput as error:
                refused = it.failed(error)
        it.end(refused)
