"""The causes that are told apart: what each requires, expects and forbids, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A cause."""

    says: str
    """The verdict."""
    requires: tuple[str, ...] = ()
    """Findings that it cannot be without."""
    expects: tuple[str, ...] = ()
    """Findings that are usual with it."""
    allows: tuple[str, ...] = ()
    """Findings that may come with it."""
    forbids: tuple[str, ...] = ()
    """Findings that speak against it."""
    unlike: Mapping[str, str] = field(default_factory=dict)
    """The finding that tells it from each look-alike."""
    leads_to: tuple[str, ...] = ()
    """What follows from it, and is then no cause."""
    change: str = ""
    """The signal whose change it begins with."""
    remedy: str
    alert: str
    """What to watch, as a condition on series of vLLM."""
    healthy: bool = False
    """Nothing is to be mended in the server."""
    provable: bool = True
    """False: nothing that can be given tells it from a look-alike; it is named, never the verdict.
    """
    recorded: bool = True
    """False: no recording has it, and nothing of it was fitted."""


_WAITING_BY_LOAD: Final = ("pool_too_small", "max_num_seqs_cap", "compute_bound", "bursts")

MODES: Final[Mapping[str, Mode]] = {
    "pool_too_small": Mode(
        says="the pool is too small for what runs at once: requests are preempted and recomputed",
        requires=("preempting", "preempting_some", "filled"),
        expects=("queue", "full", "again", "roots_again", "queue_seldom"),
        allows=("big_output", "burst", "mixed_outputs", "low_hits", "mostly_again"),
        forbids=("roomy", "pinned", "spare"),
        unlike={"healthy": "preempting", "max_num_seqs_cap": "full", "load_growth": "arrivals_up"},
        remedy="fewer max_num_seqs, a watermark, more blocks (fp8 cache, more memory, a replica)",
        alert="rate(vllm:num_preemptions_total) > 0.1 * rate(vllm:request_success_total)",
    ),
    "load_growth": Mode(
        says="more requests arrive than before, and more than the server holds",
        requires=("arrivals_up",),
        expects=("queue", "queue_seldom", "filling"),
        allows=("preempting", "preempting_some", "full", "filled", "again", "roots_again"),
        unlike={"pool_too_small": "arrivals_up", "engine_slowed": "slower"},
        leads_to=(*_WAITING_BY_LOAD, "client_aborts"),
        change="arrivals",
        remedy="scale out, or limit admission: the server did not change, its load did",
        alert="rate(vllm:request_success_total[5m]) > 1.5 * (same, 1 h ago)",
    ),
    "long_generations": Mode(
        says="very long outputs fill the cache slowly, until requests are preempted",
        requires=("mixed_outputs", "big_output"),
        expects=("filling", "larger", "filled", "preempting_some", "queue", "queue_seldom", "full"),
        allows=("preempting", "again", "roots_again", "burst"),
        forbids=("roomy", "arrivals_up"),
        unlike={"block_leak": "held_idle", "load_growth": "arrivals_up"},
        leads_to=("pool_too_small", "bursts"),
        change="usage",
        remedy="cap max_tokens, a watermark, agents on replicas of their own",
        alert="deriv(vllm:kv_cache_usage_perc[10m]) > 0 with vllm:num_requests_running constant",
    ),
    "block_leak": Mode(
        says="blocks are not given back: the cache is in use while nobody runs",
        requires=("held_idle",),
        allows=("filling", "filled", "full", "queue", "queue_seldom", "preempting_some", "larger"),
        unlike={"long_generations": "held_idle"},
        leads_to=("pool_too_small",),
        remedy="restart to recover; upgrade the engine (leaks after aborted transfers are known)",
        alert="vllm:kv_cache_usage_perc > 0.02 and vllm:num_requests_running == 0",
    ),
    "head_of_line": Mode(
        says="a long prompt that does not fit waits first, short ones behind it; blocks are free",
        requires=("big_prompt",),
        expects=("queue", "queue_seldom"),
        allows=("roomy", "preempting_some", "filled", "burst", "low_hits"),
        forbids=("pinned", "arrivals_up"),
        unlike={"max_num_seqs_cap": "pinned", "pool_too_small": "preempting"},
        remedy="route long prompts elsewhere, allow look-ahead past the head, or a larger pool",
        alert="vllm:num_requests_waiting > 0 and vllm:kv_cache_usage_perc < 0.8 for 1m",
    ),
    "max_num_seqs_cap": Mode(
        says="requests wait for a place among max_num_seqs while the cache has room",
        requires=("pinned", "queue_seldom"),
        expects=("queue", "roomy"),
        forbids=("preempting", "full", "big_prompt", "filled", "full_steps", "many_steps"),
        unlike={
            "head_of_line": "pinned",
            "compute_bound": "full_steps",
            "noisy_tenant": "one_tenant",
        },
        remedy="raise max_num_seqs: the cache has room for more",
        alert="vllm:num_requests_waiting > 0 and vllm:kv_cache_usage_perc < 0.7 for 1m",
    ),
    "token_budget_small": Mode(
        says="the token budget of a step is too small: prompts are computed in many small pieces",
        requires=("many_steps",),
        expects=("queue_seldom", "queue"),
        allows=("roomy", "pinned", "burst", "turns"),
        forbids=("full_steps", "preempting", "spikes", "giant_steps", "full"),
        unlike={"compute_bound": "full_steps", "decode_stalled_by_prefill": "spikes"},
        remedy="raise max_num_batched_tokens",
        alert="prefill time > 6 * inter-token latency (means of both histograms)",
    ),
    "compute_bound": Mode(
        says="prompts are more work than the engine can do; the cache is not the limit",
        requires=("full_steps",),
        expects=("queue", "queue_seldom", "roomy"),
        allows=("pinned", "giant_steps", "filled"),
        forbids=("preempting", "many_steps", "big_prompt"),
        unlike={"max_num_seqs_cap": "full_steps", "token_budget_small": "many_steps"},
        remedy="replicas, reuse of prefixes, prefill on engines of its own",
        alert="rate(vllm:prompt_tokens_total) at its ceiling with vllm:num_requests_waiting > 0",
    ),
    "engine_slowed": Mode(
        says="the engine itself became slower (host, throttling, a neighbour); the cache follows",
        requires=("slower",),
        expects=("queue_seldom",),
        allows=(
            "filling",
            "queue",
            "full",
            "roomy",
            "pinned",
            "filled",
            "preempting_some",
            "preempting",
            "spikes",
            "burst",
        ),
        forbids=("arrivals_up",),
        unlike={"load_growth": "arrivals_up", "pool_too_small": "slower"},
        leads_to=(*_WAITING_BY_LOAD, "client_aborts"),
        change="token_latency",
        remedy="look at the host, not the cache: CPU, clocks and temperature, other processes",
        alert="inter-token latency > 2 * its value an hour ago at as many running requests",
    ),
    "decode_stalled_by_prefill": Mode(
        says="whole long prompts are computed in one step, and every running request waits for it",
        requires=("spikes",),
        expects=("giant_steps",),
        allows=("many_steps", "mixed_outputs", "queue_seldom"),
        forbids=("preempting", "queue", "slower"),
        unlike={"token_budget_small": "giant_steps", "engine_slowed": "slower"},
        remedy="lower max_num_batched_tokens or long_prefill_token_threshold; split prefill off",
        alert="p99 / p50 of vllm:inter_token_latency_seconds > 8",
    ),
    "bursts": Mode(
        says="requests arrive in bursts: a queue for seconds, and little to do on the whole",
        requires=("burst", "queue_seldom"),
        expects=("spare",),
        allows=("full", "filled", "preempting_some", "again", "arrivals_up", "roomy", "pinned"),
        forbids=("queue", "many_steps", "big_prompt"),
        unlike={"pool_too_small": "burst", "max_num_seqs_cap": "queue"},
        remedy="smooth or limit admission, or keep room for it; scrape every 1 to 2 s to see them",
        alert="max_over_time(vllm:num_requests_waiting[1m]) > 10 with a mean below 1",
    ),
    "prefix_evicted": Mode(
        says="shared prompts are evicted by long prompts that nobody shares",
        requires=("again", "few_again"),
        expects=("roots_again", "short_stay", "big_prompt"),
        allows=(
            "low_hits",
            "no_hits",
            "filled",
            "queue",
            "queue_seldom",
            "burst",
            "preempting_some",
            "roomy",
        ),
        forbids=("turns", "mostly_again", "elsewhere", "salted", "off"),
        unlike={"working_set_too_big": "few_again", "evicted_between_turns": "turns"},
        remedy="a replica for the unshared traffic, a larger pool, offload, retention",
        alert="windowed hit rate (rate of hits / rate of queries) < half of last week's",
    ),
    "working_set_too_big": Mode(
        says="the shared prompts together exceed the pool: each is evicted before its reuse",
        requires=("again", "mostly_again", "low_hits"),
        expects=("roots_again", "no_hits"),
        forbids=("few_again", "elsewhere", "turns", "salted", "off", "preempting"),
        unlike={
            "nothing_shared": "again",
            "prefix_evicted": "few_again",
            "varying_prefix": "elsewhere",
        },
        remedy="route each tenant to one replica, a larger pool, offload to host memory",
        alert="windowed hit rate near 0 with repeated prompts",
    ),
    "varying_prefix": Mode(
        says="something that varies (a time, an id) stands before the shared text: none is shared",
        requires=("elsewhere", "low_hits"),
        expects=("no_hits",),
        allows=("queue_seldom",),
        forbids=("again", "salted", "hits_fell", "off"),
        unlike={
            "nothing_shared": "elsewhere",
            "cache_salts": "salted",
            "template_change": "hits_fell",
        },
        remedy="move the varying field behind the shared text",
        alert="windowed hit rate near 0",
    ),
    "cache_salts": Mode(
        says="equal prompts have salts (or adapters) of their own and cannot be shared",
        requires=("salted", "low_hits"),
        expects=("no_hits",),
        forbids=("elsewhere", "again", "off"),
        unlike={"varying_prefix": "salted", "nothing_shared": "salted"},
        remedy="a cache_salt for each tenant, not for each user or request",
        alert="windowed hit rate near 0",
    ),
    "prefix_shorter_than_block": Mode(
        says="what prompts share is shorter than a block, and only whole blocks are shared",
        requires=("short_prompts", "low_hits"),
        expects=("no_hits",),
        forbids=("again", "elsewhere", "salted", "off"),
        unlike={"nothing_shared": "short_prompts", "varying_prefix": "elsewhere"},
        provable=False,
        remedy="a smaller block, or a longer shared prompt",
        alert="prompt length p50 < 3 blocks with a hit rate of 0",
    ),
    "nothing_shared": Mode(
        says="healthy; prompts have nothing in common, so there is nothing to reuse",
        requires=("low_hits", "no_hits"),
        allows=("filled",),
        forbids=(
            "again",
            "elsewhere",
            "salted",
            "off",
            "short_prompts",
            "unqueried",
            "queue",
            "preempting",
        ),
        unlike={"varying_prefix": "elsewhere", "working_set_too_big": "again"},
        remedy="nothing: a low hit rate is right for this traffic",
        alert="none",
        healthy=True,
    ),
    "prefix_caching_off": Mode(
        says="prefix caching is off, or asked and never answers",
        requires=("off", "unqueried"),
        forbids=("hits_fell",),
        unlike={"nothing_shared": "unqueried"},
        remedy="--enable-prefix-caching",
        alert="rate(vllm:prefix_cache_queries_total) == 0 with rate(vllm:prompt_tokens_total) > 0",
    ),
    "template_change": Mode(
        says="the hit rate falls at one moment: the prompts changed (a deployment, a template)",
        requires=("hits_fell",),
        expects=("elsewhere",),
        allows=("low_hits", "no_hits", "filling", "larger"),
        forbids=("again", "restarted", "turns", "preempting", "salted"),
        unlike={"prefix_evicted": "again", "varying_prefix": "hits_fell"},
        change="hit_rate",
        remedy="roll the template back, or put what varies behind what is shared",
        alert="windowed hit rate < half of its value an hour ago",
    ),
    "evicted_between_turns": Mode(
        says="conversations are evicted between their turns",
        requires=("again", "turns"),
        expects=("mostly_again", "short_stay", "filled"),
        allows=(
            "low_hits",
            "hits_fell",
            "queue",
            "queue_seldom",
            "full",
            "preempting_some",
            "larger",
            "big_prompt",
            "burst",
        ),
        forbids=("few_again", "elsewhere", "salted", "roots_again"),
        unlike={"working_set_too_big": "turns", "prefix_evicted": "turns"},
        remedy="offload to host memory, retention, fewer sessions on a replica",
        alert="idle time of evicted blocks < time between turns (--kv-cache-metrics)",
    ),
    "round_robin_replicas": Mode(
        says="the same prompts go to every replica in turn, and each keeps them all",
        requires=("alike_roots",),
        expects=("low_hits", "no_hits", "again", "mostly_again", "roots_again"),
        unlike={"nothing_shared": "alike_roots", "working_set_too_big": "alike_roots"},
        leads_to=("working_set_too_big",),
        remedy="sticky or KV-aware routing",
        alert="the hit rate of all replicas is low and alike",
    ),
    "hot_replica": Mode(
        says="one replica has the queue, others are idle",
        requires=("uneven",),
        expects=("queue", "queue_seldom"),
        allows=("full", "filled", "preempting"),
        unlike={"max_num_seqs_cap": "uneven"},
        remedy="bound the affinity of the router",
        alert="max - min of vllm:num_requests_waiting over replicas > half of the sum",
    ),
    "noisy_tenant": Mode(
        says="one tenant floods the server, and the others wait behind it",
        requires=("one_tenant", "queue_seldom"),
        expects=("queue", "queue_seldom", "pinned", "roomy", "filling"),
        allows=("arrivals_up", "larger", "full"),
        unlike={"max_num_seqs_cap": "one_tenant", "load_growth": "one_tenant"},
        leads_to=("max_num_seqs_cap", "pool_too_small"),
        change="running",
        remedy="quotas, priorities, or a replica of its own for that tenant",
        alert="requests of each tenant at the gateway: the metrics have no label for it",
    ),
    "client_aborts": Mode(
        says="clients give up and ask again: work is begun and thrown away",
        requires=("lost",),
        expects=("queue", "queue_seldom"),
        allows=("pinned", "roomy", "arrivals_up", "again", "full", "filled"),
        unlike={"max_num_seqs_cap": "lost", "template_change": "lost"},
        remedy="longer deadlines, back-off, admission that knows deadlines",
        alert="rate(ttft count) - rate(vllm:request_success_total) > 0.2 * rate(ttft count)",
    ),
    "too_long_requests": Mode(
        says="requests are refused (HTTP 4xx), as those longer than max_model_len are",
        requires=("refused",),
        forbids=("preempting",),
        unlike={"admission_limit": "refused"},
        remedy="truncate at the client, or raise max_model_len",
        alert='rate(http_requests_total{status="4xx"}) > 0.05 * rate(http_requests_total)',
    ),
    "admission_limit": Mode(
        says="requests are turned away at the door, by the limit on the queue",
        requires=("turned_away",),
        expects=("queue", "queue_seldom", "pinned"),
        allows=("roomy", "full"),
        unlike={"too_long_requests": "turned_away"},
        remedy="size the limit by the wait that clients accept; see why the queue is full",
        alert="rate(vllm:admission_rejections_total) > 0",
    ),
    "request_larger_than_pool": Mode(
        says="a request that is larger than the pool waits for ever, and everybody behind it",
        requires=("stuck", "queue_seldom"),
        expects=("roomy", "queue"),
        forbids=("full", "pinned"),
        unlike={"head_of_line": "stuck"},
        remedy="max_model_len no larger than the pool; abort the request at the head",
        alert="vllm:num_requests_running == 0 and vllm:num_requests_waiting > 0 for 30s",
    ),
    "start_refused": Mode(
        says="the engine did not start: its pool is smaller than one request of max_model_len",
        requires=("refused_start",),
        remedy="a smaller max_model_len, or more memory for the cache",
        alert="up == 0",
    ),
    "restart": Mode(
        says="the server restarted in the window: its cache was cold, its counters began anew",
        requires=("restarted",),
        allows=("hits_fell", "queue", "queue_seldom", "preempting", "filled", "full"),
        unlike={"template_change": "restarted"},
        remedy="nothing but warm-up; find why it restarted",
        alert="changes(process_start_time_seconds[10m]) > 0",
    ),
    "conservative_admission": Mode(
        says="room is kept for outputs that never come: requests wait while the cache has room",
        requires=("conservative",),
        expects=("queue", "queue_seldom", "roomy"),
        unlike={"max_num_seqs_cap": "conservative"},
        remedy="lower --schedule-conservativeness (SGLang)",
        alert="sglang:num_queue_reqs > 0 and sglang:token_usage < 0.9",
        recorded=False,
    ),
    "offload_bound": Mode(
        says="requests wait for cached blocks to be fetched from another tier",
        requires=("deferred",),
        expects=("queue", "queue_seldom", "fetching"),
        allows=("again", "mostly_again", "roots_again", "low_hits", "filled", "full", "roomy"),
        unlike={"pool_too_small": "deferred"},
        remedy="look at the connector: bandwidth of the tier, or recompute instead of fetching",
        alert='vllm:num_requests_waiting_by_reason{reason="deferred"} > 0 for 1m',
    ),
    "fragmentation": Mode(
        says="free memory lies in holes, none of which holds the request: caches are contiguous",
        requires=("holes",),
        unlike={"head_of_line": "holes"},
        remedy="paging: any free block serves any request",
        alert="largest free run < the reservation of one request",
        recorded=False,
    ),
}
"""By name; the order is that of the notes on which they rest."""

HEALTHY: Final = "healthy"
