"""Wrong kernels for the compiler: copies of ours with one passage changed, each in a file.

`tests.helpers.mutants` imports its copies for the interpreter; these are compiled in a child, which
imports them itself. A plant is a folder with the copy and with a file `planted.py`, whose function
`attention` is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helpers.mutants import Mutant, write_package

ATTENTION = """
from {package}.attention import paged_attention
from {package}.launch import Tiles

def attention(batch):
{body}
"""


@dataclass(frozen=True)
class Plant:
    """What makes a kernel compile to something worse, and what has to be said of it."""

    name: str
    """An identifier."""
    words: tuple[str, ...]
    """Regular expressions; each has to match what one of the changes for the worse says."""
    body: str = "paged_attention(batch, num_splits=1)"
    """Of the host function."""
    file: str = ""
    edits: tuple[tuple[str, str], ...] = ()
    """As in `helpers.mutants.Mutant`; nothing in the kernels is changed without them."""

    def write(self, folder: Path) -> str:
        """Write the plant into a folder; returns the name of its host function."""
        home = folder / self.name
        home.mkdir()
        mutant = Mutant(self.name, self.file, self.edits) if self.edits else None
        package = write_package(mutant, home)
        lines = "\n".join(f"    {line}" for line in self.body.splitlines())
        planted = home / "planted.py"
        planted.write_text(ATTENTION.format(package=package, body=lines))
        return f"{planted}:attention"


# Slots that are 8 elements longer than their heads: their stride, 1,032, is not a multiple of 16.
ODD_CACHE = """\
import torch
blocks, size, heads, dim = batch.key_cache.shape
odd = torch.empty((blocks, 2, size, heads * dim + 8), dtype=batch.key_cache.dtype)
keys, values = (half[..., : heads * dim].unflatten(-1, (heads, dim)) for half in odd.unbind(1))
paged_attention(batch.replace(key_cache=keys, value_cache=values), num_splits=1)"""

PLANTS = (
    Plant(
        "tile_too_large",
        words=(r"^does not fit in shared memory: [\d,]+ of 232,448 bytes$",),
        body="paged_attention(batch, num_splits=1, tiles=Tiles(256, 16, num_stages=5))",
    ),
    Plant(
        "one_stage",
        words=(
            r"^the pipeline is gone: no asynchronous copies$",
            r"`keys` and `values` fell from 16-byte asynchronous copies to 16-byte loads",
        ),
        body="paged_attention(batch, num_splits=1, tiles=Tiles(64, 16, num_stages=1))",
    ),
    Plant(
        "misaligned_strides",
        words=(r"`keys` and `values` fell from 16-byte asynchronous copies to 2-byte loads",),
        body=ODD_CACHE,
    ),
    Plant(
        "float32_product",
        words=(r"^the product left the tensor cores: 32 HMMA became [\d,]{3,} FFMA$",),
        # A tile of 64 keys takes the compiler twice as long.
        body="paged_attention(batch, num_splits=1, tiles=Tiles(16, 16))",
        file="sweep",
        edits=(
            (
                'tl.dot(query, keys.to(query.dtype), input_precision="ieee")',
                'tl.dot(query.to(tl.float32), keys.to(tl.float32), input_precision="ieee")',
            ),
            (
                "tl.dot(weights.to(query.dtype), values.to(query.dtype), ",
                "tl.dot(weights, values.to(tl.float32), ",
            ),
        ),
    ),
    Plant(
        # Divided by what it was multiplied with: the compiler no longer knows that neighbours lie
        # side by side.
        "lost_wide_loads",
        words=(r"`keys` fell from 16-byte asynchronous copies to 2-byte loads",),
        file="sweep",
        edits=(
            (
                "key_at[None, :] + dim[:, None]",
                "key_at[None, :] + (dim * stride_slot_k // stride_slot_k)[:, None]",
            ),
        ),
    ),
    Plant(
        "register_cap",
        words=(r"^spills [\d,]+ instructions, [\d,]+ bytes at the register limit of 40;",),
        file="attention",
        edits=(('"num_warps": tiles.num_warps,', '"num_warps": tiles.num_warps, "maxnreg": 40,'),),
    ),
)
