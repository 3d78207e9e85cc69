"""`pagedbench check` on a page: coverage as a map, and each finding with its problem drawn."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

from bench.check.lost_key import lost_key
from bench.check.record import CheckRecord, Failure, KernelRecord
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
from reference.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS: Final = 4096
"""Tokens in the cache of a problem up to which it is drawn, and its tolerance computed."""

MAX_BLOCKS: Final = 512
"""Blocks of a problem up to which they are drawn."""

STATES: Final[dict[str, tuple[str, Tone]]] = {
    "passed": ("\u2713", "good"),
    "failed": ("\u2717", "bad"),
    "failed as expected": ("e", "unsure"),
    "not run": ("?", "unsure"),
    "not supported": ("n/a", "dim"),
    "no problem shows it": ("\u00b7", "dim"),
}

_TOKEN: Final = re.compile(r"\[token (\d+)")
_OFF: Final = re.compile(r"out\[token (\d+), head (\d+)\].*off by ([\d.e+-]+|inf), allowed")
_FOREIGN: Final = re.compile(r"\btoken (\d+) of sequence (\d+)")


def sheet(record: CheckRecord) -> Sheet:
    """A record on a page."""
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
        return "; ".join(said) + "."
    return f"{some_of(names)}: {record.verdict} in {problems}."


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
    return Part(
        title=f"{kernel.name}: {failure.status.value}, {failure.check}",
        pieces=[
            Lines(failure.findings, "bad"),
            Lines(about),
            *([Command(failure.replay, "To see it again:")] if failure.replay else []),
            *drawn(failure.problem, failure.findings),
        ],
    )


def drawn(spec: str, findings: Sequence[str]) -> Iterator[Piece]:
    """A problem as sequences of blocks, with the row that is wrong and the keys that it sees."""
    try:
        problem = AttentionProblem.parse(spec)
    except BadInput:
        return
    if problem.cache_tokens > MAX_TOKENS or problem.num_blocks > MAX_BLOCKS:
        yield Lines(["The problem is too large to be drawn."], "dim")
        return
    from reference.attention.inputs import make_inputs
    from reference.attention.placement import place

    batch = place(make_inputs(problem)).batch
    lost = lost_key(problem, findings)
    if lost is not None:
        yield Lines(
            [f"What was seen is what the row is without the key at position {lost[1]}."], "bad"
        )
    said = " ".join(findings)
    token = next((int(at) for at in _TOKEN.findall(said)), None)
    foreign = {(int(at), int(token)) for token, at in _FOREIGN.findall(said)}
    named = foreign | ({lost} if lost is not None else set())
    strips = []
    for number, request in enumerate(problem.requests):
        blocks = -(-request.seq_len // problem.block_size)
        seen = _seen(problem, number, token)
        strips.append(
            Strip(
                name=f"sequence {number}: q{request.query_len} k{request.seq_len}",
                blocks=[
                    _block(
                        problem,
                        request,
                        at,
                        block,
                        seen,
                        {token for at_sequence, token in named if at_sequence == number},
                    )
                    for at, block in enumerate(batch.block_table[number, :blocks].tolist())
                ],
                note=_note(request, seen, token),
            )
        )
    frame = Frame(title=f"block size {problem.block_size}, {problem}", strips=strips)
    yield Film(
        caption="The problem: each box is a block, its number the one in the block table. Blocks "
        "lie in memory in the order of their numbers.",
        frames=[frame],
        legend=[
            ("seen", "holds keys that the wrong row has to see"),
            ("unseen", "not to be seen by it"),
            *([("lost", "has the key that was lost")] if lost is not None else []),
            *([("lost", "touched, and not its own")] if foreign else []),
        ],
    )
    if (off := _OFF.search(said)) is not None:
        yield _tolerance(problem, int(off[1]), int(off[2]), float(off[3]))


def _seen(problem: AttentionProblem, number: int, token: int | None) -> Tensor | None:
    """Keys of a sequence that a row of the batch sees; None if the row is of another one."""
    import torch

    from reference.attention.truth import visible

    request, start = problem.requests[number], problem.query_starts[number]
    if token is None or not start <= token < start + request.query_len:
        return None
    return visible(problem, request, torch.device("cpu"))[token - start].nonzero().flatten()


def _block(
    problem: AttentionProblem,
    request: Request,
    at: int,
    block: int,
    seen: Tensor | None,
    named: set[int],
) -> Block:
    first = at * problem.block_size
    last = min(first + problem.block_size, request.seq_len) - 1
    gone = any(first <= token <= last for token in named)
    keys = 0 if seen is None else int(((seen >= first) & (seen <= last)).sum())
    return Block(
        label=str(block),
        state="lost" if gone else "seen" if keys else "unseen",
        owner=f"{first}\u2013{last}" if last > first else str(first),
        changed=gone,
        hint=f"block {block}: positions {first} to {last}, of which the row sees {keys}",
    )


def _note(request: Request, seen: Tensor | None, token: int | None) -> str:
    if seen is None:
        return ""
    if not len(seen):
        return f"row {token} of the batch is wrong; it is to see no key"
    keys = f"keys {int(seen[0])} to {int(seen[-1])}"
    gaps = "" if len(seen) == int(seen[-1] - seen[0]) + 1 else ", with gaps"
    return (
        f"row {token} of the batch is wrong; it is to see {keys}{gaps}: {len(seen)} of "
        f"{request.seq_len}"
    )


def _tolerance(problem: AttentionProblem, token: int, head: int, error: float) -> Picture:
    from bench.command.page.pictures import COLOURS, as_svg, new_figure, plain_numbers
    from reference.attention.inputs import make_inputs
    from reference.attention.tolerance import out_allowance
    from reference.attention.truth import attend

    allowed = out_allowance(problem, attend(make_inputs(problem)))[:, head]
    figure = new_figure(5.2, 2.4)
    axes = figure.subplots()
    axes.plot(allowed.tolist(), ".-", color=COLOURS[0], label="allowed")
    axes.plot([token], [error], "X", color=COLOURS[1], markersize=9, label="error of the wrong row")
    axes.set_yscale("log")
    plain_numbers(axes)
    axes.set_xlabel(f"row of the batch (token), head {head}")
    axes.legend(frameon=False)
    words = "Error of the worst row against the tolerance of every row."
    return Picture(as_svg(figure, said=words), words)


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
