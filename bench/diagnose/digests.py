"""Block events without their content: equal blocks stay equal, and nobody reads what they held.

Token ids, cache salts and names of adapters and sessions
are customers' data: of each only a digest is kept. The key of the digests is drawn anew each time
and written nowhere, so that no guess can be tried against them; digests of two recordings cannot be
compared.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from bench.workloads.block_events import listed, named_event

_PLAIN: Final = (
    "block_size",
    "medium",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
    "locality",
    "num_tokens",
)
"""Fields that say nothing of a request's content."""


class Digests:
    """Names of contents: 16 hexadecimal digits, the same for the same content."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._done = False
        """Whether the events are digested already: a removal has only hashes to tell it by."""

    def of(self, content: object) -> str:
        """Name a content."""
        said = content if isinstance(content, bytes) else repr(content).encode()
        return blake2b(said, digest_size=8, key=self._key).hexdigest()

    def event(self, raw: object) -> dict[str, Any]:
        """Digest one event, which is left as it is where that was done before.

        Raises ValueError: it is no block event.
        """
        named = named_event(raw)
        event = {key: named[key] for key in ("type", *_PLAIN) if named.get(key) is not None}
        size = event.get("block_size", 1)
        if not set(map(type, event.values())) <= {str, int} or type(size) is not int or size < 1:
            raise ValueError("its fields are not what they should be")
        if event["type"] == "AllBlocksCleared":
            return event
        hashes = listed(named, "block_hashes")
        self._done |= "content" in named
        if self._done:
            kept = ("block_hashes", "parent_block_hash", "content", "extra_keys", "session")
            return event | {key: named[key] for key in kept if key in named}
        event["block_hashes"] = [self.of(each) for each in hashes]
        if event["type"] == "BlockRemoved":
            return event
        parent = named.get("parent_block_hash")
        event["parent_block_hash"] = None if parent is None else self.of(parent)
        if "token_ids" in named:
            tokens = listed(named, "token_ids")
            if "block_size" not in event:
                raise ValueError("it has no block_size")
            event["num_tokens"] = len(tokens)
            blocks = (tokens[at : at + size] for at in range(0, len(tokens), size))
            event["content"] = [self.of(block) for block in blocks]
        if (extra := self._extra(named, len(hashes))) is not None:
            event["extra_keys"] = extra
        if named.get("session_id") is not None:
            event["session"] = self.of(named["session_id"])
        return event

    def _extra(self, named: Mapping[str, Any], blocks: int) -> list[str | None] | None:
        """What else the blocks' keys hold, for each block: an adapter, an image, a salt."""
        extra = named.get("extra_keys")
        if isinstance(extra, list):
            return [None if each is None else self.of(each) for each in extra]
        others = [named.get(key) for key in ("lora_name", "lora_id", "cache_salt")]
        if any(each is not None for each in others):
            return [self.of(others)] * blocks
        return None
