"""Inputs of a diagnosis other than scrapes in a row: each format on a small sample of its own."""

import gzip
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from bench.diagnose.readers import read_all
from reference.errors import BadInput


@pytest.fixture
def put(tmp_path):
    """Writes a file, and gives its path."""

    def write(name: str, content: object) -> Path:
        file = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_text(text)
        return file

    return write


def matrix(**series: list[list[object]]) -> dict[str, object]:
    result = [
        {"metric": {"__name__": f"vllm:{name}", "instance": "a:8000"}, "values": values}
        for name, values in series.items()
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


RUNNING = matrix(num_requests_running=[[1796044005, "7"], [1796044020.5, "NaN"], [1796044035, "9"]])
TOKENS = matrix(prompt_tokens_total=[[1796044005, "70"], [1796044020, "90"]])


@pytest.mark.parametrize("form", ["several lines", "a list", "pretty"])
def test_answers_of_prometheus(put, form):
    if form == "several lines":
        file = put("range.json", json.dumps(RUNNING) + "\n" + json.dumps(TOKENS))
    else:
        file = put(
            "range.json", json.dumps([RUNNING, TOKENS], indent=2 if form == "pretty" else None)
        )
    seen = read_all([file])
    (running,) = seen.named("running")
    assert running.times_s.tolist() == [1796044005, 1796044035], "a stale mark is no sample"
    assert running.values.tolist() == [7, 9]
    assert running.engine == "a:8000"
    assert seen.named("prompt_tokens")[0].kind == "counter"


def test_a_large_answer_is_one_line(put):
    values = [[1796044005 + 15 * n, "7"] for n in range(60_000)]
    assert (
        len(read_all([put("a.json", matrix(num_requests_running=values))]).series[0].values)
        == 60_000
    )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"data": {"resultType": "vector", "result": []}}, "query_range"),
        ({"status": "error", "error": "parse error"}, "parse error"),
        (
            {"data": {"resultType": "matrix", "result": [{"metric": {}, "values": [[1, "2"]]}]}},
            r"rate\(\)",
        ),
        (
            {
                "data": {
                    "resultType": "matrix",
                    "result": [{"metric": {"__name__": "x"}, "values": [1]}],
                }
            },
            "line 1",
        ),
        ('{"status":"success","data":{"resultType":"matr', "line 1"),
        (matrix(num_requests_running=[[float("nan"), "7"]]), "line 1"),
        (matrix(num_requests_running=[[1796044005000, "7"]]), "Unix times"),
        (matrix(time_to_first_token_seconds_bucket=[[1796044005, "7"]]), "a bucket with a bound"),
    ],
)
def test_answers_that_cannot_be_used_are_refused_with_a_remedy(put, answer, said):
    with pytest.raises(BadInput, match=said):
        read_all([put("answer.json", answer)])


@pytest.mark.parametrize(
    "text",
    [
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0"} 7 1796044005.5\n'
        'vllm:num_requests_running{engine="0"} 9 1796044010.5 # {trace="1"} 2\n# EOF\n',
        '{__name__="vllm:num_requests_running", engine="0"} 7 1796044005500\n'
        '{__name__="vllm:num_requests_running", engine="0"} 9 1796044010500\n',
        '{engine="0", __name__="vllm:num_requests_running"} 7 1796044005500\n'
        '{engine="0", __name__="vllm:num_requests_running"} 9 1796044010500\n',
    ],
)
def test_samples_with_times(put, text):
    (running,) = read_all([put("samples.txt", text)]).named("running")
    assert running.times_s.tolist() == [1796044005.5, 1796044010.5]
    assert running.values.tolist() == [7, 9]
    assert running.engine == "0"


def test_a_broken_sample_is_refused_with_its_line(put):
    with pytest.raises(BadInput, match="line 2"):
        read_all([put("samples.txt", "vllm:num_requests_running 7 1796044005.5\nvllm:x y\n")])


