"""Scrapes of /metrics: what is parsed, how often, and what is refused."""

import numpy as np
import prometheus_client.parser
import pytest

from bench.diagnose.aliases import find
from bench.diagnose.readers.scrapes import read
from reference.errors import BadInput


def scrape(at: int, value: float) -> str:
    return (
        f"# scrape {1_700_000_000 + at}\n# TYPE vllm:num_requests_running gauge\n"
        f'vllm:num_requests_running{{engine="0",model_name="a b"}} {value}\n'
        f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.5"}} {value}\n'
        f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf"}} {2 * value}\n'
        f'vllm:time_to_first_token_seconds_count{{engine="0"}} {2 * value}\n'
        f"python_gc_objects_collected_total nonsense {{\n"
    )


def test_the_labels_of_a_series_are_parsed_once_and_unknown_metrics_never(tmp_path, monkeypatch):
    parse, texts = prometheus_client.parser.text_string_to_metric_families, []
    monkeypatch.setattr(
        prometheus_client.parser,
        "text_string_to_metric_families",
        lambda text: texts.append(text) or parse(text),
    )
    file = tmp_path / "metrics.prom"
    file.write_text("".join(scrape(at, at) for at in range(50)))
    seen = read(file)
    assert len(texts) == 4
    (running,) = seen.named("running")
    assert running.engine == "0"
    assert running.values.tolist() == list(range(50))
    (first,) = seen.named("ttft_s")
    assert first.bounds.tolist() == [0.5, np.inf]
    assert first.buckets[-1].tolist() == [49, 98]
    assert seen.sources[0].interval_s == 1


def test_two_scrapes_of_one_time_are_refused_never_added_up(tmp_path):
    file = tmp_path / "metrics.prom"
    file.write_text(scrape(0, 3) + scrape(1, 3) + scrape(0, 3))
    with pytest.raises(BadInput, match=r"line 17: read a second scrape at 1700000000\.000"):
        read(file)
    file.write_text(scrape(0, 3) + scrape(0, 4).replace('engine="0"', 'engine="1"'))
    assert [each.values.tolist() for each in read(file).named("running")] == [[3], [4]]


def test_a_server_that_did_not_answer_is_a_failure_not_a_zero(tmp_path):
    file = tmp_path / "metrics.prom"
    file.write_text(scrape(0, 3) + "# scrape 1700000001 FAILED refused\n" + scrape(2, 4))
    seen = read(file)
    assert seen.failed_s.tolist() == [1_700_000_001]
    assert seen.named("running")[0].values.tolist() == [3, 4]


@pytest.mark.parametrize("line", ["vllm:kv_cache_usage_perc{engine=0} 1", "# scrape soon"])
def test_a_malformed_line_is_named(tmp_path, line):
    file = tmp_path / "metrics.prom"
    file.write_text(scrape(0, 1) + line + "\n")
    with pytest.raises(BadInput, match=r"metrics.prom, line 8"):
        read(file)


@pytest.mark.parametrize(
    ("sample", "name", "part"),
    [
        ("vllm:gpu_cache_usage_perc", "usage", ""),
        ("vllm:num_preemptions_total", "preemptions", ""),
        ("vllm:iteration_tokens_total_bucket", "step_tokens", "bucket"),
        ("vllm:time_per_output_token_seconds_sum", "itl_s", "sum"),
        ("sglang:token_usage", "usage", ""),
        ("trtllm_kv_cache_utilization", "usage", ""),
        ("llamacpp:requests_deferred", "waiting", ""),
    ],
)
def test_names_of_engines_and_releases_are_one(sample, name, part):
    found = find(sample)
    assert (found.alias.name, found.part) == (name, part)


def test_what_is_not_known_is_nothing():
    assert find("vllm:num_preemptions_created") is None
    assert find("vllm:kv_cache_usage_perc_sum") is None
