"""What latent decode may cost in the machine code, 128 heads over records of 512 + 64: by baseline.

vLLM's Triton kernel, compiled the same way, has 125 instructions for each key and all of its warps
in bfloat16, and 172 with a float8 cache, for the 16 heads of a tile. Ours has 32 in bfloat16.
"""

import pytest

from kernels.compiled.baseline import built_in_path, read_baseline
from kernels.compiled.targets import TARGETS

CODEC = "latent bf16, codec fp8-ds-mla"
MOST = {"latent bf16": 80, "latent bf16, cache e4m3": 172, CODEC: 172}
TRITON = "3.9.0"


@pytest.fixture(scope="module")
def targets():
    return read_baseline(built_in_path(TRITON)).targets


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_instructions_for_a_key_and_all_warps(targets, name, most):
    figures = targets["sm_90"].variants[name].launches[0]
    assert figures.loop.instructions_per_key * figures.num_warps <= most
    assert figures.constexprs["BLOCK_H"] == (32 if name == "latent bf16" else 16)
    assert figures.matrix.keys() == {"HMMA"}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_spills(targets, target):
    for name, variant in targets[target].variants.items():
        for figures in variant.launches if name.startswith("latent") else ():
            assert figures.spill_instructions == 0, name
            assert figures.fits, name


@pytest.mark.parametrize(
    ("name", "bytes_16", "bytes_4"), [("latent bf16", 1152, 0), (CODEC, 640, 16)]
)
def test_a_record_is_loaded_once_asynchronously(targets, name, bytes_16, bytes_4):
    loop = targets["sm_90"].variants[name].launches[0].loop
    threads = 8 * 32
    assert loop.keys == 64
    assert loop.memory["async copy 16 B"] * threads * 16 == 64 * bytes_16
    assert loop.memory.get("async copy 4 B", 0) * threads * 4 == 64 * bytes_4
    # Besides, the block of the tile.
    assert loop.memory["load 4 B"] == 1
    assert set(loop.memory) <= {"async copy 16 B", "async copy 4 B", "load 4 B"}
