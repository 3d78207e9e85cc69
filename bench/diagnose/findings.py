"""What can be found in a window: a figure on one side of a bound, as sure as its interval allows.

Bounds are set by hand; how often each finding holds under each cause is fitted on recordings
(`bench.diagnose.fit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from bench.diagnose.statistics import Stat

Input = Literal["metrics", "events", "requests", "log", "configuration", "replicas"]


@dataclass(frozen=True)
class Finding:
    """A figure on one side of a bound."""

    stat: str
    bound: float
    says: str
    """The sentence, with the figure in it."""
    below: bool = False
    """Which side counts."""
    plain: str = ""
    """The sentence for figures that read badly as a number: none, once, no more than before."""
    plain_for: tuple[float, float] = (0.0, 0.0)
    """From and to which figure it is said."""
    scale: float = 1.0
    """Of the figure in the sentence."""
    usual: float = 0.04
    """How often it holds where nothing is wrong, as far as anybody knows before recordings do."""
    input: Input = "metrics"
    """What it takes to see it."""
    symptom: bool = False
    """Somebody suffers: it is no healthy server's."""

    def holds(self, stat: Stat) -> float:
        """How sure it is that the figure lies on that side, 0 to 1."""
        # A bound set by hand is soft: a sixth to either side counts as near.
        value, bound = max(stat.value, 0.0) + _TINY, self.bound + _TINY
        low, high = max(stat.low, 0.0) + _TINY, max(stat.high, 0.0) + _TINY
        wide = math.hypot(math.log(high / low) / 3.29, 0.17)
        above = 0.5 * math.erfc(-math.log(value / bound) / wide / math.sqrt(2))
        return 1 - above if self.below else above

    def sentence(self, stat: Stat) -> str:
        """Say what was found."""
        low, high = self.plain_for
        if self.plain and low <= stat.value <= high:
            return self.plain
        shown = stat.value * self.scale
        said = self.says.format(shown)
        return said.replace("0 %", "under 1 %") if 0 < shown < 0.5 else said


_TINY: Final = 1e-3
_NO_MORE: Final = (0.0, 1.05)
"""Of growth, what is none."""

