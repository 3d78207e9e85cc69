"""Logs of engines: what each release's lines come to, and what is left of them in a recording."""

import os
from dataclasses import replace

import pytest

from bench.diagnose.log_lines import parse, worth
from bench.diagnose.readers import logs, read_all
from bench.diagnose.run import diagnose

# As the engines print them: vLLM 0.32, 0.6 (V0), 0.33's iteration details; SGLang 0.5 and 0.4.
V1 = (
    "(APIServer pid=9) INFO 11-30 13:06:55 [loggers.py:335] Engine 001: Avg prompt throughput: "
    "64.0 tokens/s, Avg generation throughput: 368.9 tokens/s, Running: 19 reqs, Waiting: 5 reqs, "
    "Deferred: 2 reqs, GPU KV cache usage: 95.8%, Prefix cache hit rate: 47.0%, External prefix "
    "cache hit rate: 12.0%"
)
V0 = (
    "INFO 11-30 13:07:05 metrics.py:467] Avg prompt throughput: 1,024.9 tokens/s, Avg generation "
    "throughput: 0.1 tokens/s, Running: 1 reqs, Swapped: 2 reqs, Pending: 3 reqs, GPU KV cache "
    "usage: 10.0%, CPU KV cache usage: 2.0%."
)
STEP = (
    "INFO 11-30 13:06:09 [loggers.py:1] Engine 000: Iteration(123): 2 context requests, 512 "
    "context tokens, 5 generation requests, 5 generation tokens, iteration elapsed time: 25.31 ms, "
    "GPU KV cache usage: 12.5%"
)
ARGUMENTS = (
    "(APIServer pid=9) INFO 11-30 13:06:09 [api_utils.py:286] non-default args: {'api_key': "
    "['sk-secret'], 'max_model_len': 2048, 'block_size': 32, 'enable_prefix_caching': False, "
    "'num_gpu_blocks_override': 96, 'max_num_batched_tokens': 4096, 'max_num_seqs': 32, "
    "'max_num_queued_reqs': 8, 'watermark': 0.05}"
)
SIZE = (
    "(EngineCore pid=1) INFO 11-30 13:06:25 [kv_cache_utils.py:2327] GPU KV cache size: 3,072 "
    "tokens, Maximum concurrency for 2,048 tokens per request: 1.50x"
)
REFUSED = (
    "(EngineCore pid=1) ERROR 11-30 13:28:37 [core.py:1510] ValueError: To serve at least one "
    "request with the model's max seq len (2048), (0.0 GiB KV cache is needed, which is larger"
)
PREEMPTED = (
    "WARNING 11-30 13:07:07 scheduler.py:99] Sequence group cmpl-secret is preempted by "
    "PreemptionMode.RECOMPUTE mode because there is not enough KV cache space. This can affect the "
    "end-to-end performance. Increase gpu_memory_utilization or tensor_parallel_size to provide "
    "more KV cache memory. total_num_cumulative_preemption=51"
)
BLOCKS = "INFO 11-30 13:06:19 executor_base.py:110] # cuda blocks: 27356, # CPU blocks: 4096"
REJECTED = 'INFO:     127.0.0.1:59112 - "POST /v1/secret HTTP/1.1" 503 Service Unavailable'
DECODE = (
    "[2026-11-30 13:06:09 DP1 TP0] Decode batch, #running-req: 3, #full token: 160, full token "
    "usage: 0.06, #swa token: 9, swa token usage: 0.50, cuda graph: True, gen throughput "
    "(token/s): 224.10, #queue-req: 4"
)
OLD_DECODE = (
    "[2026-11-30 13:06:19 TP0] Decode batch. #running-req: 128, #token: 35794, token usage: 0.87, "
    "cuda graph: False, gen throughput (token/s): 50.98, #queue-req: 384"
)
PREFILL = (
    "[2026-11-30 13:06:29] Prefill batch, #new-seq: 1, #new-token: 88, #cached-token: 12, token "
    "usage: 0.02, #running-req: 0, #queue-req: 0, #pending-token: 0, input throughput "
    "(token/s): 9.5"
)
RETRACTED = (
    "[2026-11-30 13:06:39] KV cache pool is full. Retract requests. #retracted_reqs: 2, "
    "#new_tokens_gained: 646, #new_token_ratio: 0.0980 -> 0.3487"
)
SERVER_ARGS = (
    "[2026-11-30 13:05:00] server_args=ServerArgs(model_path='/secret', page_size=16, "
    "chunked_prefill_size=8192, max_running_requests=64, disable_radix_cache=True, "
    "api_key='secret')"
)
LINES = [
    *(V1, V0, STEP, ARGUMENTS, SIZE, REFUSED, PREEMPTED, BLOCKS, REJECTED),
    *(DECODE, OLD_DECODE, PREFILL, RETRACTED, SERVER_ARGS),
]


