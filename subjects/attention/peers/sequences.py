"""One sequence of a batch at a time, for kernels that know no pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.attention.contract import PagedBatch


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence that has query tokens in this step."""

    index: int
    """Row of the block table."""
    rows: slice
    """Its query tokens within the batch."""
    seq_len: int
    """Tokens in the cache, the query tokens included."""

    @property
    def query_len(self) -> int:
        """Query tokens."""
        return int(self.rows.stop - self.rows.start)


def sequences(batch: PagedBatch) -> Iterator[Sequence]:
    """The sequences of a batch that have query tokens, in order."""
    starts: list[int] = batch.query_start_loc.tolist()
    for index, seq_len in enumerate(batch.seq_lens.tolist()):
        if starts[index + 1] > starts[index]:
            yield Sequence(index, slice(starts[index], starts[index + 1]), seq_len)


def visible(batch: PagedBatch, sequence: Sequence) -> Tensor | None:
    """Which keys the query tokens see, [query_len, seq_len] bool; None if each sees all."""
    key = torch.arange(sequence.seq_len, device=batch.query.device)
    query = key[sequence.seq_len - sequence.query_len :].unsqueeze(1)
    seen = key <= query if batch.causal else torch.ones_like(key <= query)
    if batch.window is not None:
        seen &= key > query - batch.window
    return None if bool(seen.all()) else seen
