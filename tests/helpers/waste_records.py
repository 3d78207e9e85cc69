"""Records of `pagedbench waste`, simulated or made up, from a machine that is nobody's."""

from typing import Any

from bench.machine.environment import WasteEnvironment
from bench.waste.parallel import Job, run
from bench.waste.policies import parse_policy
from bench.waste.record import ClockRecord, PoolRecord, WasteRecord, WasteRow
from bench.workloads.record import served_stream
from bench.workloads.source import StreamSource
from bench.workloads.spec import parse_source

MACHINE = WasteEnvironment(
    pagedbench="1", python="3", numpy="2", cpu="a CPU", cores=1, commit=None, dirty=None
)


def job(policy: str, stream: str | StreamSource, *, slots: int, **changes: Any) -> Job:
    """A simulation of a stream, which is named or at hand."""
    source = parse_source(stream) if isinstance(stream, str) else stream
    requests = sum(len(part) for part in source.chunks())
    parsed = parse_policy(policy, max_model_len=1024)
    return Job(stream="s", source=source, requests=requests, policy=parsed, slots=slots, **changes)


def simulated(asked: Job) -> WasteRow:
    """The row of a simulation, which took no time."""
    _, row = run(0, asked)
    assert isinstance(row, WasteRow), row
    return row.model_copy(update={"seconds": 0.0})


def waste_record(
    *rows: WasteRow, stream: str = "alpaca-fit:requests=40", base: str | None = None, **changes: Any
) -> WasteRecord:
    """A record of rows on a stream that is called `s`."""
    return WasteRecord(
        **{
            "started_at": "",
            "elapsed_s": 0.25,
            "command": [],
            "complete": True,
            "asked": len(rows),
            "machine": MACHINE,
            "pool": PoolRecord(slots=rows[0].total.slots, bytes_per_token=2**20),
            "warmup": None,
            "clients": None,
            "step_ns": 30_000_000,
            "prefill_ns_per_token": 50_000,
            "base": base,
            "streams": [served_stream(parse_source(stream), label="s")],
            "rows": list(rows),
            "clock": ClockRecord(source="round figures", error=0.02),
            "rank": "requests",
        }
        | changes
    )
