"""How near our server comes to Vidur, and how fast both are: the same requests through each.

    python -m studies.beside_vidur VIDUR --python VIDUR_ENV/bin/python

Prints the table of docs/memory-waste.md, "A public simulator beside ours". VIDUR is a folder with
Microsoft's `vidur` package and its `data/processed_traces`; below `data/profiling/compute/a30` it
needs a profile of Qwen2-7B (mlp.csv and attention.csv). Our clock is fitted to the first third of
what Vidur says of the requests. Skips, saying so, where one of them is missing.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.command.progress import Progress
from bench.waste.clocks import ROUND_FIGURES
from bench.waste.fitting import fit_clock
from bench.waste.simulate import simulate
from bench.workloads.traces import read_trace
from paged.policy import PagedPolicy

TRACE: Final = "data/processed_traces/splitwise_conv.csv"
PROFILE: Final = "data/profiling/compute/a30/Qwen/Qwen-2-7B"
MOST_RUNNING: Final = 48
"""Sequences of a batch that the profile knows."""
BUDGET: Final = 512
RUNS: Final = 20
LOG: Final = "arrival_s prompt_tokens output_tokens ttft e2e"
POLICY: Final = PagedPolicy(token_budget=BUDGET, max_running=MOST_RUNNING, watermark=0.01)
CASES: Final = ((4, 6_000), (3, 1_500), (2, 6_000), (2, 1_500))
"""The trace's time is stretched by so much; blocks of 16 tokens."""
FIGURES: Final = ("TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90", "makespan")
FOREST: Final = "--random_forrest_execution_time_predictor_config_"
FIXED: Final = f"""
{FOREST}num_estimators 250 {FOREST}max_depth 32 {FOREST}min_samples_split 2
{FOREST}num_training_job_threads 1 {FOREST}prediction_max_batch_size {MOST_RUNNING}
{FOREST}prediction_max_prefill_chunk_size {BUDGET}
--replica_scheduler_config_type sarathi --sarathi_scheduler_config_chunk_size {BUDGET}
--sarathi_scheduler_config_batch_size_cap {MOST_RUNNING}
--replica_config_model_name Qwen/Qwen-2-7B --request_generator_config_type trace_replay
--no-metrics_config_store_plots --no-metrics_config_enable_chrome_trace
--no-metrics_config_store_utilization_metrics --no-metrics_config_store_batch_metrics
"""
"""One of the forests that it would search for the best, and no more output than is read."""

DRIVER: Final = """
import dataclasses, json, sys, time, pandas
from vidur.config import SimulationConfig
from vidur.config.model_config import QwenModelConfig
from vidur.simulator import Simulator
from vidur.utils.random import set_seeds
@dataclasses.dataclass
class Qwen2(QwenModelConfig):
    num_layers: int = 28
    num_q_heads: int = 28
    num_kv_heads: int = 4
    embedding_dim: int = 3584
    mlp_hidden_dim: int = 18944
    vocab_size: int = 151936
    @staticmethod
    def get_name():
        return "Qwen/Qwen-2-7B"
given, into = sys.argv.pop(1), sys.argv.pop(1)
times = pandas.read_csv(given).sort_values("num_tokens")
times.interpolate(limit_direction="both").to_csv(into, index=False)  # what was not profiled
config = SimulationConfig.create_from_cli_args()
set_seeds(config.seed)
simulator = Simulator(config)
began = time.process_time()
simulator.run()
print(json.dumps({"cpu": time.process_time() - began, "into": config.metrics_config.output_dir}))
"""


def run(
    vidur: Path, python: str, scratch: Path, rows: list[list[str]], blocks: int
) -> tuple[float, int]:
    """Leave its metrics as a request log; the CPU seconds of its run alone, and its restarts."""
    profile, filled = vidur / PROFILE, scratch / "mlp.csv"
    options = {
        f"{FOREST}compute_input_file": filled,
        f"{FOREST}attention_input_file": profile / "attention.csv",
        "--sarathi_scheduler_config_num_blocks": blocks,
        "--trace_request_generator_config_trace_file": scratch / "requests.csv",
        "--metrics_config_output_dir": scratch / "out",
        "--metrics_config_cache_dir": scratch / "cache",
    }
    command = [python, "-c", DRIVER, str(profile / "mlp.csv"), str(filled), *FIXED.split()]
    command += [str(word) for option in options.items() for word in option]
    out = subprocess.check_output(command, cwd=vidur, env={"PYTHONPATH": str(vidur)}, text=True)
    done = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    with Path(done["into"], "request_metrics.csv").open() as said:
        found = sorted(csv.DictReader(said), key=lambda row: int(row["Request Id"]))
    ends = ((row["prefill_e2e_time"], row["request_e2e_time"]) for row in found)
    table = [(*given, *end) for given, end in zip(rows, ends, strict=True)]
    with (scratch / "log.csv").open("w") as into:
        csv.writer(into).writerows([LOG.split(), *table])
    return done["cpu"], sum(int(row["request_num_restarts"]) for row in found)


def rows_of(vidur: Path, python: str, scratch: Path) -> Iterator[str]:
    """Each case: ours against Vidur's in percent, preemptions of both, and the ratio of speed."""
    with (vidur / TRACE).open() as whole:
        head, *rows = csv.reader(whole)
    rows = [row for row in rows if int(row[1]) + int(row[2]) <= 4096][:600]  # others it cuts
    for stretch, blocks in CASES:
        slowed = [[f"{float(row[0]) * stretch:.6f}", *row[1:]] for row in rows]
        with (scratch / "requests.csv").open("w") as into:
            csv.writer(into).writerows([head, *slowed])
        theirs, restarts = run(vidur, python, scratch, slowed, blocks)
        slots = 16 * blocks
        fit = partial(fit_clock, streams=(), model=None, gpu=None, progress=Progress())
        clock = fit(scratch / "log.csv", ROUND_FIGURES, POLICY, slots=slots)
        serve = partial(simulate, policy=POLICY, slots=slots, warmup=0, time=clock.time)
        began = time.process_time()
        servings = [serve(read_trace(scratch / "requests.csv")) for _ in range(RUNS)]
        ratio = theirs * RUNS / (time.process_time() - began)
        errors = (f"{clock.errors[name]:+.1%}" for name in FIGURES)
        cells = [f"{len(rows) / float(slowed[-1][0]):.2f}", f"{slots:,}", *errors]
        cells += [f"{restarts} and {servings[0].total.preemptions}", f"{ratio:.0f}"]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Run both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vidur", type=Path, help="folder with the package vidur and its data")
    parser.add_argument("--python", default="python3", help="interpreter with its requirements")
    typed = parser.parse_args()
    vidur = typed.vidur.resolve()
    for each in ("vidur/simulator.py", TRACE, f"{PROFILE}/mlp.csv", f"{PROFILE}/attention.csv"):
        if not (vidur / each).is_file():
            raise SystemExit(f"skipped: no {each} in {vidur}")
    print(f"| requests/s | slots | {' | '.join(FIGURES)} | preemptions | speed |")
    print("| --- " * 9 + "|", flush=True)
    with TemporaryDirectory() as scratch:
        print(*rows_of(vidur, typed.python, Path(scratch)), sep="\n")


if __name__ == "__main__":
    main()
