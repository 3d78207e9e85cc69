"""What latent decode may cost in the machine code, 128 heads over records of 512 + 64: by baseline.

vLLM's Triton kernel, compiled the same way, has 125 instructions for each key and all of its warps
in bfloat16, and 172 with a float8 cache, for the 16 heads of a tile. A tile of ours may have more.
"""

import pytest

from kernels.compiled.baseline import built_in_path, read_baseline
from kernels.compiled.targets import TARGETS

MOST = {"latent bf16": 80, "latent bf16, cache e4m3": 172}
TRITON = "3.9.0"


@pytest.fixture(scope="module")
def targets():
    return read_baseline(built_in_path(TRITON)).targets


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_instructions_for_a_key_and_all_warps(targets, name, most):
    figures = targets["sm_90"].variants[name].launches[0]
    for_16_heads = 16 / figures.constexprs["BLOCK_H"]
    assert figures.loop.instructions_per_key * figures.num_warps * for_16_heads <= most
    assert figures.matrix.keys() == {"HMMA"}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills(targets, target):
    for name, variant in targets[target].variants.items():
        for figures in variant.launches if name.startswith("latent") else ():
            assert figures.spill_instructions == 0, name
            assert figures.fits, name


def test_a_record_is_loaded_once_16_bytes_at_a_time_and_asynchronously(targets):
    loop = targets["sm_90"].variants["latent bf16"].launches[0].loop
    assert loop.keys == 64
    threads, bytes_of_tile = 8 * 32, 64 * 576 * 2
    assert loop.memory["async copy 16 B"] * threads * 16 == bytes_of_tile
    assert set(loop.memory) == {"async copy 16 B", "load 4 B"}
    assert loop.memory["load 4 B"] == 1  # the block of the tile
