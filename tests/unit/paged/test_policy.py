"""A policy says at once what does not go together."""

import re
from typing import Any

import pytest

from paged.clock import StepTime
from paged.counting import serve_by_counts
from paged.errors import BadSize
from paged.policy import PagedPolicy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size"),
        ({"block_size": 2**20 + 1}, "block_size"),
        ({"watermark": -0.1}, "watermark = -0.1: give a share from 0 to 1"),
        ({"watermark": float("nan")}, "watermark = nan"),
        ({"look_ahead": -1}, "look_ahead"),
        ({"max_running": 0}, "max_running"),
        ({"token_budget": 0}, "token_budget"),
        ({"preemption": "drop"}, "preemption = 'drop': choose one of recompute, swap"),
        ({"eviction": "mru"}, "eviction = 'mru': choose one of lru, lfu, fifo"),
        ({"samples": 0}, "samples"),
        ({"beam_keep": 0.5}, "beam_keep with samples = 1"),
        ({"samples": 2, "beam_keep": 1.5}, "beam_keep = 1.5"),
        ({"tenant_quotas": ((0, 5),)}, "tenant_quotas without prefix_caching"),
        ({"tenant_quotas": ((0, -5),), "prefix_caching": True}, "quota of tenant 0"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"sliding_window": 8, "samples": 2}, "sliding_window with"),
        ({"sliding_window": 8, "prefix_caching": True}, "sliding_window with"),
        ({"sliding_window": 8, "preemption": "swap"}, "sliding_window with"),
        ({"samples": 2, "beam_keep": 0.5, "prefix_caching": True}, "beam_keep with"),
    ],
)
def test_bad_options_are_refused_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSize, match=re.escape(message)):
        PagedPolicy(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 2},
        {"prefix_caching": True, "tenant_quotas": ((0, 9),)},
        {"sliding_window": 64},
    ],
)
def test_counts_refuse_what_they_cannot_decide(options: dict[str, Any]) -> None:
    policy = PagedPolicy(**options)
    assert not policy.by_counts
    with pytest.raises(BadSize, match=r"counts do not decide this policy"):
        serve_by_counts([], policy, slots=100)


def test_the_watermark_is_whole_blocks() -> None:
    assert PagedPolicy(watermark=0.019).watermark_blocks(100) == 1
    assert PagedPolicy(watermark=0).watermark_blocks(100) == 0
    assert PagedPolicy(watermark=1).watermark_blocks(100) == 100


def test_a_step_takes_time() -> None:
    with pytest.raises(BadSize, match="step_ns"):
        StepTime(step_ns=0)
    with pytest.raises(BadSize, match="prefill_ns_per_token"):
        StepTime(prefill_ns_per_token=-1)
