"""The coverage matrix as markdown: for a job's summary, or a README."""

from __future__ import annotations

from bench.check.coverage import checks_of
from bench.check.record import CheckRecord, KernelRecord
from reference.attention.coverage import Cell
from reference.attention.verdict import Status


def markdown(record: CheckRecord) -> str:
    """A table for each kernel, and under what it was made."""
    machine = record.environment
    commit = f", commit {machine.commit}" if machine.commit else ""
    parts = [_kernel(kernel) for kernel in record.kernels]
    parts.append(
        f"{record.started_at}, seed {record.seed}, {machine.device}, torch {machine.torch}, "
        f"triton {machine.triton}, pagedbench {machine.pagedbench}{commit}"
    )
    return "\n\n".join(parts) + "\n"


def _kernel(kernel: KernelRecord) -> str:
    names = checks_of(kernel)
    lines = [
        f"### `{kernel.name}`",
        "",
        _row(["", *names]),
        _row(["---"] * (len(names) + 1)),
        *(
            _row([f"`{row.feature}`", *(_cell(row.cells[name]) for name in names)])
            for row in kernel.coverage
        ),
    ]
    notes = [f"`{check}` was not run: {why}." for check, why in kernel.unseen.items()]
    notes += [f"{one.said}." for one in kernel.expected]
    return "\n".join([*lines, *(line for note in notes for line in ("", note))])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    passed = cell.counts.get(Status.PASSED, 0)
    if cell.state == "passed":
        return f"{passed} passed"
    if cell.state in {"failed", "failed as expected"}:
        return f"**{cell.failed}** of {passed + cell.failed} {cell.state}"
    return cell.state
