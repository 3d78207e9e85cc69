"""On drawn problems: our kernels touch what is theirs and move the bytes of the closed form."""

from hypothesis import example, given
from hypothesis import strategies as st

from helpers.mutants import CacheCall, cache_calls
from helpers.profiles import examples
from helpers.watched import WatchedOperations
from kernels import cache_ops
from kernels.attention import paged_attention
from kernels.interpreter.memory import MemoryReport, attention_roles, watch_memory
from kernels.launch import Tiles, choose_launch
from kernels.traffic import AttentionBytes, launched_bytes, needed_bytes
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem, torch_dtype
from reference.attention.strategies import problems

TILES = st.sampled_from((None, 16, 32, 64))


def loaded(memory: MemoryReport, *, distinct: bool) -> AttentionBytes:
    """What was counted of the four tensors that the closed forms speak of."""
    kind, counted = "_distinct" if distinct else "", memory.traffic

    def of(name: str, what: str) -> int:
        return getattr(counted[name], what + kind) if name in counted else 0

    return AttentionBytes(
        query=of("query", "loaded"),
        keys=of("key_cache", "loaded"),
        values=of("value_cache", "loaded"),
        out=of("out", "stored"),
    )


@examples(40)
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
        assert loaded(memory, distinct=False) == launched_bytes(batch, launch)
        assert loaded(memory, distinct=True) == needed_bytes(batch)


@examples(20)
@given(call=cache_calls())
def test_cache_writes_touch_the_slots_of_their_tokens_once(call: CacheCall) -> None:
    watched = WatchedOperations(cache_ops)
    call.run("write", watched, call.pool(call.storage()))
    assert watched.findings == []
    elements = sum(slot >= 0 for slot in call.slots) * call.heads * call.head_dim
    for name in ("key_cache", "value_cache"):
        assert watched.bytes_of(name, "stored") == elements * call.cache_dtype.itemsize
        assert watched.bytes_of(name, "stored_distinct") == elements * call.cache_dtype.itemsize
    new_bytes = elements * torch_dtype(call.dtype).itemsize
    assert watched.bytes_of("new keys", "loaded") == new_bytes
    assert watched.bytes_of("new values", "loaded") == new_bytes


@examples(20)
@given(call=cache_calls())
def test_block_copies_read_and_write_each_block_once(call: CacheCall) -> None:
    watched = WatchedOperations(cache_ops)
    call.run("copy", watched, call.pool(call.storage()))
    assert watched.findings == []
    slot = call.heads * call.head_dim * call.cache_dtype.itemsize
    size = len(call.pairs) * call.block_size * slot
    for name in ("key_cache", "value_cache"):
        for what in ("loaded", "stored", "stored_distinct"):
            assert watched.bytes_of(name, what) == size
