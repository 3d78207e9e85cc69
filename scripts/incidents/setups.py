"""The incidents that are recorded, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scripts.incidents.capacity import (
    block_leak,
    bursts,
    compute_bound,
    decode_stalled,
    engine_slowed,
    head_of_line,
    load_growth,
    long_generations,
    max_num_seqs_cap,
    offload_bound,
    pool_too_small,
    request_larger_than_pool,
    token_budget_small,
)
from scripts.incidents.clients import (
    admission_limit,
    client_aborts,
    noisy_tenant,
    restart,
    restarted,
    start_refused,
    too_long_requests,
)
from scripts.incidents.drawing import Dice
from scripts.incidents.healthy import (
    healthy_full_pool,
    healthy_high_load,
    healthy_low,
    healthy_multi_turn,
    healthy_ranks,
    healthy_speculative,
    healthy_unique,
)
from scripts.incidents.prefixes import (
    cache_salts,
    evicted_between_turns,
    hot_replica,
    prefix_caching_off,
    prefix_evicted,
    prefix_shorter_than_block,
    round_robin_replicas,
    template_change,
    varying_prefix,
    working_set_too_big,
)
from scripts.incidents.world import Setup

SINGLE: Final[dict[str, Callable[[Dice], Setup]]] = {
    "pool_too_small": pool_too_small,
    "load_growth": load_growth,
    "long_generations": long_generations,
    "block_leak": block_leak,
    "head_of_line": head_of_line,
    "max_num_seqs_cap": max_num_seqs_cap,
    "token_budget_small": token_budget_small,
    "compute_bound": compute_bound,
    "engine_slowed": engine_slowed,
    "decode_stalled_by_prefill": decode_stalled,
    "bursts": bursts,
    "request_larger_than_pool": request_larger_than_pool,
    "offload_bound": offload_bound,
    "prefix_evicted": prefix_evicted,
    "working_set_too_big": working_set_too_big,
    "round_robin_replicas": round_robin_replicas,
    "hot_replica": hot_replica,
    "varying_prefix": varying_prefix,
    "cache_salts": cache_salts,
    "prefix_shorter_than_block": prefix_shorter_than_block,
    "prefix_caching_off": prefix_caching_off,
    "template_change": template_change,
    "evicted_between_turns": evicted_between_turns,
    "noisy_tenant": noisy_tenant,
    "client_aborts": client_aborts,
    "too_long_requests": too_long_requests,
    "admission_limit": admission_limit,
    "start_refused": start_refused,
    "restart": restart,
    "nothing_shared": healthy_unique,
}
"""One cause each, by the name of the diagnosis."""

HEALTHY: Final[dict[str, Callable[[Dice], Setup]]] = {
    "healthy_low": healthy_low,
    "healthy_high_load": healthy_high_load,
    "healthy_full_pool": healthy_full_pool,
    "healthy_multi_turn": healthy_multi_turn,
    "healthy_ranks": healthy_ranks,
    "healthy_speculative": healthy_speculative,
}

PAIRS: Final[dict[str, Callable[[Dice], Setup]]] = {
    "pool_too_small+varying_prefix": lambda dice: pool_too_small(dice, "varying"),
    "pool_too_small+cache_salts": lambda dice: pool_too_small(dice, "salted"),
    "pool_too_small+restart": lambda dice: restarted(dice, pool_too_small(dice)),
    "max_num_seqs_cap+varying_prefix": lambda dice: max_num_seqs_cap(dice, "varying"),
    "max_num_seqs_cap+cache_salts": lambda dice: max_num_seqs_cap(dice, "salted"),
    "engine_slowed+varying_prefix": lambda dice: engine_slowed(dice, "varying"),
    "engine_slowed+cache_salts": lambda dice: engine_slowed(dice, "salted"),
    "bursts+varying_prefix": lambda dice: bursts(dice, "varying"),
    "client_aborts+cache_salts": lambda dice: client_aborts(dice, "salted"),
    "decode_stalled_by_prefill+varying_prefix": lambda dice: decode_stalled(dice, "varying"),
    "token_budget_small+cache_salts": lambda dice: token_budget_small(dice, "salted"),
}
"""Two causes at once."""


EVERY: Final = {**SINGLE, **HEALTHY, **PAIRS}


def drawn(name: str, seed: int, *, held_out: bool) -> Setup:
    """The incident of a name, in a configuration of its own for each seed."""
    dice = Dice(name, seed, held_out=held_out)
    made = EVERY[name](dice)
    made.name = name
    made.modes = ("healthy",) if name in HEALTHY else tuple(name.split("+"))
    return made
