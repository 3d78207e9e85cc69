"""What `pagedbench diagnose` says that a change would do, beside the engine run again with it.

    python -m studies.predicted_effects [--into FOLDER]

Incidents are recorded as `make incidents` records them, and again with one argument of the engine
changed: arrivals, lengths and clients are the same, and the second goes on until the last answer,
as the simulation does. For each pair the prediction from the first
recording alone is held against the second: whether requests/s rises, falls or stays (within 2 %),
preemptions within 20 % of the engine's or within two, median TTFT within 20 % where there are
arrivals. Needs the engine's environment: make engine-vllm.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.diagnose.observed import Observed
from bench.diagnose.prescribe import prescribe
from bench.diagnose.readers import read_all
from bench.diagnose.record import Prediction
from bench.diagnose.window import windows
from scripts.make_incidents import make
from subjects.environments import engine_python

SEEDS = (0, 1, 2)

TRIED = {
    "pool_too_small": ("50 % more blocks", "watermark 5 %", "max_num_seqs"),
    "pool_too_small+varying_prefix": ("50 % more blocks",),
    "load_growth": ("50 % more blocks", "watermark 5 %", "max_num_seqs"),
    "max_num_seqs_cap": ("max_num_seqs", "50 % more blocks"),
    "token_budget_small": ("token budget",),
}
"""Changes by incident: 11 by three seeds, less those whose incident cannot be simulated."""

STAYS = 0.02
"""Change of requests/s, as a share, that counts as none."""

CLOSE = 0.2
"""Difference from the engine, as a share, within which a figure is right."""


@dataclass(frozen=True)
class Ran:
    """What the engine did."""

    requests_per_s: float
    preemptions: int
    ttft_s: float


def arguments(change: str, observed: Observed) -> list[str]:
    """The engine's arguments for a change."""
    config = observed.config
    number = re.search(r"([\d,]+)\Z", change)
    if change == "50 % more blocks":
        blocks = config["num_blocks"]
        assert isinstance(blocks, float)
        return ["--num-gpu-blocks-override", str(1 + (int(blocks) - 1) * 3 // 2)]
    if change == "watermark 5 %":
        return ["--watermark", "0.05"]
    assert number is not None
    option = "max-num-seqs" if change.startswith("max_num_seqs") else "max-num-batched-tokens"
    return [f"--{option}", number[1].replace(",", "")]


def seen(folder: Path) -> Observed:
    """Read what a diagnosis may read."""
    names = ("metrics.prom.gz", "kv_events.jsonl.gz", "server.log.gz")
    return read_all([folder / name for name in names])


def ran(folder: Path) -> Ran:
    """Read what happened."""
    seconds = json.loads((folder / "truth.json").read_text())["duration_s"]
    with gzip.open(folder / "client_requests.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["ttft_s"]]
    ended = [float(row["t"]) + float(row["e2e_s"]) for row in rows if row["status"] == "200"]
    window = windows(seen(folder))[0]
    within = window.times_s[1:] <= window.times_s[0] + seconds
    preempted = window.gains("preemptions")
    return Ran(
        requests_per_s=sum(end <= seconds for end in ended) / seconds,
        preemptions=int(preempted[within].sum()) if preempted is not None else 0,
        ttft_s=median(float(row["ttft_s"]) for row in rows),
    )


def sign(change: float) -> int:
    return 0 if abs(change) <= STAYS else 1 if change > 0 else -1


def chosen(asked: str, predictions: list[Prediction]) -> Prediction | None:
    """The prediction for a change; of several limits, the last that differs from as it is."""
    found = [each for each in predictions if each.change.startswith(asked)]
    return found[-1] if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path(".incidents/changed"))
    into = parser.parse_args().into.absolute()
    python = str(engine_python("vllm"))

    def record(jobs: list[tuple[str, int, str, list[str]]]) -> None:
        todo = [
            {"name": name, "seed": seed, "held_out": seed % 3 == 2, "changed": changed}
            | {"folder": f"{into}/{label}", "drain": 1000 if changed else 8}
            for name, seed, label, changed in jobs
            if not (into / label / "truth.json").is_file()
        ]
        if todo and (failed := make(todo, python)):
            raise SystemExit(f"failed: {', '.join(failed)}")

    every = [(name, seed, f"{name}-{seed}") for name in TRIED for seed in SEEDS]
    record([(name, seed, label, []) for name, seed, label in every])
    pairs: list[tuple[str, Prediction, Prediction, str]] = []
    jobs: list[tuple[str, int, str, list[str]]] = []
    for name, seed, label in every:
        observed = seen(into / label)
        told = prescribe(windows(observed)[0])
        if not told.reproduced:
            print(f"{label}: nothing is promised, {told.why_not}")
            continue
        for asked in TRIED[name]:
            if (prediction := chosen(asked, told.predictions)) is None:
                continue
            folder = f"{label}, {prediction.change}".replace(" ", "_").replace(",", "")
            jobs.append((name, seed, folder, arguments(prediction.change, observed)))
            pairs.append((label, told.predictions[0], prediction, folder))
    record(jobs)

    print("recording, change: requests/s, preemptions, median TTFT; predicted and engine")
    signs = close = 0
    for label, base, prediction, folder in pairs:
        was, became = ran(into / label), ran(into / folder)
        right = sign(prediction.requests_per_s / base.requests_per_s - 1) == sign(
            became.requests_per_s / was.requests_per_s - 1
        )
        off = abs(prediction.preemptions - became.preemptions)
        near = off <= max(2, CLOSE * became.preemptions)
        waited = prediction.ttft_p50_s
        if waited is not None:
            near &= abs(waited - became.ttft_s) <= max(0.05, CLOSE * became.ttft_s)
        signs += right
        close += near
        print(
            f"{label}, {prediction.change}: {base.requests_per_s:.2f} -> "
            f"{prediction.requests_per_s:.2f} and {was.requests_per_s:.2f} -> "
            f"{became.requests_per_s:.2f}{'' if right else ' WRONG'}; {prediction.preemptions} and "
            f"{became.preemptions}; {'-' if waited is None else f'{waited:.2f} s'} and "
            f"{became.ttft_s:.2f} s{'' if near else ' FAR'}"
        )
    print(f"{len(pairs)} pairs: sign right in {signs}, figures close in {close}")


if __name__ == "__main__":
    main()