@pytest.mark.parametrize("line", LINES)
def test_what_is_kept_of_a_line_says_the_same_and_no_more(line):
    kept = worth(line)
    assert "secret" not in kept
    assert len(kept) < len(line)
    said, again = parse(line), parse(kept)
    assert replace(said, phrases=()) == replace(again, phrases=())
    assert worth(kept) is not None


@pytest.mark.parametrize(
    "line",
    [
        "INFO 11-30 13:06:40 [logger.py:36] Received request cmpl-1: prompt: 'a secret'",
        "[2026-11-30 13:06:09 TP1] Decode batch. #running-req: 128, #queue-req: 384",
        'INFO: 127.0.0.1:1 - "GET /health HTTP/1.1" 200 OK',
        "",
        "x" * 10**6,
    ],
)
def test_of_other_lines_nothing_is_kept(line):
    assert worth(line) is None


def seen(tmp_path, *lines: str, near: float = 1796044100.0):
    log = tmp_path / "server.log"
    log.write_text("".join(line + "\n" for line in lines))
    os.utime(log, (near, near))
    return read_all([log])


def last(observed, name: str) -> float:
    (series,) = observed.named(name)
    return float(series.values[-1])


def test_vllm(tmp_path):
    found = seen(tmp_path, ARGUMENTS, SIZE, STEP, V1)
    assert (last(found, "running"), last(found, "waiting"), last(found, "deferred")) == (19, 5, 2)
    assert found.named("usage", "1")[0].values.tolist() == [0.958]
    assert last(found, "hit_rate") == 0.47
    assert found.named("running")[0].engine == "1"
    assert found.named("running")[0].times_s.tolist() == [1796044015.0]
    wanted = {"max_num_seqs": 32, "token_budget": 4096, "prefix_caching": False, "queue_limit": 8}
    wanted |= {"pool_tokens": 3072, "max_model_len": 2048, "num_blocks": 96, "watermark": 0.05}
    assert wanted.items() <= found.config.items()
    assert last(found, "step_ms") == 25.31


def test_the_old_vllm(tmp_path):
    found = seen(tmp_path, BLOCKS, V0, PREEMPTED)
    assert (last(found, "waiting"), last(found, "swapped")) == (3, 2)
    assert (last(found, "usage"), last(found, "cpu_usage")) == (0.1, 0.02)
    assert last(found, "prompt_throughput") == 1024.9
    assert last(found, "preemptions") == 50, "a line for every fiftieth"
    assert [fact.name for fact in found.facts] == ["preempted"]
    assert found.facts[0].where.endswith("server.log:3")
    assert found.config["num_blocks"] == 27356


def test_sglang(tmp_path):
    found = seen(tmp_path, SERVER_ARGS, DECODE, OLD_DECODE, PREFILL, RETRACTED, RETRACTED)
    assert found.named("usage", "1")[0].values.tolist() == [0.5], (
        "of two kinds of layers the fuller"
    )
    assert found.named("waiting", "")[0].values.tolist() == [384, 0]
    assert (last(found, "prefix_queries"), last(found, "prefix_hits")) == (100, 12)
    assert [fact.value for fact in found.facts] == [2.0, 2.0]
    assert last(found, "preemptions") == 4
    assert found.config["prefix_caching"] is False
    assert (found.config["max_num_seqs"], found.config["block_size"]) == (64, 16)


FULL_V0 = V0.replace("Running: 1 reqs", "Running: 15 reqs").replace("10.0%", "98.0%")
FULL_SGLANG = OLD_DECODE.replace("0.87", "0.97")


