"""A server's metrics, scraped one after the other: what its steps took in between.

Prometheus text, as vLLM exposes it; another engine's names are mapped to the same roles. Counters
are differenced between one scrape and the next, gauges averaged over the two.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_NAMES: Final = {
    "itl_sum": "vllm:inter_token_latency_seconds_sum vllm:time_per_output_token_seconds_sum "
    "sglang:inter_token_latency_seconds_sum",
    "itl_count": "vllm:inter_token_latency_seconds_count vllm:time_per_output_token_seconds_count "
    "sglang:inter_token_latency_seconds_count",
    "steps": "vllm:iteration_tokens_total_count",
    "prompts": "vllm:prompt_tokens_total sglang:prompt_tokens_total",
    "cached": "vllm:prefix_cache_hits_total vllm:prefix_cache_hits sglang:cached_tokens_total",
    "running": "vllm:num_requests_running sglang:num_running_reqs",
    "used": "vllm:kv_cache_usage_perc vllm:gpu_cache_usage_perc sglang:token_usage",
}
"""What each role is called; time is that from one token of a request to its next."""

_GAUGES: Final = ("running", "used")
_ROLES: Final = {name: role for role, names in _NAMES.items() for name in names.split()}
_SAMPLE: Final = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+([-+.\deE]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The mean step between two scrapes."""

    seconds: float
    """From a token to the next one of the same request."""
    prompts: float
    """Prompt tokens computed in a step."""
    read: float
    """Tokens in the cache."""


def intervals_of(text: str, *, slots: int) -> list[Interval] | None:
    """Read scrapes that stand one behind the other; None where the text is none.

    `slots` is the size of the pool whose use is reported. Intervals without tokens are left out.
    """
    scrapes = _scrapes(text)
    if not scrapes:
        return None
    found = []
    for before, after in pairwise(scrapes):
        more = {role: after[role] - before[role] for role in _NAMES if role not in _GAUGES}
        running, used = ((before[gauge] + after[gauge]) / 2 for gauge in _GAUGES)
        steps = more["steps"] or (more["itl_count"] / running if running else 0)
        if more["itl_count"] <= 0 or more["itl_sum"] <= 0 or steps <= 0 or min(more.values()) < 0:
            continue  # nothing ran, or the server was started again
        found.append(
            Interval(
                seconds=more["itl_sum"] / more["itl_count"],
                prompts=max(0.0, more["prompts"] - more["cached"]) / steps,
                read=used * slots,
            )
        )
    return found


def _scrapes(text: str) -> list[defaultdict[str, float]]:
    """Sum of each role in each scrape; the next one begins where a sample comes again."""
    scrapes: list[defaultdict[str, float]] = []
    seen: set[str] = set()
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None or (role := _ROLES.get(sample[1])) is None:
            continue
        series = line[: sample.start(2)].strip()
        if not scrapes or series in seen:
            scrapes.append(defaultdict(float))
            seen.clear()
        seen.add(series)
        try:
            scrapes[-1][role] += float(sample[2])
        except ValueError:
            continue
    return scrapes
