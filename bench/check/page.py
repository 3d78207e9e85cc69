"""`pagedbench check` on a page: coverage as a map, and each finding with its problem drawn."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Final

from bench.check.record import CheckRecord, Drawing, Failure, KernelRecord
from bench.check.report import LAWS, expected_lines, show, table
from bench.command.page.parts import (
    Block,
    Cell,
    Command,
    Film,
    Frame,
    Lines,
    Part,
    Picture,
    Piece,
    Sheet,
    Strip,
    Table,
    Tone,
    flat,
    terminal,
)
from bench.command.words import plural, some_of
from reference.attention.problem import AttentionProblem, Request
from reference.attention.verdict import Status
from reference.errors import BadInput

STATES: Final[dict[str, tuple[str, Tone]]] = {
    "passed": ("\u2713", "good"),
    "failed": ("\u2717", "bad"),
    "failed as expected": ("e", "unsure"),
    "not run": ("?", "unsure"),
    "not supported": ("n/a", "dim"),
    "no problem shows it": ("\u00b7", "dim"),
}

_OFF: Final = re.compile(r"\[token (\d+), head \d+\].*?off by ([\d.e+-]+|inf), allowed")
_FOREIGN: Final = re.compile(r"\btoken (\d+) of sequence (\d+)")


def sheet(record: CheckRecord) -> Sheet:
    """A record on a page."""
    kernels = [
        kernel.model_copy(update={"failures": [_with_drawing(each) for each in kernel.failures]})
        for kernel in record.kernels
    ]
    record = record.model_copy(update={"kernels": kernels})
    wrong = [(kernel, failure) for kernel in record.kernels for failure in kernel.failures]
    tones: dict[str, Tone] = {"right": "good", "wrong": "bad"}
    return Sheet(
        kind="check",
        name=some_of([kernel.name for kernel in record.kernels]),
        verdict=_verdict(record),
        tone=tones.get(record.verdict, "unsure"),
        parts=[
            *(_finding(kernel, failure) for kernel, failure in wrong),
            *_expected(record),
            Part(title="Right, time and memory", pieces=[Table.like(table(record))]),
            *(_coverage(kernel) for kernel in record.kernels),
            terminal(lambda console: show(record, console)),
        ],
        facts={
            "started": record.started_at,
            "took": f"{record.elapsed_s:.1f} s",
            "seeds": record.seed
            if record.last_seed is None
            else f"{record.seed} to {record.last_seed}",
            "stream": f"{record.stream.name}, {record.stream.source}",
            **flat("", record.environment.model_dump()),
        },
        commands=[_again(record)],
    )


def _verdict(record: CheckRecord) -> str:
    names = [kernel.name for kernel in record.kernels]
    problems = plural(sum(kernel.problems for kernel in record.kernels), "problem")
    said = []
    for kernel in record.kernels:
        if kernel.failures:
            checks = some_of(list(dict.fromkeys(each.check for each in kernel.failures)))
            said.append(f"{kernel.name} is wrong: {checks}")
    if said:
        lost = [_lost(each) for kernel in record.kernels for each in kernel.failures]
        return "; ".join(said) + "." + next((f" {words}" for words in lost if words), "")
    return f"{some_of(names)}: {record.verdict} in {problems}."


def _lost(failure: Failure) -> str:
    """Which keys a row lost, where one or one run of them explains what was seen."""
    drawing = failure.drawing
    if drawing is None or drawing.lost is None:
        return ""
    sequence, position = drawing.lost
    last = position if drawing.lost_last is None else drawing.lost_last
    words = f"The key at position {position} of sequence {sequence} is lost"
    problem = AttentionProblem.parse(failure.problem)
    if last > position:
        words = f"The keys at positions {position} to {last} of sequence {sequence} are lost"
    if sequence < len(drawing.blocks) and last > position:
        size = problem.block_size
        blocks = drawing.blocks[sequence][position // size : last // size + 1]
        words += f", in {'blocks' if len(blocks) > 1 else 'block'} {some_of([*map(str, blocks)])}"
    elif sequence < len(drawing.blocks):
        block, offset = divmod(position, problem.block_size)
        words += f": offset {offset} of block {drawing.blocks[sequence][block]}"
    tokens = plural(problem.requests[sequence].seq_len, "token")
    return f"{words}. The sequence has {tokens} in blocks of {problem.block_size}."


def _again(record: CheckRecord) -> Command:
    words = ["pagedbench", "check", "--stream", record.stream.name]
    for kernel in record.kernels:
        words += ["--kernel", kernel.name]
    words += ["--max-len", str(record.max_len)]
    if record.last_seed is None:
        words += ["--seed", str(record.seed)]
    else:
        words += ["--seeds", f"{record.seed}..{record.last_seed}"]
    return Command(shlex.join(words), "The same search, where the stream is a built-in one:")


def _expected(record: CheckRecord) -> Iterator[Part]:
    if lines := [line.plain for line in expected_lines(record)]:
        yield Part(title="Counted, expected, and warnings", pieces=[Lines(lines, "unsure")])


def _finding(kernel: KernelRecord, failure: Failure) -> Part:
    about = [f"{failure.check}: {LAWS.get(failure.check, '')}", f"problem: {failure.problem}"]
    if failure.first_problem != failure.problem:
        about.append(f"drawn as: {failure.first_problem}")
    if failure.seen > 1:
        about.append(f"met in {plural(failure.seen, 'problem')}")
    lost = [f"{words} Without that the row is what was seen."] if (words := _lost(failure)) else []
    return Part(
        title=f"{kernel.name}: {failure.status.value}, {failure.check}",
        pieces=[
            Lines([*lost, *failure.findings], "bad"),
            *drawn(failure),
            Lines(about),
            *([Command(failure.replay, "To see it again:")] if failure.replay else []),
        ],
    )


def _with_drawing(failure: Failure) -> Failure:
    """Also of a record of before, or of a search that was stopped."""
    if failure.drawing is not None or failure.status is not Status.FAILED:
        return failure
    from bench.check.drawing import drawing

    with suppress(BadInput):
        problem = AttentionProblem.parse(failure.problem)
        return failure.model_copy(update={"drawing": drawing(problem, failure.findings)})
    return failure


def drawn(failure: Failure) -> Iterator[Piece]:
    """A problem as sequences of blocks, with the row that is wrong and the keys that it sees."""
    drawing, findings = failure.drawing, failure.findings
    if drawing is None:
        yield Lines(["The problem is too large to be drawn."], "dim")
        return
    problem = AttentionProblem.parse(failure.problem)
    lost = drawing.lost
    foreign = {(int(at), int(token)) for token, at in _FOREIGN.findall(" ".join(findings))}
    named = foreign
    if lost is not None:
        last = lost[1] if drawing.lost_last is None else drawing.lost_last
        named = named | {(lost[0], position) for position in range(lost[1], last + 1)}
    if drawing.blocks:
        strips = [
            _strip(problem, number, drawing, {key for at, key in named if at == number})
            for number in range(len(problem.requests))
        ]
        yield Film(
            caption="The problem: each box is a block, with its number in the block table above "
            "the positions that it holds. Blocks lie in memory in the order of their numbers.",
            frames=[Frame(title=f"block size {problem.block_size}, {problem}", strips=strips)],
            legend=[
                *([("seen", "holds keys that the wrong row has to see")] if drawing.sees else []),
                ("unseen", "not to be seen by it" if drawing.sees else "of a sequence"),
                *([("lost", "has a key that was lost")] if lost is not None else []),
                *([("lost", "touched, and not its own")] if foreign else []),
            ],
        )
    yield from _tolerance(drawing, findings)


def _strip(problem: AttentionProblem, number: int, drawing: Drawing, named: set[int]) -> Strip:
    request, start = problem.requests[number], problem.query_starts[number]
    token = drawing.token
    mine = token is not None and start <= token < start + request.query_len
    sees = drawing.sees if mine else []
    blocks = drawing.blocks[number]
    return Strip(
        name=f"sequence {number}: q{request.query_len} k{request.seq_len}",
        blocks=[
            _block(problem, request, at, block, sees, named) for at, block in enumerate(blocks)
        ],
        note=_note(request, sees, token) if mine else "",
    )


def _block(
    problem: AttentionProblem,
    request: Request,
    at: int,
    block: int,
    sees: Sequence[tuple[int, int]],
    named: set[int],
) -> Block:
    first = at * problem.block_size
    last = min(first + problem.block_size, request.seq_len) - 1
    gone = any(first <= token <= last for token in named)
    keys = sum(max(0, min(last, end) - max(first, begin) + 1) for begin, end in sees)
    return Block(
        label=str(block),
        state="lost" if gone else "seen" if keys else "unseen",
        owner=f"{first}\u2013{last}" if last > first else str(first),
        changed=gone,
        hint=f"block {block}: positions {first} to {last}, of which the row sees {keys}",
    )


def _note(request: Request, sees: Sequence[tuple[int, int]], token: int | None) -> str:
    if not sees:
        return f"row {token} of the batch is wrong; it is to see no key"
    keys = f"keys {sees[0][0]} to {sees[-1][1]}"
    gaps = ", with gaps" if len(sees) > 1 else ""
    count = sum(last - first + 1 for first, last in sees)
    return (
        f"row {token} of the batch is wrong; it is to see {keys}{gaps}: {count} of "
        f"{request.seq_len}"
    )


def _tolerance(drawing: Drawing, findings: Sequence[str]) -> Iterator[Picture]:
    """The error of each row against its tolerance; of an older record, of the wrong row alone."""
    from matplotlib.ticker import MaxNLocator

    from bench.command.page.pictures import COLOURS, as_svg, new_figure, plain_numbers

    rows = dict(enumerate(drawing.errors))
    said = _OFF.search(" ".join(findings))
    if not rows and said is not None:
        rows = {int(said[1]): float(said[2])}
    if not rows or not drawing.allowed:
        return
    figure = new_figure(5.2, 2.6)
    axes = figure.subplots()
    axes.plot(drawing.allowed, "_-", color=COLOURS[0], label="allowed")
    beyond = {}
    for row, error in rows.items():
        allowed = drawing.allowed[row]
        beyond[row] = error is None or error > allowed
    finite = [each for each in (*drawing.allowed, *rows.values()) if each and each < float("inf")]
    top, bottom = 10 * max(finite, default=1.0), min(finite, default=1.0) / 10
    for bad, marker, colour, label in (
        (False, "o", COLOURS[2], "error, within it"),
        (True, "X", COLOURS[1], "error, beyond it"),
    ):
        some = {row: error for row, error in rows.items() if beyond[row] is bad}
        if some:
            heights = [
                top if each is None else min(max(each, bottom), top) for each in some.values()
            ]
            axes.plot(list(some), heights, marker, color=colour, markersize=7, label=label)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(drawing.allowed) - 0.5)
    axes.set_xlabel(f"row of the batch (token), head {drawing.head}; at the top: no number")
    axes.set_ylabel(f"error of {drawing.of}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    plain_numbers(axes)
    figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=3)
    count = sum(beyond.values())
    words = f"Error of each row against its tolerance: {count} of {len(rows)} beyond it."
    if not drawing.errors:
        words = "Error of the worst row against the tolerance of every row."
    yield Picture(as_svg(figure, said=words), words)


def _coverage(kernel: KernelRecord) -> Part:
    checks = list(dict.fromkeys(chain.from_iterable(row.cells for row in kernel.coverage)))
    rows = []
    for row in kernel.coverage:
        cells: list[Cell] = [Cell(row.feature, hint=row.group)]
        for check in checks:
            found = row.cells[check]
            sign, tone = STATES[found.state]
            count = sum(found.counts.values())
            cells.append(Cell(sign, tone, f"{row.feature}, {check}: {found.state}, {count:,}"))
        rows.append(cells)
    legend = ", ".join(f"{sign} {state}" for state, (sign, _) in STATES.items())
    pieces: list[Piece] = [
        Table.of(f"Features of the problems by check. {legend}.", ["", *checks], rows, dense=True)
    ]
    if kernel.pairs.asked:
        pieces.append(_pairs(kernel))
    return Part(title=f"{kernel.name}: what was shown", pieces=pieces, folded=True)


def _pairs(kernel: KernelRecord) -> Piece:
    pairs = kernel.pairs
    said = f"{pairs.met} of {pairs.asked} pairs of variants met in a problem"
    missed = [frozenset(pair.split(" + ")) for pair in pairs.missed]
    if not missed:
        return Lines([f"{said}."])
    names = sorted({name for pair in missed for name in pair})
    cross = Cell("\u2717", "bad")
    rows = [[one, *(cross if {one, other} in missed else "" for other in names)] for one in names]
    return Table.of(f"{said}; \u2717 never did.", ["", *names], rows, dense=True)
