"""The held-out recordings under three public tools, beside `pagedbench diagnose`.

    python -m venv tools
    tools/bin/pip install inferpilot==0.1.0 vllm-doctor==0.6.0 fbc-cache-lint==0.1.0
    python -m studies.public_tools --python tools/bin/python FOLDER...

Each tool is asked by its own command line, as its documentation says, of what it reads:

    inferpilot doctor BEFORE AFTER --json      two scrapes, 45 s or more apart where there are such
    vllm-doctor diagnose URL --output json     the later of them, served on loopback
    fbc-cache-lint report SCRAPES --json       all scrapes, under marks of its own

The later scrape is the one at nine tenths of the load. What a tool says is taken in its favour: of
several findings the best counts, and a consequence of the cause counts as the cause. A finding that
lists causes without choosing one names a family.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from bench.diagnose.observed import Observed, merge
from bench.diagnose.readers import read_all
from bench.diagnose.run import diagnose

FAMILIES: Final = {
    "memory": ("pool_too_small", "load_growth", "long_generations", "block_leak"),
    "queue and engine": (
        *("head_of_line", "max_num_seqs_cap", "token_budget_small", "compute_bound", "bursts"),
        *("engine_slowed", "decode_stalled_by_prefill", "noisy_tenant", "client_aborts"),
        *("hot_replica", "request_larger_than_pool", "offload_bound"),
    ),
    "hit rate": (
        *("prefix_evicted", "working_set_too_big", "varying_prefix", "cache_salts"),
        *("prefix_shorter_than_block", "prefix_caching_off", "template_change"),
        *("evicted_between_turns", "round_robin_replicas"),
    ),
    "front end and life": ("too_long_requests", "admission_limit", "start_refused", "restart"),
}
HEALTHY: Final = "healthy"
ABSTAINS: Final = "abstains"

Said = tuple[str, tuple[str, ...]]
"""A family, and the causes of it that are named."""

Truth = Mapping[str, list[str]]

SAYS: Final[Mapping[str, Mapping[str, Said]]] = {
    "inferpilot 0.1.0": {
        "kv_capacity_bound_preempting": ("memory", ("pool_too_small",)),
        "near_capacity": ("memory", ()),
        "not_kv_bound": ("queue and engine", ("compute_bound",)),
        "need_second_snapshot": (ABSTAINS, ()),
        "insufficient_metrics": (ABSTAINS, ()),
    },
    "vllm-doctor 0.6.0": {
        "kv_cache_pressure": ("memory", ("pool_too_small",)),
        "preemption_pressure": ("memory", ("pool_too_small",)),
        "queue_pressure": ("queue and engine", ()),
        "queue_latency": ("queue and engine", ()),
        "ttft_bottleneck": ("queue and engine", ()),
        "tpot_bottleneck": ("queue and engine", ()),
        "low_throughput": ("queue and engine", ()),
        "replica_imbalance": ("queue and engine", ("hot_replica",)),
        "prefix_cache_efficiency": ("hit rate", ()),
        "error_rate": ("front end and life", ()),
    },
    "fbc-cache-lint 0.1.0": {
        "prefix_cache_hit_rate_decay": ("hit rate", ("template_change",)),
        "eviction_churn": ("memory", ("pool_too_small",)),
        "route_utilisation_skew": ("hit rate", ("round_robin_replicas",)),
    },
}
"""What the tools' findings come to; any other is an error of this study."""

APART_S: Final = 45.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--python", required=True, help="interpreter that has the tools")
    asked = parser.parse_args()
    recordings = [
        truth.parent
        for given in asked.folders
        for truth in sorted(given.glob("*/truth.json"))
        if json.loads(truth.read_text(encoding="utf-8"))["held_out"]
    ]
    with tempfile.TemporaryDirectory() as scratch:
        print("\n".join(table(answers(recordings, asked.python, Path(scratch)))))


