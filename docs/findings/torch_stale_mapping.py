"""torch's experimental PagedAttention reads another sequence's values after `erase`.

    python docs/findings/torch_stale_mapping.py

`erase` is to clear the erased row of `physical_to_logical`, and does not: the assignment goes to a
copy, since the row is chosen by a tensor. A mask that reaches beyond the reserved pages gathers
page -1, the last page; the stale entry calls it a page of this row, and its values are read.

Exit codes: 0 it no longer does, 1 it still does.
"""

import sys

import torch
from torch.nn.attention.experimental._paged_attention import PagedAttention
from torch.nn.attention.flex_attention import create_block_mask, flex_attention, noop_mask

PAGE, PAGES, DIM = 16, 2, 16
ROWS = (torch.tensor([0]), torch.tensor([1]))


def attend(*, cleared_by_hand: bool) -> float:
    """What row 0 reads: the values that were written for it are 2, those of row 1 are 9."""
    paged = PagedAttention(PAGES, PAGE, 2, device="cpu")
    keys, values = torch.zeros(2, 1, 1, PAGES * PAGE, DIM)

    def write(row: int, length: int, value: float) -> None:
        paged.reserve(ROWS[row], torch.tensor([length]))
        paged.assign(
            ROWS[row],
            torch.arange(length)[None],
            torch.ones(1, 1, length, DIM),
            torch.full((1, 1, length, DIM), value),
            keys,
            values,
        )

    write(0, PAGES * PAGE, 1.0)
    paged.erase(ROWS[0])
    if cleared_by_hand:
        paged.physical_to_logical[0] = -1
    # Row 1 is to get the last page.
    order = (1, 0) if paged.empty_pages[-1] == PAGES - 1 else (0, 1)
    for row in order:
        write(row, PAGE, (2.0, 9.0)[row])
    # Made once for the longest sequence, as for a batch.
    mask = create_block_mask(noop_mask, 1, 1, 1, PAGES * PAGE, device="cpu", BLOCK_SIZE=(16, PAGE))
    query = torch.ones(1, 1, 1, DIM)
    physical = paged.convert_logical_block_mask(mask, ROWS[0])
    out = flex_attention(
        query, keys, values, block_mask=physical, score_mod=paged.get_score_mod(None)
    )
    return float(out.flatten()[0])


if __name__ == "__main__":
    as_it_is, cleared = attend(cleared_by_hand=False), attend(cleared_by_hand=True)
    print(f"torch {torch.__version__}: row 0 reads {as_it_is:g}, and {cleared:g} once the row is")
    print("cleared by hand; 2 is right")
    sys.exit(int(as_it_is != 2.0))
