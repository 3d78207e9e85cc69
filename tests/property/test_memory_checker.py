"""On drawn problems: our kernels touch what is theirs and move the bytes of the closed form."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.counted_bytes import moved, of_watched
from helpers.mutants import CacheCall, cache_calls
from helpers.profiles import examples
from helpers.traffic import launched_bytes, needed_bytes
from helpers.watched import WatchedOperations
from kernels import cache_ops
from kernels.attention import paged_attention
from kernels.interpreter.memory import attention_roles, watch_memory
from kernels.launch import Tiles, choose_launch
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems

TILES = st.sampled_from((None, 16, 32, 64))


@examples(20)
@given(problem=problems(max_len=150), block_n=TILES, num_splits=st.sampled_from((None, 1, 2, 5)))
@example(AttentionProblem.parse("3x(q1 k40) d16 b16 fp32 shared=32"), None, None)
@example(AttentionProblem.parse("(q20 k60) (q3 k48) h2 d32 b16 bf16 shared=48 window=9"), 16, None)
def test_kernels_touch_what_is_theirs_and_no_byte_more_than_the_closed_form(
    problem: AttentionProblem, block_n: int | None, num_splits: int | None
) -> None:
    batch = place(make_inputs(problem)).batch
    launch = choose_launch(batch, num_splits=num_splits)
    if block_n is not None:
        tiles = Tiles(block_n=block_n, block_m=max(16, launch.tiles.block_m // 2))
        tiles = tiles if tiles.block_m >= batch.group_size else launch.tiles
        launch = choose_launch(batch, num_splits=num_splits, tiles=tiles)
    with watch_memory(attention_roles(batch)) as memory:
        paged_attention(batch, num_splits=num_splits, tiles=launch.tiles)
    assert [str(finding) for finding in memory.findings] == []
    if problem.num_tokens:
        assert moved(memory) == launched_bytes(batch, launch)
        assert moved(memory, distinct=True) == needed_bytes(batch)


@pytest.mark.parametrize("operation", ["write", "copy"])
@examples(20)
@given(call=cache_calls())
def test_a_cache_operation_loads_and_stores_what_is_its_own_once(
    operation: str, call: CacheCall
) -> None:
    watched = WatchedOperations(cache_ops)
    call.run(operation, watched, call.pool(call.storage()))
    assert watched.findings == []
    assert of_watched(watched, operation, call) == []
