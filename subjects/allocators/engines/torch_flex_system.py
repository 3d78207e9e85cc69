"""torch's `PagedAttention` with FlexAttention: pages, writer and attention, as one system.

Both are part of torch itself. `PagedAttention` reserves pages for a row and erases them, `assign`
writes, and FlexAttention reads the cache through the masks that `PagedAttention` converts: one call
for all rows, the mask made for the longest, each row bounded by its length (`kv_len`). Which rows
are taken is the caller's business; the first that is free is.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.experimental._paged_attention import PagedAttention

DISTRIBUTION: Final = "torch"

ROWS: Final = 24
"""Sequences that may be there at once."""

# It warns of being slow uncompiled, and would hand itself to the compiler all the same.
flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True


class TorchSystem:
    """A `PagedAttention` on the CPU, and the cache that it is the table of."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._pages = PagedAttention(num_blocks, block_size, ROWS, device="cpu")
        self._block_size = block_size
        self._slots = num_blocks * block_size
        self._cache: Any = None
        self._row: dict[str, int] = {}
        self._lengths = torch.zeros(ROWS, dtype=torch.int64)

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """Reserve pages in the first free row."""
        row = min(set(range(ROWS)) - set(self._row.values()))
        if not self._reserve(row, max(num_tokens, min(1, len(tokens)))):
            return None
        self._row[sequence] = row
        return 0

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """Reserve the pages of the longer sequence."""
        row = self._row[sequence]
        return self._reserve(row, int(self._lengths[row]) + len(tokens))

    def write(self, sequence: str, *, start: int, keys: Any, values: Any) -> None:
        """Assign."""
        new = [torch.tensor(each).transpose(0, 1).unsqueeze(0) for each in (keys, values)]
        if self._cache is None:
            self._cache = [
                torch.zeros(1, each.shape[1], self._slots, each.shape[3]) for each in new
            ]
        positions = torch.arange(start, start + new[0].shape[2]).unsqueeze(0)
        row = torch.tensor([self._row[sequence]])
        self._pages.assign(row, positions, *new, *self._cache)

    def attend(self, sequences: Sequence[str], *, queries: Any) -> Any:
        """FlexAttention of all rows at once, those that nobody asks for included."""
        rows = [self._row[sequence] for sequence in sequences]
        batch = max(self._row.values()) + 1
        asked = torch.tensor(queries)
        query = torch.zeros(batch, asked.shape[1], 1, asked.shape[2])
        query[rows, :, 0] = asked
        blocks = -(-int(self._lengths.max()) // self._block_size)
        mask = flex.create_block_mask(
            flex.noop_mask,
            batch,
            None,
            1,
            blocks * self._block_size,
            device="cpu",
            BLOCK_SIZE=(flex._DEFAULT_SPARSE_BLOCK_SIZE, self._block_size),
        )
        lengths = self._lengths[:batch]
        out = flex.flex_attention(
            query,
            self._cache[0].expand(batch, -1, -1, -1),
            self._cache[1].expand(batch, -1, -1, -1),
            score_mod=self._pages.get_score_mod(None, lengths),
            block_mask=self._pages.convert_logical_block_mask(mask, kv_len=lengths),
            enable_gqa=True,
        )
        return out[rows, :, 0].tolist()

    def free(self, sequence: str) -> None:
        """Erase the row."""
        row = self._row.pop(sequence)
        self._pages.erase(torch.tensor([row]))
        self._lengths[row] = 0

    def _reserve(self, row: int, length: int) -> bool:
        try:
            self._pages.reserve(torch.tensor([row]), torch.tensor([length]))
        except AssertionError:  # how it says that there are too few pages
            return False
        self._lengths[row] = length
        return True


def make(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> TorchSystem:
    """An empty system. Raises ValueError: prefix caching or a window is asked for."""
    if prefix_caching or window is not None:
        raise ValueError("PagedAttention has neither prefix caching nor windows")
    return TorchSystem(num_blocks, block_size)


def _warm_up() -> None:
    """What the first call imports takes seconds, and a fork of this process would do it again."""
    system = TorchSystem(1, 1)
    row = [[[0.0, 0.0]]]
    system.admit("first", [0], num_tokens=1, salt="")
    system.write("first", start=0, keys=row, values=row)
    system.attend(["first"], queries=row)


make.prepare = _warm_up  # type: ignore[attr-defined]
make.version = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"  # type: ignore[attr-defined]
make.capabilities = {  # type: ignore[attr-defined]
    "system": True,
    "prefix_caching": False,
    # What is reserved for a row can grow at any time.
    "chunked_prefill": True,
}
