"""A tier behind the cache, over a link that is too slow: a KV connector of vLLM's scheduler.

It keeps every block that was ever computed, and gives one request's blocks after the other back.
Nothing is copied: there are no caches. vLLM imports it by its name, in the engine's environment.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)


class SlowTier(KVConnectorBase_V1):  # type: ignore[misc]
    """The scheduler's side, and all that there is."""

    def __init__(self, config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(config, role, kv_cache_config)
        self._block = config.cache_config.block_size
        extra = config.kv_transfer_config.kv_connector_extra_config
        self._tokens_per_s = float(extra["tokens_per_s"])
        self._kept: set[Any] = set()
        self._here_at: dict[str, float] = {}
        self._free_at = 0.0

    def get_num_new_matched_tokens(self, request: Any, computed: int) -> tuple[int, bool]:
        """What the tier has of a prompt beyond what the cache has."""
        found = 0
        for block_hash in request.block_hashes:
            if block_hash not in self._kept:
                break
            found += self._block
        more = max(min(found, request.num_tokens - 1) // self._block * self._block - computed, 0)
        return more, more > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, tokens: int) -> None:
        """Begin to fetch, behind what is being fetched."""
        if tokens:
            self._free_at = max(self._free_at, time.monotonic()) + tokens / self._tokens_per_s
            self._here_at[request.request_id] = self._free_at

    def arrived(self) -> set[str]:
        """Requests whose blocks are here."""
        here = {name for name, at in self._here_at.items() if at <= time.monotonic()}
        for name in here:
            del self._here_at[name]
        return here

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Keep what it computed."""
        self._kept.update(request.block_hashes)
        return False, None

    def build_connector_meta(self, scheduled: Any) -> KVConnectorMetadata:
        """Nothing is told to workers."""
        return KVConnectorMetadata()

    def start_load_kv(self, *_: Any, **__: Any) -> None:
        """There is no worker."""

    wait_for_layer_load = save_kv_layer = wait_for_save = start_load_kv
