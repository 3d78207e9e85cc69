"""`pagedbench compile` on a page: registers, occupancy and instructions, target by target."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from bench.command.page.parts import Cell, Command, Lines, Part, Picture, Sheet, Table, terminal
from bench.command.page.pictures import COLOURS, MARKERS, as_svg, new_figure
from bench.command.words import one_line, plural
from bench.compile.record import CompileRecord
from bench.compile.report import show
from kernels.compiled.baseline import Status

REGISTERS = "Registers of a thread against occupancy, a mark for each launch."
INSTRUCTIONS = "Instructions of the main loop for one KV token."


def sheet(record: CompileRecord) -> Sheet:
    """A record on a page."""
    targets = list(dict.fromkeys(each.target for each in record.results))
    worse = [each for each in record.comparisons if each.status is Status.WORSE]
    failed = [each for each in record.results if each.figures.failure is not None]
    said = f"{plural(len(record.results), 'result')} for {', '.join(targets) or 'no target'}"
    said += f"; {len(worse)} worse than {record.baseline}" if worse else ""
    said += f"; {len(failed)} that do not compile" if failed else ""
    said += "" if worse or failed or not record.compared else f"; none worse than {record.baseline}"
    return Sheet(
        kind="compile",
        name=f"triton {record.triton}",
        verdict=said + ("." if record.complete else "; it was interrupted."),
        tone="bad" if record.worse else "good" if record.complete else "unsure",
        parts=[
            *_changes(record),
            Part(title="By target", pieces=[*_pictures(record, targets), _table(record)]),
            terminal(lambda console: show(record, console)),
        ],
        facts={
            "pagedbench": record.pagedbench,
            "triton": record.triton,
            **record.toolchains,
            "took": f"{record.elapsed_s:.0f} s; no GPU was used",
            "compared with": record.baseline or record.not_compared,
        },
        commands=[
            Command(
                shlex.join(
                    ["pagedbench", "compile", *(w for t in targets for w in ("--target", t))]
                )
            )
        ],
    )


def _changes(record: CompileRecord) -> Iterator[Part]:
    changed = [each for each in record.comparisons if each.changes]
    if changed:
        pieces = [
            Lines(
                [
                    f"{each.target} {each.variant}: {each.status.value}",
                    *(change.words for change in each.changes),
                ],
                "bad" if each.status is Status.WORSE else "",
            )
            for each in changed
        ]
        yield Part(title=f"What changed beside {record.baseline}", pieces=pieces)


def _pictures(record: CompileRecord, targets: list[str]) -> Iterator[Picture]:
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    loops: list[tuple[str, float, int]] = []
    for number, target in enumerate(targets):
        launches = [
            (each, launch)
            for each in record.results
            if each.target == target
            for launch in each.figures.launches
        ]
        axes.plot(
            [launch.registers for _, launch in launches],
            [100 * launch.occupancy for _, launch in launches],
            MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            label=target,
        )
        loops += [
            (f"{each.variant}, {target}", per_key, number)
            for each, launch in launches
            if launch.loop and (per_key := launch.loop.instructions_per_key) is not None
        ]
    axes.set_xlabel("registers of a thread")
    axes.set_ylabel("occupancy, %")
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, fontsize=8)
    yield Picture(as_svg(figure, said=REGISTERS), REGISTERS)
    if loops:
        figure = new_figure(5.2, 0.26 * len(loops) + 1)
        axes = figure.subplots()
        for at, (_, value, number) in enumerate(loops):
            axes.barh(at, value, color=COLOURS[number % len(COLOURS)])
        axes.set_yticks(range(len(loops)), [one_line(name, limit=44) for name, _, _ in loops])
        axes.invert_yaxis()
        axes.set_xlabel("instructions")
        yield Picture(as_svg(figure, said=INSTRUCTIONS), INSTRUCTIONS)


def _table(record: CompileRecord) -> Table:
    head = ["variant", "target", "registers", "spills", "shared bytes", "occupancy", "limited by"]
    head += ["instructions", "of the loop, per key"]
    rows: list[list[object]] = []
    for each in record.results:
        if each.figures.failure is not None:
            why = one_line(each.figures.failure, limit=200)
            rows.append([each.variant, each.target, Cell(f"does not compile: {why}", "bad")])
        for launch in each.figures.launches:
            per_key = launch.loop.instructions_per_key if launch.loop else None
            rows.append(
                [
                    f"{each.variant}: {launch.kernel}",
                    each.target,
                    launch.registers,
                    Cell(str(spills := launch.spill_instructions), "unsure" if spills else ""),
                    f"{launch.shared_bytes:,}",
                    f"{launch.occupancy:.0%}",
                    launch.limited_by,
                    f"{launch.instructions:,}",
                    "-" if per_key is None else f"{per_key:.1f}",
                ]
            )
    return Table.of("", head, rows)