@pytest.mark.parametrize(
    ("stamp", "lines"),
    [
        ("13:07:05", (FULL_V0, PREEMPTED.replace("13:07:07", "13:07:05"))),
        ("13:06:19", (FULL_SGLANG, PREFILL.replace("29]", "19]"), RETRACTED.replace("39]", "19]"))),
    ],
)
def test_a_log_alone_tells_of_preemption(tmp_path, stamp, lines):
    told = [
        line.replace(stamp, f"13:{10 + n // 6}:{n % 6}0").replace("=51", f"={1 + 50 * n}")
        for n in range(24)
        for line in lines
    ]
    found = diagnose(seen(tmp_path, *told))
    assert [cause.mode for cause in found.causes] == ["pool_too_small"]
    quiet = [line for line in told if "preempted" not in line and "Retract" not in line]
    assert diagnose(seen(tmp_path, *quiet)).verdict != "found"


def test_a_refusal_at_the_start_is_a_fact(tmp_path):
    (fact,) = seen(tmp_path, REFUSED).facts
    assert (fact.name, fact.value) == ("pool_too_small", 2048)


@pytest.mark.parametrize("stopped", [True, False])
def test_an_engine_that_is_told_to_stop_did_not_die(tmp_path, stopped):
    told = "INFO 11-30 13:06:09 [launcher.py:254] [shutdown] API server: shutdown triggered"
    error = "ERROR 11-30 13:06:10 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: x"
    facts = seen(tmp_path, V1, *([told] if stopped else []), error).facts
    assert [fact.name for fact in facts] == (["stopped"] if stopped else ["died"])


def test_refused_requests_are_counted_at_the_time_of_the_line_before(tmp_path):
    (http,) = seen(tmp_path, V1, REJECTED, REJECTED).named("http")
    assert http.labels == (("status", "5xx"),)
    assert http.values.tolist() == [2.0]


def test_throughput_is_summed_up_to_tokens_but_not_over_silence(tmp_path):
    times = ("13:06:00", "13:06:10", "13:06:20", "13:16:20")
    found = seen(tmp_path, *(V1.replace("13:06:55", time) for time in times))
    tokens = found.named("prompt_tokens")[0].values.tolist()
    assert tokens == [0.0, 640.0, 1280.0, 1920.0, 1920.0 + 64.0 * 15]


@pytest.mark.parametrize(
    ("stamp", "near", "expected"),
    [
        ("12-31 23:59:59", 1798761600.0, 1798761599.0),  # read a second later, in another year
        ("01-01 00:00:01", 1798761500.0, 1798761601.0),
        ("2026-11-30T13:06:09.123456789Z", 0.0, 1796043969.123456),
        ("2026-11-30 14:06:09,500+01:00", 0.0, 1796043969.5),
        ("02-29 00:00:00", 1709164800.0, 1709164800.0),
    ],
)
def test_stamps_find_their_year(stamp, near, expected):
    clock = logs._Clock(near or 1796043969.0, "+0000")
    assert clock.time_s(stamp) == pytest.approx(expected, abs=1e-3)


def test_a_zone_that_the_recorder_noted_is_used(tmp_path):
    found = seen(tmp_path, "# recorded 1796044100.000 +0530", V1)
    assert found.named("running")[0].times_s.tolist() == [1796044015.0 - 5.5 * 3600]


def test_scrapes_beside_the_log_tell_the_year(tmp_path):
    page = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\n"
    (tmp_path / "metrics.prom").write_text(f"# scrape 1764508015\n{page}")
    (tmp_path / "server.log").write_text(V1 + "\n")
    (log,) = [each for each in read_all([tmp_path]).series if each.name == "waiting"]
    assert log.times_s.tolist() == [1764508015.0]


def test_a_file_without_an_engines_line_is_no_log(tmp_path):
    other = tmp_path / "nginx.log"
    other.write_text("127.0.0.1 - - [30/Nov/2026] GET /\n" * 100)
    (tmp_path / "server.log").write_text(V1 + "\n")
    assert [source.format for source in read_all([tmp_path]).sources] == ["log"]
