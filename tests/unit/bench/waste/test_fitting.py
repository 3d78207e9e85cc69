"""A clock that is fitted: to a log that a known clock made, to metrics, to a throughput record."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.command.progress import Progress
from bench.waste.clocks import ROUND_FIGURES, Clock, read_clock
from bench.waste.fitting import fit_clock, read_stamps, serve_stamped
from bench.waste.gpus import read_gpu
from bench.waste.metrics import intervals_of
from bench.waste.models import read_model
from paged.arrivals import Request
from paged.clock import StepTime
from paged.policy import PagedPolicy
from reference.errors import BadInput

TRUE = read_clock("base=12ms,prompt=200us,kv=0.4us").time


def fitted(file: Path, prior: Clock = ROUND_FIGURES, **options: object) -> Clock:
    known = {"slots": 4000, "streams": [], "model": None, "gpu": None, "progress": Progress()}
    return fit_clock(file, prior, PagedPolicy(), **known | options)  # type: ignore[arg-type]


def made_log(path: Path, time: StepTime, *, late: float = 0.0) -> Path:
    """Write what a server with this clock does with 90 requests; its own clock is `late`."""
    random = np.random.default_rng(0)
    prompts, outputs = random.integers(20, 600, 90).tolist(), random.integers(2, 60, 90).tolist()
    arrivals = np.cumsum(random.exponential(0.15, 90))
    requests = [
        Request(prompt, output, round((arrival - arrivals[0]) * 1e9))
        for prompt, output, arrival in zip(prompts, outputs, arrivals, strict=True)
    ]
    first, last = serve_stamped(requests, PagedPolicy(), slots=4000, time=time)
    rows = [
        {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "arrival_time": 100 + arrival,
            "queued_ts": 100 + arrival + late,
            "first_token_ts": 100 + late + arrivals[0] + begun,
            "last_token_ts": 100 + late + arrivals[0] + ended,
        }
        for prompt, output, arrival, begun, ended in zip(
            prompts, outputs, arrivals, first, last, strict=True
        )
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_clock_that_made_a_log_is_found_from_its_first_third(tmp_path: Path) -> None:
    clock = fitted(made_log(tmp_path / "log.jsonl", TRUE, late=-37.5))
    assert clock.time.step_ns == pytest.approx(TRUE.step_ns, rel=0.03)
    assert clock.time.prefill_ns_per_token == pytest.approx(TRUE.prefill_ns_per_token, rel=0.05)
    assert set(clock.errors) == {"TTFT p50", "TTFT p90", "TPOT p50", "TPOT p90", "makespan"}
    assert max(map(abs, clock.errors.values())) < 0.03
    assert "of 90 requests" in clock.source


def test_a_clock_far_from_the_data_sheets_does_not_end_without_a_base(tmp_path: Path) -> None:
    fast = read_clock("base=7ms,prompt=25us,kv=0.04us").time
    random = np.random.default_rng(1)
    prompts = random.integers(20, 1200, 200).tolist()
    outputs = random.integers(2, 200, 200).tolist()
    arrivals = np.cumsum(random.exponential(0.0875, 200))
    arrivals -= arrivals[0]
    requests = [
        Request(prompt, output, round(arrival * 1e9))
        for prompt, output, arrival in zip(prompts, outputs, arrivals, strict=True)
    ]
    first, last = serve_stamped(requests, PagedPolicy(), slots=16_000, time=fast)
    file = tmp_path / "log.jsonl"
    with file.open("w") as log:
        for request, arrival, begun, ended in zip(requests, arrivals, first, last, strict=True):
            row = {
                "prompt_tokens": request.prompt_tokens,
                "completion_tokens": request.output_tokens,
                "arrival_time": arrival,
                "ttft": begun - arrival,
                "e2e": ended - arrival,
            }
            log.write(json.dumps(row) + "\n")
    clock = fitted(file, slots=16_000)
    assert clock.time.step_ns == pytest.approx(fast.step_ns, rel=0.1)
    assert abs(clock.errors["TPOT p50"]) < 0.06
    assert abs(clock.errors["makespan"]) < 0.06


def test_the_rest_of_a_log_that_went_on_otherwise_shows_in_the_error(tmp_path: Path) -> None:
    file = made_log(tmp_path / "log.jsonl", TRUE)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows[45:]:
        row["last_token_ts"] += 5
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    clock = fitted(file)
    assert clock.errors["makespan"] < -0.1
    assert clock.error >= abs(clock.errors["makespan"])


def test_first_tokens_at_odds_with_the_server_do_not_cost_the_pace_of_decoding(
    tmp_path: Path,
) -> None:
    file = made_log(tmp_path / "log.jsonl", TRUE)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, odd in zip(rows, np.random.default_rng(2).lognormal(0, 1, len(rows)), strict=True):
        later = (row["first_token_ts"] - row["arrival_time"]) * (odd - 1)
        row["first_token_ts"] += later
        row["last_token_ts"] += later
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A clock of thrice the step, prompts for nothing, meets those first tokens better.
    assert abs(fitted(file).errors["TPOT p50"]) < 0.3


def scraped(time: StepTime, points: list[tuple[int, int, float]]) -> str:
    """Metrics after each of several intervals of (steps, prompt tokens, share of the pool)."""
    steps = prompts = count = 0
    total, said = 0.0, []
    for more, computed, used in [(0, 0, points[0][2]), *points]:
        read = used * 4000
        if more:
            ps = time.step_ps(prefill=computed, read=round(read * more))
            total += 8 * (ps / 1e12 + (more - 1) * time.step_ns / 1e9)
        steps, prompts, count = steps + more, prompts + computed, count + 8 * more
        said.append(
            f'# TYPE vllm:x histogram\nvllm:inter_token_latency_seconds_sum{{e="0"}} {total}\n'
            f'vllm:inter_token_latency_seconds_count{{e="0"}} {count}\n'
            f"vllm:iteration_tokens_total_count {steps}\nvllm:prompt_tokens_total {prompts}\n"
            f"vllm:num_requests_running 8\nvllm:kv_cache_usage_perc {used}\n"
        )
    return "".join(said)


def test_scrapes_of_metrics_give_a_clock(tmp_path: Path) -> None:
    shares = [(100, 9000, 0.2), (80, 0, 0.2), (120, 20000, 0.8), (90, 400, 0.8), (70, 2000, 0.5)]
    (file := tmp_path / "metrics.txt").write_text(scraped(TRUE, shares))
    found = intervals_of(file.read_text(), slots=4000)
    assert found is not None
    assert len(found) == 5
    assert found[0].prompts == pytest.approx(90)
    clock = fitted(file)
    assert clock.time.step_ns == pytest.approx(TRUE.step_ns, rel=0.1)
    assert clock.time.prefill_ns_per_token == pytest.approx(TRUE.prefill_ns_per_token, rel=0.1)
    assert list(clock.errors) == ["ITL of the other intervals, median"]
    file.write_text(scraped(TRUE, shares[:1]))
    with pytest.raises(BadInput, match="put 3 scrapes or more"):
        fitted(file)


def test_a_throughput_record_says_how_fast_the_cache_is_read(tmp_path: Path) -> None:
    points = [
        {"kind": "decode", "kv_bytes": size, "subjects": [{"seconds": {"best": s}}, {}]}
        for size, s in ((10**6, 1e-5), (10**9, 1e-3))
    ]
    (file := tmp_path / "record.json").write_text(json.dumps({"points": points}))
    model, gpu = read_model("Llama-3.1-8B"), read_gpu("A100-80GB")
    clock = fitted(file, model=model, gpu=gpu)
    # 1 TB/s: 16.06 GB of weights and 3 ms, 131,072 bytes a token.
    assert clock.time.step_ns == pytest.approx(19.06e6, rel=1e-3)
    assert clock.time.kv_ps_per_token == 131_072
    assert "49% of the bandwidth" in clock.source
    with pytest.raises(BadInput, match="give --model, by name or"):
        fitted(file)


def test_a_csv_of_durations_is_read_and_what_failed_is_left_out(tmp_path: Path) -> None:
    (file := tmp_path / "log.csv").write_text(
        "timestamp,input_tokens,output_tokens,ttft,latency\n"
        "5,10,3,0.5,1.5\n6,20,4,0.25,2\n7,20,0,0,0\n8,30,5,1,1\n"
    )
    log = read_stamps(file)
    assert log.prompts == (10, 20, 30)
    assert log.arrival.tolist() == [0, 1, 3]
    assert log.first.tolist() == [0.5, 1.25, 4]
    assert log.last.tolist() == [1.5, 3, 4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file"),
        ("a,b\n1,2\n", "the columns a, b; give prompt and output"),
        ('{"points": []}', "no decode was timed"),
        ("timestamp,input_tokens,output_tokens,ttft,e2e\n1,1,1,1,1\n", "1 requests with stamps"),
        ("time,input_tokens,output_tokens,ttft,e2e\n" + "1,1,1,2,1\n" * 3, "a first token before"),
        ("time,input_tokens,output_tokens,ttft,e2e\n1,1,x,2,1\n", "line 2: read no number"),
        ("time,input_tokens,output_tokens,ttft,e2e\n" + "1,9999,9,1,2\n" * 3, "size of the pool"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (file := tmp_path / "log").write_text(text)
    with pytest.raises(BadInput, match=said):
        fitted(file)