VLLM_SPAN = {
    "name": "llm_request",
    "startTimeUnixNano": "1796044005000000000",
    "endTimeUnixNano": "1796044009000000000",
    "attributes": [
        {"key": "gen_ai.usage.prompt_tokens", "value": {"intValue": "120"}},
        {"key": "gen_ai.usage.completion_tokens", "value": {"intValue": 30}},
        {"key": "gen_ai.latency.time_to_first_token", "value": {"doubleValue": 0.5}},
        {"key": "gen_ai.latency.time_in_queue", "value": {"doubleValue": 0.25}},
    ],
}
PLAIN_SPAN = {
    "name": "llm_request",
    "start_time": "2026-11-30T13:06:45Z",
    "end_time": "2026-11-30T13:06:49Z",
    "attributes": {
        "gen_ai.usage.input_tokens": 120,
        "gen_ai.usage.output_tokens": 30,
        "gen_ai.latency.time_to_first_token": 0.5,
        "gen_ai.latency.time_in_queue": 0.25,
    },
}
OTHER_SPAN = {"name": "GET", "startTimeUnixNano": "1", "endTimeUnixNano": "2", "attributes": []}
EXPORT = {
    "resourceSpans": [
        {
            "resource": {"attributes": []},
            "scopeSpans": [{"scope": {}, "spans": [VLLM_SPAN, OTHER_SPAN]}],
        }
    ]
}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(EXPORT),
        json.dumps(VLLM_SPAN) + "\n" + json.dumps(OTHER_SPAN),
        json.dumps(PLAIN_SPAN, indent=4) + "\n" + json.dumps(OTHER_SPAN, indent=4),
        json.dumps([PLAIN_SPAN]),
    ],
)
def test_spans(put, content):
    requests = read_all([put("traces.json", content)]).requests
    assert requests.arrival_s.tolist() == [1796044005.0]
    assert (requests.prompt[0], requests.output[0]) == (120, 30)
    assert requests.first_token_s.tolist() == [1796044005.5]
    assert requests.end_s.tolist() == [1796044009.0]
    assert requests.queue_s.tolist() == [0.25]


def test_results_of_benchmarks(put):
    result = {
        "date": "20261130-130700",
        "duration": 10.0,
        "median_ttft_ms": 1.0,
        "input_lens": [100, 200],
        "output_lens": [3, 2],
        "ttfts": [0.5, 0.25],
        "itls": [[0.1, 0.1], [0.2]],
        "start_times": [5000.0, 5002.0],
        "errors": ["", "timeout"],
        "generated_texts": ["secret", "secret"],
    }
    requests = read_all([put("bench.json", result)]).requests
    assert requests.arrival_s.tolist() == [1796044010.0, 1796044012.0]
    assert requests.end_s == pytest.approx([1796044010.7, 1796044012.45])
    assert requests.status.tolist() == ["", "error"]
    del result["start_times"]
    seen = read_all([put("bench.jsonl", json.dumps(result) + "\n" + json.dumps(result))])
    assert np.isnan(seen.requests.arrival_s).all()
    assert "arrivals" in seen.notes[0]
    del result["input_lens"]
    with pytest.raises(BadInput, match="--save-detailed"):
        read_all([put("bench.json", result)])


def test_logs_of_requests(put):
    answer = {
        "created": 1796044005,
        "model": "tiny",
        "usage": {"prompt_tokens": 120, "completion_tokens": 30},
        "latency_ms": 1500,
        "api_key": "sk-secret",
        "choices": [{"message": {"content": "secret"}}],
    }
    requests = read_all([put("log.jsonl", json.dumps(answer) + "\n" + json.dumps(answer))]).requests
    assert requests.end_s.tolist() == [1796044006.5] * 2
    assert requests.prompt.tolist() == [120, 120]
    assert "secret" not in requests.tenant[0] != ""
    table = "Timestamp,ContextTokens,GeneratedTokens,status\n2026-11-30T13:06:45Z,120,30,200\n"
    requests = read_all([put("log.csv", table)]).requests
    assert requests.arrival_s.tolist() == [1796044005.0]
    assert requests.status.tolist() == ["200"]
    with pytest.raises(BadInput, match="line 3"):
        read_all([put("log.csv", table + "yesterday,1,2,200\n")])


