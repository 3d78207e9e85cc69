"""How a paged server decides: who is admitted, who is preempted, what is shared and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from paged.errors import BadSize, checked_size

Preemption = Literal["recompute", "swap"]
Eviction = Literal["lru", "lfu", "fifo"]

MAX_BLOCK_SIZE: Final = 2**20
"""Largest block size, in tokens. A request's length stays far from 64 bits with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedPolicy:
    """A paged server's rules. Raises BadSize: one is out of range, or two exclude each other."""

    block_size: int = 16
    """Tokens per block."""
    watermark: float = 0.0
    """Share of the blocks, 0 to 1, that an admission has to leave free for those that run to grow
    into. It is ignored while nothing runs."""
    look_ahead: int = 0
    """Requests behind the head of the queue that may be admitted past it when it does not fit. 0 is
    first come, first served."""
    max_running: int | None = None
    """Most requests that run at once; None: as many as fit."""
    token_budget: int | None = None
    """Most tokens that a step computes, decode and prefill together; longer prompts are computed in
    chunks over several steps (chunked prefill). Decoding sequences always get theirs. None: a
    prompt is computed in the step of its admission."""
    preemption: Preemption = "recompute"
    """What becomes of a preempted request's keys and values: computed again when it comes back
    (`recompute`), or copied to the host and back (`swap`)."""
    samples: int = 1
    """Sequences that are decoded from each prompt and share its blocks (parallel sampling)."""
    beam_keep: float | None = None
    """With `samples` above 1: the share of steps, 0 to 1, in which every beam goes on as itself; in
    the others each continues a beam drawn at random (a model of beam search). None: samples are
    independent."""
    prefix_caching: bool = False
    """Whether full prompt blocks are kept and found again by requests with the same prefix."""
    eviction: Eviction = "lru"
    """Which idle cached block goes first: least recently used, least frequently used, or first in.
    """
    tenant_quotas: tuple[tuple[int, int], ...] = field(default=())
    """Most cached blocks per tenant, (tenant, blocks); tenants that are not named have no limit."""
    sliding_window: int | None = None
    """Tokens that attention looks back, the present one included; blocks wholly behind it are given
    up. None: all."""
    seed: int = 0
    """For what is drawn: the beams."""

    def __post_init__(self) -> None:
        checked_size("block_size", self.block_size, at_least=1, at_most=MAX_BLOCK_SIZE)
        checked_size("look_ahead", self.look_ahead, at_least=0)
        checked_size("samples", self.samples, at_least=1)
        checked_size("seed", self.seed, at_least=0)
        for name in ("max_running", "token_budget", "sliding_window"):
            if (value := getattr(self, name)) is not None:
                checked_size(name, value, at_least=1)
        for name in ("watermark", "beam_keep"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise BadSize(f"{name} = {value}: give a share from 0 to 1")
        for name, known in (("preemption", Preemption), ("eviction", Eviction)):
            if (value := getattr(self, name)) not in get_args(known):
                raise BadSize(f"{name} = {value!r}: choose one of {', '.join(get_args(known))}")
        for tenant, blocks in self.tenant_quotas:
            checked_size(f"quota of tenant {tenant}", blocks, at_least=0)
        if self.tenant_quotas and not self.prefix_caching:
            raise BadSize("tenant_quotas without prefix_caching: there is nothing to divide")
        if self.beam_keep is not None and self.samples == 1:
            raise BadSize("beam_keep with samples = 1: beams are 2 or more samples")
        if self.beam_keep is not None and self.prefix_caching:
            raise BadSize("beam_keep with prefix_caching: choose one of them")
        if self.sliding_window is not None and (
            self.samples > 1 or self.prefix_caching or self.preemption == "swap"
        ):
            raise BadSize(
                "sliding_window with samples, prefix_caching or swap: blocks behind the window are "
                "given up, and the others would still need them; choose one of them"
            )

    @property
    def by_counts(self) -> bool:
        """Whether block counts, and who reads which key, decide everything: `paged.counting`."""
        return self.samples == 1 and self.sliding_window is None and not self.tenant_quotas

    @property
    def keeps_all(self) -> bool:
        """Whether every full block is kept, those without a key for their own request, which finds
        them again when it was preempted. Of several samples only what has a key is kept.
        """
        return self.prefix_caching and self.samples == 1

    def watermark_blocks(self, num_blocks: int) -> int:
        """Blocks that an admission has to leave free in a pool of `num_blocks`."""
        return int(self.watermark * num_blocks)
