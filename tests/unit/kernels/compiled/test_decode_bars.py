"""What decode may cost in the machine code of sm_90: the main loop, per 64 keys and one warp.

Decode waits for memory. An H100 moves 14.5 bytes for each multiprocessor and clock (3.35 TB/s, 132
multiprocessors, 1.755 GHz), so a key and value of 128 bfloat16 take 35 clocks, in float8 half of
that; a multiprocessor starts four instructions a clock. The loop has to stay well below, or a
float8 cache would not be read at twice the rate.
"""

import pytest

from bench.compile.run import ask, start
from bench.machine.facts import version_of
from kernels.compiled.targets import TARGETS
from kernels.compiled.variants import VARIANTS

SCHEDULERS = 4
BYTES_A_CLOCK = 14.5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        version_of("triton") < "3.9",
        reason="the bars are those of Triton 3.9; 3.6 gathers blocks of 16 in 583 instructions",
    ),
]


@pytest.fixture(scope="module")
def decode_of(tmp_path_factory):
    """Figures of the decode kernel of a variant, compiled in the one child of this module."""
    variants = {variant.name: variant for variant in VARIANTS}
    with start(TARGETS["sm_90"], cache=tmp_path_factory.mktemp("cache")) as child:
        yield lambda name: ask(child, variants[name]).launches[0]


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("decode bf16, ragged", 560),
        ("decode bf16, ragged, block 128", 340),
        ("decode bf16, ragged, cache e4m3", 560),
    ],
)
def test_the_main_loop_and_no_spills(name, most, decode_of):
    figures = decode_of(name)
    assert figures.spill_instructions == 0
    assert figures.loop.instructions * 64 / figures.loop.keys <= most
    assert figures.matrix.keys() == {"HMMA"}


def test_a_float8_cache_is_read_in_half_the_time(decode_of):
    figures = decode_of("decode bf16, ragged, cache e4m3")
    slots = figures.loop.instructions * figures.num_warps / SCHEDULERS / figures.loop.keys
    memory = 2 * 128 / BYTES_A_CLOCK
    assert slots < 0.5 * memory
    # Two numbers at once, and none by way of float32: an eighth of an instruction a byte.
    assert figures.loop.classes["conversion"] <= 1.1 * figures.loop.keys
    assert figures.warps / figures.max_warps > 0.15
