"""Which series of which engine is which: the names of metrics by engine and release.

A name that a release took back stays here: the recordings of older servers have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from bench.diagnose.observed import Kind


class Alias(NamedTuple):
    """What a metric is called here."""

    name: str
    kind: Kind = "gauge"
    label: str = ""
    """The label that is kept besides those of the engine, and is needed to tell series apart."""
    scale: float = 1.0
    """Factor to the canonical unit."""


def _same(prefix: str, kind: Kind, names: str) -> dict[str, Alias]:
    return {prefix + name: Alias(name, kind) for name in names.split()}


_VLLM_TIMES: Final = {
    "time_to_first_token_seconds": "ttft_s",
    "inter_token_latency_seconds": "itl_s",
    "time_per_output_token_seconds": "itl_s",  # until 0.10
    "request_time_per_output_token_seconds": "tpot_s",
    "e2e_request_latency_seconds": "e2e_s",
    "request_queue_time_seconds": "queue_s",
    "request_prefill_time_seconds": "prefill_s",
    "request_decode_time_seconds": "decode_s",
    "request_inference_time_seconds": "inference_s",
    "request_prompt_tokens": "prompt_length",
    "request_generation_tokens": "output_length",
    "request_params_max_tokens": "max_tokens",
    "request_num_preemptions": "request_preemptions",
    "request_prefill_kv_computed_tokens": "computed_length",
    "iteration_tokens_total": "step_tokens",
    "kv_block_lifetime_seconds": "block_lifetime_s",
    "kv_block_idle_before_evict_seconds": "block_idle_s",
    "kv_block_reuse_gap_seconds": "reuse_gap_s",
}

_VLLM: Final = {
    "vllm:num_requests_running": Alias("running"),
    "vllm:num_requests_waiting": Alias("waiting"),
    "vllm:num_requests_swapped": Alias("swapped"),  # V0
    "vllm:num_requests_waiting_by_reason": Alias("waiting_by", label="reason"),
    "vllm:num_requests_kv_fetch_by_stage": Alias("kv_fetch", label="stage"),
    "vllm:kv_cache_usage_perc": Alias("usage"),
    "vllm:gpu_cache_usage_perc": Alias("usage"),  # until 0.11
    "vllm:cpu_cache_usage_perc": Alias("cpu_usage"),  # V0
    "vllm:gpu_prefix_cache_hit_rate": Alias("hit_rate"),  # V0
    "vllm:prefix_cache_queries": Alias("prefix_queries", "counter"),
    "vllm:prefix_cache_hits": Alias("prefix_hits", "counter"),
    "vllm:gpu_prefix_cache_queries": Alias("prefix_queries", "counter"),  # until 0.11
    "vllm:gpu_prefix_cache_hits": Alias("prefix_hits", "counter"),
    "vllm:external_prefix_cache_queries": Alias("external_queries", "counter"),
    "vllm:external_prefix_cache_hits": Alias("external_hits", "counter"),
    "vllm:prompt_tokens": Alias("prompt_tokens", "counter"),
    "vllm:generation_tokens": Alias("generation_tokens", "counter"),
    "vllm:num_preemptions": Alias("preemptions", "counter"),
    "vllm:request_success": Alias("finished", "counter", "finished_reason"),
    "vllm:admission_rejections": Alias("rejections", "counter", "reason"),
    "vllm:spec_decode_num_drafts": Alias("drafts", "counter"),
    "vllm:spec_decode_num_accepted_tokens": Alias("accepted_tokens", "counter"),
    **{f"vllm:{old}": Alias(new, "histogram") for old, new in _VLLM_TIMES.items()},
    "http_requests": Alias("http", "counter", "status"),
}

_SGLANG: Final = {
    "sglang:num_running_reqs": Alias("running"),
    "sglang:num_queue_reqs": Alias("waiting"),
    "sglang:token_usage": Alias("usage"),
    "sglang:full_token_usage": Alias("full_usage"),
    "sglang:swa_token_usage": Alias("swa_usage"),
    "sglang:cache_hit_rate": Alias("hit_rate"),  # of the last report's prefills only
    "sglang:new_token_ratio": Alias("new_token_ratio"),
    "sglang:num_retracted_reqs": Alias("retracted"),
    "sglang:max_total_num_tokens": Alias("pool_tokens"),
    "sglang:page_size": Alias("block_size"),
    "sglang:num_pages": Alias("num_blocks"),
    "sglang:context_len": Alias("max_model_len"),
    "sglang:kv_available_tokens": Alias("free_tokens"),
    "sglang:kv_evictable_tokens": Alias("evictable_tokens"),
    "sglang:prompt_tokens": Alias("prompt_tokens", "counter"),
    "sglang:generation_tokens": Alias("generation_tokens", "counter"),
    "sglang:cached_tokens": Alias("prefix_hits", "counter", "source"),
    "sglang:num_requests": Alias("finished", "counter"),
    "sglang:num_aborted_requests": Alias("aborted", "counter"),
    "sglang:num_retracted_input_tokens": Alias("retracted_tokens", "counter"),
    "sglang:evicted_tokens": Alias("evicted_tokens", "counter"),
    "sglang:time_to_first_token_seconds": Alias("ttft_s", "histogram"),
    "sglang:inter_token_latency_seconds": Alias("itl_s", "histogram"),
    "sglang:time_per_output_token_seconds": Alias("itl_s", "histogram"),
    "sglang:e2e_request_latency_seconds": Alias("e2e_s", "histogram"),
    "sglang:queue_time_seconds": Alias("queue_s", "histogram"),
}

_TRTLLM: Final = {
    "trtllm_num_requests_running": Alias("running"),
    "trtllm_num_requests_waiting": Alias("waiting"),
    "trtllm_num_paused_requests": Alias("paused"),
    "trtllm_kv_cache_utilization": Alias("usage"),
    "trtllm_kv_cache_hit_rate": Alias("hit_rate"),  # since start
    "trtllm_kv_cache_reused_blocks": Alias("reused_blocks", "counter"),
    "trtllm_kv_cache_missed_blocks": Alias("missed_blocks", "counter"),
    "trtllm_kv_cache_max_blocks": Alias("num_blocks"),
    "trtllm_kv_cache_tokens_per_block": Alias("block_size"),
    "trtllm_time_to_first_token_seconds": Alias("ttft_s", "histogram"),
    "trtllm_time_per_output_token_seconds": Alias("itl_s", "histogram"),
    "trtllm_e2e_request_latency_seconds": Alias("e2e_s", "histogram"),
    "trtllm_request_queue_time_seconds": Alias("queue_s", "histogram"),
    "trtllm_request_success": Alias("finished", "counter", "finished_reason"),
}

_TGI: Final = {
    "tgi_queue_size": Alias("waiting"),
    "tgi_batch_current_size": Alias("running"),
    "tgi_request_count": Alias("arrived", "counter"),
    "tgi_request_success": Alias("finished", "counter"),
    "tgi_request_duration": Alias("e2e_s", "histogram"),
    "tgi_request_queue_duration": Alias("queue_s", "histogram"),
    "tgi_request_inference_duration": Alias("inference_s", "histogram"),
    "tgi_request_mean_time_per_token_duration": Alias("tpot_s", "histogram"),
    "tgi_request_input_length": Alias("prompt_length", "histogram"),
    "tgi_request_generated_tokens": Alias("output_length", "histogram"),
}

_LLAMA_CPP: Final = {
    "llamacpp:requests_processing": Alias("running"),
    "llamacpp:requests_deferred": Alias("waiting"),
    "llamacpp:kv_cache_usage_ratio": Alias("usage"),  # taken back in 2025
    "llamacpp:prompt_tokens": Alias("prompt_tokens", "counter"),
    "llamacpp:tokens_predicted": Alias("generation_tokens", "counter"),
}

ALIASES: Final[Mapping[str, Mapping[str, Alias]]] = {
    "vllm": _VLLM,
    "sglang": _SGLANG,
    "tensorrt-llm": _TRTLLM,
    "tgi": _TGI,
    "llama.cpp": _LLAMA_CPP,
}
"""By engine, the canonical name of each metric, without the suffixes of counters and histograms."""

INFO: Final = {
    "vllm:cache_config_info": {
        "num_gpu_blocks": "num_blocks",
        "block_size": "block_size",
        "enable_prefix_caching": "prefix_caching",
        "kv_cache_size_tokens": "pool_tokens",
        "hash_block_size": "hash_block_size",
        "sliding_window": "sliding_window",
        "cache_dtype": "cache_dtype",
    },
    "sglang:cache_config_info": {"num_pages": "num_blocks", "page_size": "block_size"},
}
"""Metrics whose labels are the configuration: label to the name in `Observed.config`."""

CONFIGURED: Final = ("pool_tokens", "block_size", "num_blocks", "max_model_len")
"""Canonical names of gauges that are the configuration, too."""

_FLAT: Final = {
    name: (engine, alias) for engine, table in ALIASES.items() for name, alias in table.items()
}
_SUFFIX: Final = re.compile(r"_(total|bucket|count|sum)\Z")


class Found(NamedTuple):
    """What a sample is a part of."""

    engine: str
    alias: Alias
    part: str
    """Of a histogram: `bucket`, `count` or `sum`; else empty."""


def find(sample: str) -> Found | None:
    """What the name of a sample stands for. None: nothing that is used here."""
    if (known := _FLAT.get(sample)) and known[1].kind != "histogram":
        return Found(*known, "")
    stem = _SUFFIX.sub("", sample)
    known = _FLAT.get(stem)
    if known is None or stem == sample:
        return None
    part = sample[len(stem) + 1 :]
    if known[1].kind == "histogram":
        return Found(*known, part) if part != "total" else None
    return Found(*known, "") if part == "total" and known[1].kind == "counter" else None