def answers(
    recordings: Iterable[Path], python: str, scratch: Path
) -> Iterator[tuple[Truth, dict[str, list[Said]]]]:
    """The truth of each recording, and what each tool says of it."""
    with subprocess.Popen(
        [python, str(Path(__file__).with_name("public_tools_child.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for folder in recordings:
            truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
            found: dict[str, list[Said]] = {tool: [(ABSTAINS, ())] for tool in SAYS}
            if (asked := scrapes(folder, scratch)) is not None:
                child.stdin.write(json.dumps(asked) + "\n")
                child.stdin.flush()
                for tool, names in json.loads(child.stdout.readline()).items():
                    found[tool] = [SAYS[tool][name] for name in names]
            parts = [read_all([file]) for file in sorted(folder.iterdir()) if _seen(file)]
            scraped = [each for each in parts if each.sources[0].format == "scrapes"]
            found["pagedbench, the same scrapes"] = _ours(scraped)
            found["pagedbench, with log and events"] = _ours(parts)
            yield truth, found


def _seen(file: Path) -> bool:
    return file.name.startswith(("metrics.", "server.", "kv_events."))


def _ours(parts: list[Observed]) -> list[Said]:
    found = diagnose(merge(parts))
    if found.verdict == "cannot tell":
        return [(ABSTAINS, ())]
    return [(_family(cause.mode), (cause.mode,)) for cause in found.causes]


def _family(mode: str) -> str:
    """The family of a cause; healthy: there is none."""
    return next((name for name, modes in FAMILIES.items() if mode in modes), HEALTHY)


def scrapes(folder: Path, scratch: Path) -> dict[str, str] | None:
    """Files of the scrapes that the tools are to read. None: the server never answered."""
    with gzip.open(folder / "metrics.prom.gz", "rt", encoding="utf-8") as lines:
        parts = [part.partition("\n") for part in lines.read().split("# scrape ")[1:]]
    bodies = [(float(head), body) for head, _, body in parts if "FAILED" not in head]
    if not bodies:
        return None
    busy = [at for at, (_, body) in enumerate(bodies) if _busy(body)] or [0, len(bodies) - 1]
    after = busy[0] + round(0.9 * (busy[-1] - busy[0]))
    apart = [at for at in range(after) if bodies[after][0] - bodies[at][0] >= APART_S]
    before = apart[-1] if apart else 0
    texts = {
        "before": bodies[before][1],
        "after": bodies[after][1],
        "all": "".join(f"# scrape_unix_ms {1000 * time_s:.0f}\n{body}" for time_s, body in bodies),
    }
    files = {name: scratch / f"{name}.prom" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text, encoding="utf-8")
    return {name: str(file) for name, file in files.items()}


def _busy(body: str) -> bool:
    gauges = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return any(
        line.startswith(gauges) and float(line.rpartition(" ")[2]) > 0 for line in body.split("\n")
    )


def table(told: Iterable[tuple[Truth, dict[str, list[Said]]]]) -> list[str]:
    """How often each tool names the cause, its family, something else, nothing; of each family."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    sizes: Counter[str] = Counter()
    tools: list[str] = []
    for truth, found in told:
        causes = {mode for mode in truth["modes"] if _family(mode) != HEALTHY}
        row = "two causes" if len(causes) > 1 else _family(next(iter(causes), HEALTHY))
        sizes[row] += 1
        tools = list(found)
        for tool, said in found.items():
            counts[row, tool][_outcome(causes, {*causes, *truth["also_true"]}, said)] += 1
    lines = [f"| | {' | '.join(tools)} |", "| --- |" + " --- |" * len(tools)]
    for row in (*FAMILIES, "two causes", HEALTHY):
        cells = [", ".join(f"{o} {n}" for o in OUTCOMES if (n := counts[row, t][o])) for t in tools]
        lines.append(f"| {row} ({sizes[row]}) | {' | '.join(cells)} |")
    return lines


OUTCOMES: Final = ("both", "cause", "family", "other", "called ill", "nothing", "abstains")


def _outcome(causes: set[str], true: set[str], said: list[Said]) -> str:
    if said == [(ABSTAINS, ())]:
        return "abstains"
    if not said:
        return "nothing"
    if not causes:
        return "called ill"
    named = {mode for _, modes in said for mode in modes}
    if len(causes) > 1 and causes <= named:
        return "both"
    if named & true:
        return "cause"
    families = {_family(mode) for mode in true}
    return "family" if any(family in families for family, _ in said) else "other"


if __name__ == "__main__":
    main()
