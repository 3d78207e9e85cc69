"""Hit curves of pagedbench beside those of KVCache.AI's kvcache-simulator, on one trace in one run.

    pip install kvcache-simulator==0.1.3   # in an environment of its own, with a C++ compiler
    python -m scripts.beside_kvcache_simulator PATH/TO/bin/kvcache-simulator TRACE.jsonl[.gz]

Both replay the same prompts in the same order in blocks of 512, count the second half of them, and
get the sizes of the cache that the simulator makes of bytes for Llama-3.1-8B. Prints the table of
docs/memory-waste.md, and the CPU time of theirs as a share of ours.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench.waste.prefix_replay import ReplayOrder, replay
from bench.workloads.traces import read_trace

ORDERS: Final[dict[str, ReplayOrder]] = {"lru": "lru", "fifo": "fifo", "optimal": "belady"}
GIB: Final = (16, 64, 256, 1024)
BLOCK: Final = 512


def main(simulator: str, trace: Path) -> None:
    """Run both, and print the table."""
    asked = ["run", f"--trace={trace}", "--model=llama-3.1-8b", f"--block-size={BLOCK}"]
    asked += [f"--budgets-gib={','.join(map(str, GIB))}", "--format=json", "--no-progress"]
    theirs = json.loads(subprocess.check_output([simulator, *asked]))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.process_time()
    stream = read_trace(trace)
    warmup = theirs["metadata"]["warmupRequests"]
    print(f"| cache, blocks of {BLOCK} | {' | '.join(ORDERS)} |")
    print("| --- " * (1 + len(ORDERS)) + "|")
    for point in theirs["points"]:
        blocks, cells = point["cacheBlocks"], []
        for name, order in ORDERS.items():
            ours = replay(stream, blocks * BLOCK, order, warmup_requests=warmup)
            other = point["results"][name]
            if ours.queried_tokens != other["totalTokens"]:
                raise SystemExit(f"{ours.queried_tokens:,} tokens, not {other['totalTokens']:,}")
            ratio = ours.hit_tokens / other["hitTokens"]
            cells.append(f"{ours.hit_rate:.2%} / {other['hitRate']:.2%}, {ratio:.4f}")
        print(f"| {blocks:,} | {' | '.join(cells)} |")
    print(f"CPU, theirs / ours: {(spent.ru_utime + spent.ru_stime) / _since(began):.1f}")


def _since(began: float) -> float:
    return time.process_time() - began


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