def test_free_lists(put):
    lists = [
        {"slots": 100, "free": [[0, 10], [20, 15], [10, 5]], "wanted": 20, "time": 1796044005},
        {"slots": 6, "free_bitmap": "110010"},
        {"slots": 6, "used_bitmap": [0, 0, 1, 1, 0, 1]},
    ]
    maps = read_all([put("free.jsonl", "\n".join(map(json.dumps, lists)))]).free_maps
    assert [each.holes.tolist() for each in maps] == [[15, 15], [2, 1], [2, 1]]
    assert maps[0].wanted == 20


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"slots": 10, "free": [[0, 5], [4, 2]]}, "twice free"),
        ({"slots": 10, "free": [[8, 5]]}, "inside the 10"),
        ({"slots": 10, "free": "all"}, "start, length"),
        ({"slots": 0, "free": []}, "slots = 0"),
        ({"slots": 3, "bitmap": "010"}, "free_bitmap"),
        ({"slots": 3, "free_bitmap": "01"}, "3 digits"),
        ({"slots": 3, "free_bitmap": "01x"}, "3 digits"),
        ({"slots": 3, "free": [], "wanted": 0}, "wanted = 0"),
    ],
)
def test_free_lists_that_cannot_be_are_refused(put, broken, said):
    with pytest.raises(BadInput, match=said):
        read_all([put("free.json", broken)])


BROKEN = [
    '{"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": true}]}\n"x"',
    '{"ts": 1, "events": [{"type": "BlockStored", "block_hashes": [1], "medium": []}]}',
    '{"ts": 1, "events": [{"type": "BlockStored", "block_hashes": [1], "block_size": "0"}]}',
    '# TYPE vllm:x gauge\nvllm:time_to_first_token_seconds_bucket{le="0.@"} 3',
    '{"slots": 100, "free": [[0, 10]], "wanted": 1000000000000000000000}',
    "# scrape 1796044005\n# TYPE vllm:x gauge\n# scrape 179604400600000 FAILED x",
    "time,prompt_tokens\n1e300,5",
]


@pytest.mark.parametrize("text", BROKEN)
def test_values_that_cannot_be_are_refused(put, text):
    """What mutated samples stumbled over once."""
    with pytest.raises(BadInput, match="input"):
        read_all([put("input", text)])


def test_one_file_a_scrape(tmp_path):
    for number, moment in enumerate((1796044005, 1796044020, 1796044035)):
        page = f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running {number}\n"
        (tmp_path / f"scrape@{moment}.prom.gz").write_bytes(gzip.compress(page.encode()))
    seen = read_all([tmp_path])
    (running,) = seen.named("running")
    assert running.times_s.tolist() == [1796044005, 1796044020, 1796044035]
    assert running.values.tolist() == [0, 1, 2]
    (source,) = seen.sources
    assert (source.items, source.interval_s) == (3, 15.0)
    for file in tmp_path.iterdir():
        file.rename(tmp_path / file.name.replace("@", "-"))
    for file in tmp_path.iterdir():
        os.utime(file, (1796044005, 1796044005))
    with pytest.raises(BadInput, match="@"):
        read_all([tmp_path])


def test_a_scrape_without_a_time_is_not_put_among_those_with_one(tmp_path):
    page = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\n"
    (tmp_path / "metrics.first.txt").write_text(page)
    (tmp_path / "metrics.prom").write_text(
        f"# scrape 1796044005\n{page}# scrape 1796044006\n{page}"
    )
    seen = read_all([tmp_path])
    assert seen.named("running")[0].times_s.tolist() == [1796044005, 1796044006]


HOSTILE = {
    "a line without an end": b'vllm:x{a="' + b"x" * (2**20 + 5),
    "json without an end": b'{"resourceSpans": [' + b"[" * 2**20,
    "a gzip bomb": gzip.compress(bytes(2**20)) * (3 * 2**6),
    "lines of a gzip bomb": gzip.compress(b"# TYPE vllm:x gauge\n" * 2**14) * 2**10,
    "NUL": bytes(5000),
    "UTF-16": "# scrape 1\nvllm:num_requests_running 3\n".encode("utf-16"),
    "half a gzip file": gzip.compress(os.urandom(5000) + b"# scrape 1\n")[:3000],
    "deep nesting": b"[" * 100_000 + b"]" * 100_000,
    "a number of a million digits": b'{"slots": ' + b"9" * 10**6 + b', "free": []}',
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_in_bounded_time(tmp_path, what):
    file = tmp_path / "input"
    file.write_bytes(HOSTILE[what])
    began = time.process_time()
    with pytest.raises(BadInput, match="input"):
        read_all([file])
    assert time.process_time() - began < 5


def test_one_scrape_without_help_is_a_scrape(put):
    seen = read_all([put("now.txt", 'vllm:num_requests_running{engine="0"} 3\n')])
    (running,) = seen.named("running")
    assert running.values.tolist() == [3]
