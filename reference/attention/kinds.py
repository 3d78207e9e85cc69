"""Calls that change the cache instead of reading it: what a problem can say of each."""

from __future__ import annotations

from typing import Final

_STORED: Final = (
    "requests", "num_kv_heads", "head_dim", "value_dim", "rope", "block_size", "dtype", "kv_dtype",
    "codec", "layout", "strides", "pool", "seed",
)  # fmt: skip
STORES: Final = {
    "write": frozenset({*_STORED, "write", "k_scale", "v_scale", "inputs"}),
    "copy": frozenset({*_STORED, "copy", "chained"}),
}
"""Kinds of call that change the cache, and the fields of a problem that say something of them."""

STORED_STRIDES: Final = {"write": "query", "copy": "table"}
"""By kind, the member of `STRIDED` that it has: the new tokens lie as the query does, and the pairs
as the table."""
