"""`pagedbench report`: records of any command as one page to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from bench.command.session import check_file, session
from reference.errors import BadInput
from reference.reading import read_whole

if TYPE_CHECKING:
    from bench.command.page.parts import Sheet
    from bench.fuzz.film import Reel
    from bench.fuzz.record import Trace

REPORT_HELP: Final = """
Makes one page of records that `--json` wrote: the verdict first, then what matters, then
everything. The page is one file that needs no network and no other file; without scripts the
verdict, the tables and the pictures are there, with them films step and maps zoom.

[bold]Examples[/]

  pagedbench report check.json -o report.html

  pagedbench report check.json fuzz.json gate.json waste.json -o report.html

  pagedbench report .pagedbench/findings/mine.json --allocator my_pool.py:make -o report.html

[bold]Exit codes[/]

  0 written, whatever the records say, 2 usage, 4 the harness itself failed
"""


def report(
    *,
    records: Annotated[
        list[Path], typer.Argument(metavar="RECORD...", help="Records, or findings of a fuzzer.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    allocator: Annotated[
        str | None,
        typer.Option(
            help="Run the findings of this allocator again for their films, where the record has "
            "none: as `pagedbench fuzz` takes it. A record alone starts no code."
        ),
    ] = None,
    asv: Annotated[
        Path | None,
        typer.Option(help="Published asv page: each links to the other.", metavar="DIR"),
    ] = None,
) -> None:
    """Make a page of records."""
    with session(about="what the records are of") as it:
        check_file("--output", output)
        _keep(records, output)
        index = None if asv is None else asv / "index.html"
        if index is not None and not index.is_file():
            raise BadInput(f"--asv {asv}: no index.html there; name what `asv publish` wrote")
        with it.work(raising=True) as progress:
            progress.begin("records", len(records))
            sheets: list[Sheet] = []
            for file in records:
                sheets.append(_sheet(file, allocator))
                progress.advance(1)
        found = {sheet.name for sheet in sheets if sheet.kind == "fuzz"}
        if allocator is not None and allocator not in found:
            of = f"they are of {', '.join(sorted(found))}" if found else "there is none"
            raise BadInput(f"--allocator {allocator}: no finding given is of it; {of}")
        from bench.command.page.asv import link, link_to
        from bench.command.page.making import page

        links = [] if index is None else [(link_to(index, output), "History of the benchmarks")]
        it.write("--output", output, lambda: page(sheets, links=links))
        if index is not None:
            it.deliver(f"--asv {asv}", lambda: link(index, output))
        if it.delivered:
            it.out.say(f"{output}: {', '.join(sheet.kind for sheet in sheets)}")


def _keep(records: Sequence[Path], output: Path) -> None:
    """Raises BadInput: the page would be written over a record that it is made of."""
    for file in records:
        if output.exists() and file.exists() and output.samefile(file):
            raise BadInput(f"--output {output}: that is a record of the page; name another file")


def _sheet(file: Path, allocator: str | None) -> Sheet:
    from pydantic import ValidationError

    try:
        given = json.loads(read_whole(file, what="a record"))
    except BadInput:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: no JSON: {error}; name a record that --json wrote") from None
    first = given[0] if isinstance(given, list) and given else given
    keys = set(first) if isinstance(first, dict) else set()
    for told_by, read in KINDS.items():
        if set(told_by.split()) <= keys:
            try:
                return read(given, file, allocator)
            except ValidationError as error:
                fault = error.errors()[0]
                where = ".".join(map(str, fault["loc"])) or "the record"
                raise BadInput(
                    f"{file}: {where}: {fault['msg']}; it is not as this pagedbench writes it"
                ) from None
            except BadInput:
                raise
            except (LookupError, ValueError, ArithmeticError) as error:
                raise BadInput(
                    f"{file}: its fields do not fit each other ({error!r:.200}); name a record as "
                    "--json wrote it"
                ) from None
    raise BadInput(f"{file}: no record of pagedbench; name a file that --json wrote")


def _check(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.check.page import sheet
    from bench.check.record import CheckRecord

    return sheet(CheckRecord.model_validate(given))


def _fuzz(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.fuzz.page import sheet
    from bench.fuzz.record import FuzzRecord

    record = FuzzRecord.model_validate(given)
    found = [
        each if each.film else each.model_copy(update={"film": _film(each.trace, file, allocator)})
        for each in record.findings
    ]
    return sheet(record.model_copy(update={"findings": found}))


def _trace(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.fuzz.page import trace_sheet
    from bench.fuzz.record import read_trace, replay_command

    trace = read_trace(file)
    return trace_sheet(trace, _film(trace, file, allocator), replay_command(file, trace.allocator))


def _film(trace: Trace, file: Path, allocator: str | None) -> Reel | None:
    """The finding, run again where that starts nothing that the user has not named."""
    from bench.fuzz.film import film
    from subjects.allocators.resolve import BUILT_IN, open_allocator

    known = BUILT_IN.get(trace.allocator.name)
    if trace.allocator.name != allocator and (known is None or known.environment):
        return None
    python = trace.allocator.engine_python if allocator is not None else None
    with open_allocator(trace.allocator.name, python=python) as subject:
        return film(subject.factory, trace.program, subject.capabilities)


def _waste(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.waste.page import sheet
    from bench.waste.record import WasteRecord

    return sheet(WasteRecord.model_validate(given))


def _hits(given: Any, file: Path, allocator: str | None) -> Sheet:
    from pydantic import TypeAdapter

    from bench.waste.hit_curve import HitCurve
    from bench.waste.page import hits_sheet

    return hits_sheet(TypeAdapter(list[HitCurve]).validate_python(given))


def _gate(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.gate.page import sheet
    from bench.gate.record import GateRecord

    return sheet(GateRecord.model_validate(given))


def _chain(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.gate.page import chain_sheet
    from bench.gate.releases import ChainRecord

    return chain_sheet(ChainRecord.model_validate(given))


def _throughput(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.throughput.page import sheet
    from bench.throughput.record import ThroughputRecord

    return sheet(ThroughputRecord.model_validate(given))


def _compile(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.compile.page import sheet
    from bench.compile.record import CompileRecord

    return sheet(CompileRecord.model_validate(given))


def _diagnose(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.diagnose.page import sheet
    from bench.diagnose.record import Diagnosis

    return sheet(Diagnosis.model_validate(given))


def _engines(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.gate.engines.page import engines_sheet
    from bench.gate.engines.record import EnginesRecord

    return engines_sheet(EnginesRecord.model_validate(given))


def _kernels(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.gate.engines.kernel_record import KernelsRecord
    from bench.gate.engines.page import kernels_sheet

    return kernels_sheet(KernelsRecord.model_validate(given))


def _race(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.command.page.parts import plain_sheet
    from bench.fuzz.race import RaceRecord
    from bench.fuzz.race_report import show

    record = RaceRecord.model_validate(given)
    names = ", ".join(dict.fromkeys(entry.allocator for entry in record.entries))
    return plain_sheet("race", names, given, lambda console: show(record, console))


def _figure(given: Any, file: Path, allocator: str | None) -> Sheet:
    from pydantic import TypeAdapter

    from bench.waste.figures.figure import Figure
    from bench.waste.page import figure_sheet

    return figure_sheet(TypeAdapter(Figure).validate_python(given))


def _beside(given: Any, file: Path, allocator: str | None) -> Sheet:
    from bench.waste.engine import BesideRecord
    from bench.waste.page import beside_sheet

    return beside_sheet(BesideRecord.model_validate(given))


KINDS: Final[Mapping[str, Callable[[Any, Path, str | None], Sheet]]] = {
    "kernels decode": _check,
    "allocator steps_per_s": _fuzz,
    "format program": _trace,
    "rows pool streams": _waste,
    "rates unique_blocks": _hits,
    "mode benchmarks launches": _gate,
    "anchor runs": _chain,
    "anchor located": _engines,
    "entries max_running": _race,
    "points roof": _throughput,
    "toolchains results": _compile,
    "causes candidates": _diagnose,
    "components setup": _figure,
    "engine rows": _beside,
    "releases settings": _kernels,
}
"""How a record of each kind is read, by keys that tell it."""