FINDINGS: Final[Mapping[str, Finding]] = {
    "queue": Finding(
        "waiting_share", 0.25, "requests wait in {:.0f} % of the samples", scale=100, symptom=True
    ),
    "queue_seldom": Finding(
        "waiting_share", 0.03, "requests wait in {:.0f} % of the samples", scale=100, usual=0.15
    ),
    "burst": Finding("waiting_burst", 4.0, "the queue peaks at {:.0f} times its mean"),
    "full": Finding(
        "usage_while_waiting",
        0.88,
        "{:.0f} % of the cache is in use while requests wait",
        scale=100,
        usual=0.3,
    ),
    "roomy": Finding(
        "usage_while_waiting",
        0.78,
        "{:.0f} % of the cache is in use while requests wait",
        plain="none of the cache is in use while requests wait",
        below=True,
        scale=100,
        usual=0.4,
    ),
    "pinned": Finding(
        "pinned_share",
        0.8,
        "as many requests run as ever did, in {:.0f} % of the samples with a queue",
        scale=100,
        usual=0.2,
    ),
    "preempting": Finding(
        "preemptions_per_request",
        0.12,
        "{:.3g} preemptions for each request",
        plain="no request is preempted",
        symptom=True,
    ),
    "preempting_some": Finding(
        "preemptions_per_request",
        0.015,
        "{:.3g} preemptions for each request",
        plain="no request is preempted",
    ),
    "filled": Finding(
        "usage_top", 0.9, "the cache is up to {:.0f} % in use", scale=100, usual=0.25
    ),
    "spare": Finding(
        "usage_mean",
        0.5,
        "{:.0f} % of the cache is in use on average",
        below=True,
        scale=100,
        usual=0.6,
    ),
    "filling": Finding(
        "usage_growth",
        1.8,
        "{:.1f} times as much of the cache is in use as before",
        plain="no more of the cache is in use than before",
        plain_for=_NO_MORE,
        usual=0.1,
    ),
    "larger": Finding(
        "usage_per_request_growth",
        1.6,
        "a running request holds {:.1f} times as much as before",
        plain="a running request holds no more than before",
        plain_for=_NO_MORE,
    ),
    "held_idle": Finding(
        "usage_at_idle",
        0.02,
        "{:.0f} % of the cache is held while nobody runs or waits",
        scale=100,
        usual=0.003,
        symptom=True,
    ),
    "big_prompt": Finding(
        "longest_prompt", 0.25, "the longest prompts take {:.0f} % of the pool", scale=100
    ),
    "big_output": Finding(
        "longest_output", 0.1, "the longest outputs take {:.0f} % of the pool", scale=100
    ),
    "mixed_outputs": Finding(
        "output_spread", 4.5, "the longest outputs are {:.0f} times the mean", usual=0.15
    ),
    "many_steps": Finding("prefill_steps", 6.0, "a prompt is computed in {:.0f} steps"),
    "full_steps": Finding(
        "prompt_tokens_per_step", 500.0, "{:.0f} tokens of prompts are computed in each step"
    ),
    "spikes": Finding(
        "latency_spread",
        7.0,
        "the slowest tokens take {:.0f} times the usual",
        usual=0.08,
        symptom=True,
    ),
    "giant_steps": Finding("largest_step", 4300.0, "steps have up to {:.0f} tokens"),
    "slower": Finding(
        "slowdown",
        1.7,
        "a token takes {:.1f} times as long as before, with as many running",
        plain="a token takes no longer than before, with as many running",
        plain_for=_NO_MORE,
        symptom=True,
    ),
    "arrivals_up": Finding(
        "arrivals_growth",
        1.5,
        "requests arrive {:.1f} times as often as before",
        plain="requests arrive no more often than before",
        plain_for=_NO_MORE,
        usual=0.08,
    ),
    "lost": Finding(
        "lost_share",
        0.2,
        "{:.0f} % of the requests that began neither finish nor run",
        scale=100,
        symptom=True,
    ),
    "refused": Finding(
        "refused_share",
        0.05,
        "{:.0f} % of the answers are HTTP 4xx",
        scale=100,
        symptom=True,
        usual=0.003,
    ),
    "turned_away": Finding(
        "rejected_share",
        0.02,
        "{:.0f} % are turned away at the door",
        scale=100,
        symptom=True,
        usual=0.003,
    ),
    "restarted": Finding(
        "restarts",
        0.5,
        "counters begin anew {:.0f} times",
        plain="counters begin anew once",
        plain_for=(1.0, 1.0),
        usual=0.003,
    ),
    "stuck": Finding(
        "stuck_samples",
        2.5,
        "nobody runs while requests wait, for {:.0f} samples on end",
        usual=0.003,
        symptom=True,
    ),
    "deferred": Finding(
        "deferred_share", 0.3, "{:.0f} % of those that wait are deferred", scale=100, usual=0.02
    ),
    "fetching": Finding(
        "fetching_share", 0.3, "cached tokens are fetched in {:.0f} % of the samples", scale=100
    ),
    "low_hits": Finding(
        "hit_rate",
        0.3,
        "{:.0f} % of the prompts' tokens were found in the cache",
        plain="none of the prompts' tokens was found in the cache",
        below=True,
        scale=100,
        usual=0.45,
    ),
    "missed": Finding(
        "hit_rate",
        0.6,
        "{:.0f} % of the prompts' tokens were found in the cache",
        plain="none of the prompts' tokens was found in the cache",
        below=True,
        scale=100,
        usual=0.5,
    ),
    "no_hits": Finding(
        "hit_rate",
        0.07,
        "{:.0f} % of the prompts' tokens were found in the cache",
        plain="none of the prompts' tokens was found in the cache",
        below=True,
        scale=100,
        usual=0.4,
    ),
    "hits_fell": Finding(
        "hit_rate_change",
        0.55,
        "the hit rate falls to {:.0f} % of what it was",
        plain="the hit rate does not fall",
        plain_for=(0.95, math.inf),
        below=True,
        scale=100,
    ),
    "unqueried": Finding(
        "queried",
        0.02,
        "the prefix cache was asked for {:.0f} % of the tokens",
        plain="the prefix cache was asked for none of the tokens",
        below=True,
        scale=100,
        usual=0.003,
    ),
    "off": Finding("caching_off", 0.5, "prefix caching is off", usual=0.003, input="configuration"),
    "short_prompts": Finding(
        "prompt_blocks",
        3.2,
        "half of the prompts have at most {:.1f} blocks",
        below=True,
        usual=0.003,
    ),
    "again": Finding(
        "stored_again",
        0.05,
        "{:.0f} % of the blocks had been stored before and removed",
        plain="none of the blocks had been stored before and removed",
        scale=100,
        usual=0.05,
        input="events",
    ),
    "mostly_again": Finding(
        "stored_again",
        0.45,
        "{:.0f} % of the blocks had been stored before and removed",
        plain="none of the blocks had been stored before and removed",
        scale=100,
        usual=0.02,
        input="events",
    ),
    "roots_again": Finding(
        "roots_again",
        0.15,
        "{:.0f} % of the first blocks had been stored before and removed",
        scale=100,
        input="events",
    ),
    "few_again": Finding(
        "few_again",
        0.06,
        "the blocks that were stored again are {:.1f} % of all",
        below=True,
        scale=100,
        usual=0.5,
        input="events",
    ),
    "turns": Finding(
        "turns",
        0.08,
        "{:.0f} % of the prompts go on where an earlier request ended",
        plain="none of the prompts goes on where an earlier request ended",
        scale=100,
        usual=0.15,
        input="events",
    ),
    "elsewhere": Finding(
        "stored_elsewhere",
        0.12,
        "{:.0f} % of the blocks hold tokens that lie behind other tokens, too",
        plain="none of the blocks holds tokens that lie behind other tokens, too",
        scale=100,
        input="events",
    ),
    "salted": Finding(
        "stored_salted",
        0.12,
        "{:.0f} % of the blocks differ from others in their salt alone",
        plain="none of the blocks differs from others in its salt alone",
        scale=100,
        input="events",
    ),
    "short_stay": Finding(
        "residence", 0.8, "a block stays {:.1f} times as long as its reuse takes", below=True
    ),
    "conservative": Finding(
        "new_token_ratio",
        0.75,
        "room is kept for {:.0f} % of the longest outputs",
        scale=100,
        usual=0.2,
    ),
    "one_tenant": Finding(
        "largest_tenant",
        0.6,
        "one tenant sends {:.0f} % of the requests",
        scale=100,
        usual=0.1,
        input="requests",
    ),
    "uneven": Finding(
        "uneven_replicas",
        0.5,
        "of all that wait, {:.0f} % more do so at one replica than at another",
        plain="all that wait do so at one replica",
        plain_for=(0.995, 1.0),
        scale=100,
        input="replicas",
    ),
    "alike_roots": Finding(
        "shared_roots",
        0.3,
        "{:.0f} % of the first blocks are stored by several replicas",
        scale=100,
        input="replicas",
    ),
    "refused_start": Finding(
        "log_pool_too_small",
        0.5,
        "the engine refused to start",
        usual=0.003,
        input="log",
        symptom=True,
    ),
    "holes": Finding(
        "free_in_holes",
        0.1,
        "{:.0f} % of the pool is free, and no hole holds the request",
        scale=100,
        usual=0.003,
        symptom=True,
    ),
}
"""By name."""
