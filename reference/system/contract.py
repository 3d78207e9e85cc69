"""The contract of a system: what holds a cache and computes attention over it, as one object.

A subject is a factory as of an allocator, `factory(num_blocks, block_size, *, prefix_caching,
window)`, whose `capabilities` have `system` set. What it is asked are a few methods: how it keeps
its books is its own business, and only what attention gives is judged. Numbers cross as nested
lists, so that a system may run in any interpreter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

NUM_Q_HEADS: Final = 4
NUM_KV_HEADS: Final = 2
HEAD_DIM: Final = 16
"""Sizes of what is written and asked."""

CHECKS: Final = {
    "attention": "The attention of each sequence is that of its contiguous twin, after every step.",
    "refusal": "Nothing is refused while the blocks that no sequence needs would do.",
    "hit": "Hits are whole blocks of a true prefix, and leave a token to compute.",
    "capacity": "The empty pool holds one sequence that fills it.",
    "answer": "Legal calls are answered as the contract says, and raise nothing.",
    "died": "The system's process neither crashes nor hangs.",
}
"""Every check by name, and what must hold. That a hit is of a true prefix is for `attention`."""

Rows = Sequence[Sequence[Sequence[float]]]
"""[number, heads, HEAD_DIM], float32."""


class System(Protocol):
    """What a factory returns. `fork` need not exist without that capability, nor `reset`."""

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """Make room for a new sequence, as `reference.allocator.contract.Allocator.admit`.

        Returns the leading tokens whose keys and values are in the cache already; None if refused.
        """

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """Make room for more tokens. Returns False if refused."""

    def write(self, sequence: str, *, start: int, keys: Rows, values: Rows) -> None:
        """Store keys and values, [number, NUM_KV_HEADS, HEAD_DIM], of the positions from `start`.

        There is room for them, and for nothing behind them.
        """

    def attend(self, sequences: Sequence[str], *, queries: Rows) -> Rows:
        """Return the attention of one query of each sequence over all that it holds.

        `queries` is [sequences, NUM_Q_HEADS, HEAD_DIM], and so is what is returned. Query heads 0
        and 1 share KV head 0; logits are scaled with 1 / sqrt(HEAD_DIM).
        """

    def fork(self, parent: str, child: str) -> bool:
        """Start `child` with all that `parent` holds. Returns False if refused."""

    def free(self, sequence: str) -> None:
        """Give up a sequence."""

    def reset(self) -> bool:
        """Forget every cached prefix. Returns False if refused."""
