"""A measured run: vLLM 0.19, Llama-3.1-8B, one RTX 4090, 300 requests (LLMServingSim examples)."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bench.command.progress import Progress
from bench.waste.clocks import roofline
from bench.waste.fitting import fit_clock
from bench.waste.gpus import read_gpu
from bench.waste.models import read_model
from bench.workloads.traces import TraceSource
from helpers.published import trace_folder
from paged.accounting import Serving
from paged.arrivals import Request
from paged.clock import StepTime
from paged.policy import PagedPolicy
from paged.scheduler import serve

STAMPS = "vllm019_rtx4090_llama8b_requests.jsonl.gz"
KEYS = "llmservingsim_sharegpt300_prefix16.qwen.jsonl.gz"
POLICY = PagedPolicy(block_size=16, max_running=256, token_budget=2048, prefix_caching=True)
BLOCKS = 2587
"""All but the engine's null block."""

# TTFT p50 and p90, TPOT p50 and p90, makespan: seconds, as measured.
MEASURED = {"ttft p50": 60.13, "ttft p90": 121.2, "tpot p50": 0.03076, "makespan": 183.57}
RUNNING, HELD = 32.48, 0.9325


def there(name: str) -> Path:
    if not (path := trace_folder() / name).exists():
        pytest.skip(f"no {name} in {trace_folder()}; point PAGEDBENCH_TRACES to it")
    return path


def served(time: StepTime) -> Serving:
    with gzip.open(there(STAMPS), "rt") as lines:
        stamps = [json.loads(line) for line in lines]
    with gzip.open(there(KEYS), "rt") as lines:
        keys = [json.loads(line)["hash_ids"] for line in lines]
    # The engine's clock is not that of the arrivals.
    late = min(row["queued_ts"] - row["arrival_time"] for row in stamps)
    begin = stamps[0]["arrival_time"] + late
    requests = [
        Request(
            row["input_toks"],
            row["output_toks"],
            round((row["arrival_time"] + late - begin) * 1e9),
            tuple(ids[: row["input_toks"] // 16]),
        )
        for row, ids in zip(stamps, keys, strict=True)
    ]
    return serve(requests, POLICY, slots=BLOCKS * 16, time=time)


def felt(serving: Serving) -> dict[str, float]:
    service = serving.service
    assert service is not None
    assert service.ttft is not None
    assert service.tpot is not None
    return {
        "ttft p50": service.ttft.p50_ns / 1e9,
        "ttft p90": service.ttft.p90_ns / 1e9,
        "tpot p50": service.tpot.p50_ns / 1e9,
        "makespan": service.makespan_ns / 1e9,
    }


def test_a_clock_of_the_first_third_foretells_the_whole() -> None:
    # Some hundred runs of the simulator, eight seconds: the one measured run that there is.
    sheets = roofline(read_model("Llama-3.1-8B"), read_gpu("RTX-4090"))
    assert sheets is not None
    clock = fit_clock(
        there(STAMPS),
        sheets,
        POLICY,
        slots=BLOCKS * 16,
        streams=[TraceSource(there(KEYS))],
        model=None,
        gpu=None,
        progress=Progress(),
    )
    assert abs(clock.errors["TPOT p90"]) < 0.05
    assert max(abs(clock.errors[name]) for name in clock.errors if name != "TPOT p90") < 0.04
    serving = served(clock.time)
    found = felt(serving)
    for name, measured in MEASURED.items():
        assert found[name] == pytest.approx(measured, rel=0.04), name
    total = serving.total
    # By time, not by step: a step with a prompt in it takes longer.
    times = np.array([0, *(moment.time_ns for moment in serving.series)])
    running = np.array([0, *(moment.running_requests for moment in serving.series)])
    steps = np.array([0, *(moment.steps for moment in serving.series)])
    held = np.array([0, *(moment.allocated for moment in serving.series)])
    share = np.sum(np.diff(held) / np.diff(steps) * np.diff(times)) / times[-1] / (BLOCKS * 16)
    assert share == pytest.approx(HELD, rel=0.02)
    mean = np.sum(np.diff(running) / np.diff(steps) * np.diff(times)) / times[-1]
    assert mean == pytest.approx(RUNNING, rel=0.02)
    assert total.completed == 300
    assert total.preemptions == pytest.approx(194, rel=0.1)
    assert total.hit_tokens == pytest.approx(4848, rel=0.02)


def test_data_sheets_alone_are_within_a_third() -> None:
    clock = roofline(read_model("Llama-3.1-8B"), read_gpu("RTX-4090"))
    assert clock is not None
    found = felt(served(clock.time))
    for name in ("tpot p50", "makespan"):
        assert found[name] == pytest.approx(MEASURED[name], rel=0.3), name
