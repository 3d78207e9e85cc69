"""torch's `PagedAttention`, the page table of FlexAttention, behind the allocator contract.

It is part of torch itself, `torch.nn.attention.experimental._paged_attention`, and so runs in
pagedbench's own interpreter; it imports nothing of pagedbench all the same. Pages are reserved and
erased, and neither shared nor kept. Sequences are rows of a table there, and which of them are
taken is the caller's business: a queue of free rows is what the adapter adds.
"""

from __future__ import annotations

import importlib.metadata
from collections import deque
from collections.abc import Sequence
from typing import Final

import torch
from torch.nn.attention.experimental._paged_attention import PagedAttention

DISTRIBUTION: Final = "torch"

MAX_RUNNING: Final = 256
"""Rows of the table: sequences that may be there at once."""


class TorchAllocator:
    """A `PagedAttention` on the CPU."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._pages = PagedAttention(num_blocks, block_size, MAX_RUNNING, device="cpu")
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._rows = [torch.tensor([row]) for row in range(MAX_RUNNING)]
        # The row that was freed last is taken again last, so that to free it twice means just that.
        self._free_rows = deque(range(MAX_RUNNING))
        self._row: dict[str, int] = {}
        self._lengths = [0] * MAX_RUNNING
        self._freed: tuple[str, int] | None = None

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """Reserve pages in a row of its own."""
        if not self._free_rows:
            return None
        row = self._free_rows[0]
        if not self._reserve(row, max(num_tokens, min(1, len(tokens)))):
            return None
        self._row[sequence] = self._free_rows.popleft()
        return 0

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """Reserve the pages of the longer sequence."""
        row = self._row[sequence]
        return self._reserve(row, self._lengths[row] + len(tokens))

    def free(self, sequence: str) -> None:
        """Erase a row. The one that was erased last can be erased once more."""
        row = self._row.pop(sequence, None)
        if row is None:
            if self._freed is None or self._freed[0] != sequence:
                raise KeyError(sequence)
            self._pages.erase(self._rows[self._freed[1]])
            return
        self._pages.erase(self._rows[row])
        self._lengths[row] = 0
        self._free_rows.append(row)
        self._freed = (sequence, row)

    def slots(self, sequence: str) -> list[int]:
        """Where `assign` writes each position."""
        row = self._row[sequence]
        positions = torch.arange(self._lengths[row])
        pages = self._pages.page_table[row][positions // self._block_size]
        slots: list[int] = (pages * self._block_size + positions % self._block_size).tolist()
        return slots

    def counts(self) -> tuple[int, int, int]:
        """Pages are empty, or some row has them."""
        free = len(self._pages.empty_pages)
        return free, 0, self._num_blocks - free

    def _reserve(self, row: int, length: int) -> bool:
        try:
            self._pages.reserve(self._rows[row], torch.tensor([length]))
        except AssertionError:  # how it says that there are too few pages
            return False
        self._lengths[row] = length
        return True


def make(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> TorchAllocator:
    """An empty allocator. Raises ValueError: prefix caching or a window is asked for."""
    if prefix_caching or window is not None:
        raise ValueError("PagedAttention has neither prefix caching nor windows")
    return TorchAllocator(num_blocks, block_size)


make.version = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"  # type: ignore[attr-defined]
make.capabilities = {  # type: ignore[attr-defined]
    "prefix_caching": False,
    # What is reserved for a row can grow at any time.
    "chunked_prefill": True,
    "batching": True,
    "abort_before_write": True,
    # Rows are numbers and have no names: any of them can be reserved and erased at any time, so
    # that none is unknown, and one that is there already merely grows. A negative number of tokens
    # does not get there, since `admit` makes room for one in any case.
    "hostile": ["free_twice", "admit_oversized"],
}
