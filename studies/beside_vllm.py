"""How near our server comes to vLLM's own scheduler: eight streams, and two rankings of policies.

    python -m studies.beside_vllm TRACES [--into FOLDER]

Prints the figures of docs/memory-waste.md, "An engine's own scheduler beside ours". Needs the
engine's environment (make engine-vllm); the folder TRACES has the files of the last two streams.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.waste.engine import BesideRecord, BesideRow

CLOCK = "base=25ms,prompt=89us,kv=0.1us"
POLICY = "paged:budget=2048,max-running=64"
DRAWN = (
    "azure-fit:rate=4",
    "azure-fit:rate=2",
    "sharegpt-fit:rate=2.5",
    "sharegpt-fit:rate=6,system=512,prompts=8",
    "azure-code-fit:rate=3",
    "alpaca-fit:rate=10",
)
TRACES = ("mooncake_conversation.jsonl.gz", "llmservingsim_sharegpt300_prefix16.qwen.jsonl.gz")
RANKED = ("azure-fit:rate=8", "sharegpt-fit:rate=8,system=512,prompts=24")
CHANGES = (
    POLICY,
    f"{POLICY},block=8",
    f"{POLICY},block=32",
    f"{POLICY},block=64",
    f"{POLICY},watermark=0.02",
    f"{POLICY},watermark=0.05",
    f"{POLICY},prefix=lru",
    f"{POLICY},prefix=lru,watermark=0.05",
    "paged:budget=1024,max-running=64",
    "paged:budget=4096,max-running=64",
    "paged:budget=2048,max-running=32",
)
"""The base, and ten changes of it."""
FIGURES = (
    "requests_per_s",
    *(f"service.{t}.{p}_ns" for t in ("ttft", "tpot") for p in ("p50", "p99")),
)
COUNTS = ("preemptions", "hit_tokens")


def beside(into: Path, name: str, *arguments: str) -> BesideRecord:
    """Serve on both."""
    kept = into / f"{name}.json"
    command = [sys.executable, "-m", "bench.cli", "waste", "--server", "vllm", "--clock", CLOCK]
    subprocess.run(
        [*command, *arguments, "--json", str(kept)], check=True, stdout=subprocess.DEVNULL
    )
    return BesideRecord.model_validate_json(kept.read_text())


def lines(record: BesideRecord) -> Iterator[str]:
    """A row of each stream: ours against the engine's, in percent, and counts of both."""
    for row in record.rows:
        found = [
            f"{attrgetter(name)(row.ours) / attrgetter(name)(row.engine) - 1:+.1%}"
            for name in FIGURES
        ]
        found += [f"{getattr(row.engine, name)} and {getattr(row.ours, name)}" for name in COUNTS]
        yield f"| {Path(row.stream).name} | {' | '.join(found)} |"


def plain_tau(rows: list[BesideRow]) -> float:
    """Kendall's tau-b of requests a second as they are: the smallest difference orders a pair."""
    pairs = [(row.engine.requests_per_s, row.ours.requests_per_s) for row in rows]
    signs = [
        ((a > b) - (a < b), (x > y) - (x < y))
        for at, (a, x) in enumerate(pairs)
        for b, y in pairs[:at]
    ]
    ordered = [sum(sign[side] ** 2 for sign in signs) for side in (0, 1)]
    return float(sum(a * x for a, x in signs) / (ordered[0] * ordered[1]) ** 0.5)


def main() -> None:
    """Serve, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, help="keep the records here")
    parser.add_argument("traces", type=Path, help="folder of the traces")
    typed = parser.parse_args()
    with TemporaryDirectory() as scratch:
        into = typed.into or Path(scratch)
        into.mkdir(parents=True, exist_ok=True)
        streams = [word for each in DRAWN for word in ("--stream", each)]
        streams += [word for each in TRACES for word in ("--trace", str(typed.traces / each))]
        given = ["--requests", "300", "--slots", "60000", "--policy", f"{POLICY},prefix=lru"]
        print(
            "stream | requests/s | TTFT p50 | p99 | TPOT p50 | p99 "
            "| preemptions, vLLM and ours | hit tokens"
        )
        print(*lines(beside(into, "streams", *streams, *given)), sep="\n", flush=True)
        changes = [word for each in CHANGES for word in ("--policy", each)]
        for number, stream in enumerate(RANKED):
            given = ["--stream", stream, "--requests", "600", "--slots", "40000", *changes]
            record = beside(into, f"ranked-{number}", *given)
            print(
                f"\n{stream}: tau {record.tau(record.rows[0].stream):.2f}, "
                f"every difference counted {plain_tau(record.rows):.2f}"
            )
            for change, line in zip(CHANGES, lines(record), strict=True):
                print(change, line, flush=True)


if __name__ == "__main__":
    main()
