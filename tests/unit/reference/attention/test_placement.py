"""A problem in pages: nothing lies where a lucky kernel would look, and damage is noticed."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor

from helpers.profiles import examples
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.placement import (
    CANARY,
    GUARD_BLOCKS,
    GUARD_ROWS,
    LARGE,
    Placement,
    Poison,
    place,
)
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems

DTYPES = ("fp32", "fp16", "bf16", "bf16 kv=e4m3", "fp16 kv=e5m2")

# Keys and values side by side in one storage, or apart: by turns of the seed.
each_layout = pytest.mark.parametrize("seed", [0, 1], ids=["together", "apart"])


def make(spec: str) -> Inputs:
    return make_inputs(AttentionProblem.parse(spec))


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def gathered(placement: Placement, cache: Tensor, problem: AttentionProblem) -> Tensor:
    """The tokens of every sequence, read one by one through the block table."""
    tokens = []
    for sequence, request in enumerate(problem.requests):
        for position in range(request.seq_len):
            column, offset = divmod(position, problem.block_size)
            block = int(placement.batch.block_table[sequence, column])
            tokens.append(as_bytes(cache[block, offset]))
    return torch.stack(tokens) if tokens else torch.empty(0, dtype=torch.uint8)


def columns_used(problem: AttentionProblem) -> list[int]:
    return [-(-request.seq_len // problem.block_size) for request in problem.requests]


def unowned(placement: Placement, problem: AttentionProblem) -> Tensor:
    """[num_slots] bool, from the block table alone and not from `owned_slots`."""
    free = torch.ones(placement.num_blocks, problem.block_size, dtype=torch.bool)
    for sequence, request in enumerate(problem.requests):
        for position in range(request.seq_len):
            column, offset = divmod(position, problem.block_size)
            free[int(placement.batch.block_table[sequence, column]), offset] = False
    return free.flatten()


def slots_of(cache: Tensor) -> Tensor:
    """[num_slots, heads * head_dim] float32."""
    return cache.float().flatten(2).flatten(0, 1)


@examples(50)
@given(problems(max_len=90))
def test_gathering_through_the_table_gives_the_contiguous_tensors_back(
    problem: AttentionProblem,
) -> None:
    inputs = make_inputs(problem)
    placement = place(inputs)
    batch = placement.batch
    for cache, contiguous in ((batch.key_cache, inputs.keys), (batch.value_cache, inputs.values)):
        read = gathered(placement, cache, problem)
        assert torch.equal(read.flatten(), as_bytes(contiguous).flatten())
        # The same by slot, as a kernel addresses it.
        by_slot = as_bytes(cache).flatten(0, 1)[placement.owned_slots]
        assert torch.equal(by_slot, as_bytes(contiguous))


@examples(50)
@given(problems(max_len=90))
def test_every_slot_without_an_owner_is_nan(problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    placement = place(inputs)
    free = unowned(placement, problem)
    owned = torch.ones_like(free)
    owned[placement.owned_slots] = False
    assert torch.equal(free, owned)
    assert int(free.sum()) >= 3 * problem.block_size
    for cache in (placement.batch.key_cache, placement.batch.value_cache):
        nan = slots_of(cache).isnan()
        assert bool(nan[free].all())
        assert not bool(nan[~free].any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_poison_is_finite_and_larger_than_any_input(dtype: str) -> None:
    inputs = make(f"(q1 k21) (q3 k9) d16 b4 {dtype}")
    placement = place(inputs, poison="large")
    free = unowned(placement, inputs.problem)
    for cache in (placement.batch.key_cache, placement.batch.value_cache):
        slots = slots_of(cache)
        assert bool((slots[free] == min(LARGE, torch.finfo(cache.dtype).max)).all())
        assert float(slots[~free].abs().max()) < 8


@pytest.mark.parametrize("poison", ["nan", "large"])
@each_layout
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_index_outside_the_pool_lands_on_poison_within_the_allocation(
    dtype: str, seed: int, poison: Poison
) -> None:
    inputs = make(f"(q1 k21) (q3 k9) h2 d16 b4 {dtype}")
    placement = place(inputs, seed=seed, poison=poison, spare_columns=40)
    batch = placement.batch
    spare = batch.block_table[:, max(columns_used(inputs.problem)) :].unique().tolist()
    assert spare == [-2, -1, placement.num_blocks, placement.num_blocks + 1]
    for cache in (batch.key_cache, batch.value_cache):
        for block in spare:
            beyond = guard(cache, block).float()
            expected = min(LARGE, torch.finfo(cache.dtype).max)
            assert bool(beyond.isnan().all() if poison == "nan" else (beyond == expected).all())


@examples(50)
@given(problems(max_len=90))
def test_columns_past_a_sequence_point_outside_the_pool(problem: AttentionProblem) -> None:
    placement = place(make_inputs(problem))
    table = placement.batch.block_table
    assert table.dtype == torch.int32
    used = columns_used(problem)
    spare = 2 if problem.spare is None else problem.spare
    width = max(max(used) + spare, int(problem.spare is not None))
    assert table.shape == (len(problem.requests), width)
    for row, count in zip(table.tolist(), used, strict=True):
        assert all(0 <= block < placement.num_blocks for block in row[:count])
        assert not any(0 <= block < placement.num_blocks for block in row[count:])


@examples(50)
@given(problems(max_len=90))
def test_outputs_start_as_nan_between_canaries(problem: AttentionProblem) -> None:
    placement = place(make_inputs(problem))
    batch = placement.batch
    assert batch.out.shape == batch.query.shape
    assert batch.out.dtype == batch.query.dtype
    assert batch.lse is not None
    assert batch.lse.shape == batch.query.shape[:2]
    assert batch.lse.dtype == torch.float32
    for guarded, inner in ((placement.guarded_out, batch.out), (placement.guarded_lse, batch.lse)):
        assert bool(inner.isnan().all())
        assert bool((guarded[:GUARD_ROWS] == CANARY).all())
        assert bool((guarded[-GUARD_ROWS:] == CANARY).all())
        assert bool((guarded[:, problem.num_q_heads :] == CANARY).all())
        assert guarded.shape[1] > problem.num_q_heads
        assert guarded.shape[0] == inner.shape[0] + 2 * GUARD_ROWS
    assert placement.overwritten() == []


@examples(50)
@given(problems(max_len=90))
def test_the_call_says_what_the_problem_says(problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    batch = place(inputs).batch
    assert batch.seq_lens.tolist() == [request.seq_len for request in problem.requests]
    assert batch.query_start_loc.tolist() == problem.query_starts
    assert batch.seq_lens.dtype == batch.query_start_loc.dtype == torch.int32
    assert (batch.max_query_len, batch.max_seq_len) == (problem.max_query_len, problem.max_seq_len)
    assert torch.equal(batch.query, inputs.query)
    assert batch.block_size == problem.block_size
    assert batch.num_kv_heads == problem.num_kv_heads
    assert batch.group_size == problem.group_size
    assert batch.scale == problem.softmax_scale
    assert (batch.causal, batch.window, batch.softcap) == (
        problem.causal,
        problem.window,
        problem.softcap,
    )
    assert (batch.k_scale, batch.v_scale) == (problem.k_scale, problem.v_scale)
    for mine, theirs in ((batch.alibi_slopes, inputs.alibi_slopes), (batch.sinks, inputs.sinks)):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


def test_no_two_tensors_of_a_call_have_the_same_strides() -> None:
    for seed in (0, 1):
        batch = place(make("(q2 k9) (q1 k5) h2 g2 d16 b4"), seed=seed).batch
        assert batch.lse is not None
        rows = [tensor.stride(0) for tensor in (batch.query, batch.out, batch.lse)]
        assert len(set(rows)) == 3
        assert batch.query.stride(0) > 4 * 16
        assert batch.block_table.stride(0) > batch.block_table.shape[1]
        for tensor in (batch.query, batch.out, batch.key_cache, batch.value_cache):
            assert tensor.stride(-1) == 1


def test_keys_and_values_lie_together_or_apart() -> None:
    inputs = make("(q2 k9) (q1 k5) h2 d16 b4")
    together, apart = (place(inputs, seed=seed).batch for seed in (0, 1))
    blocks = [cache.stride(0) for cache in (together.key_cache, together.value_cache)]
    assert blocks == [2 * 4 * 2 * 16] * 2
    assert together.value_cache.storage_offset() - together.key_cache.storage_offset() == 4 * 2 * 16
    assert apart.key_cache.stride()[:2] != apart.value_cache.stride()[:2]
    storages = {
        cache.untyped_storage().data_ptr() for cache in (apart.key_cache, apart.value_cache)
    }
    assert len(storages) == 2


def test_pages_are_shuffled() -> None:
    inputs = make("(q1 k400) (q1 k300) d16 b4")
    table = place(inputs).batch.block_table
    blocks = table[0, :100].long()
    steps = blocks[1:] - blocks[:-1]
    assert int((steps == 1).sum()) < 10
    assert sorted(blocks.tolist()) != blocks.tolist()
    # Pages of the two sequences lie among each other.
    assert int(blocks.max()) > int(table[1, :75].min())
    assert int(blocks.min()) < int(table[1, :75].max())


def test_the_problem_seeds_the_order_of_the_pages_and_a_seed_given_overrides_it() -> None:
    inputs = make("(q1 k100) d16 b4 seed=5")
    table = place(inputs).batch.block_table
    assert torch.equal(place(inputs).batch.block_table, table)
    assert torch.equal(place(inputs, seed=5).batch.block_table, table)
    assert not torch.equal(place(inputs, seed=6).batch.block_table, table)


@examples(50)
@given(problems(max_len=60))
def test_a_placement_seed_relabels_and_changes_nothing_else(problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    one, other = place(inputs, seed=1), place(inputs, seed=2, spare_blocks=7)
    assert other.num_blocks == one.num_blocks + 4
    names = ("query", "seq_lens", "query_start_loc", "alibi_slopes", "sinks")
    for name in names:
        mine, theirs = getattr(one.batch, name), getattr(other.batch, name)
        assert mine is None or torch.equal(mine, theirs)
    for name in ("key_cache", "value_cache"):
        mine = gathered(one, getattr(one.batch, name), problem)
        assert torch.equal(mine, gathered(other, getattr(other.batch, name), problem))
    # Who shares what with whom is the same in both.
    for a, b in ((one, other), (other, one)):
        names_of = dict(zip(a.owned_slots.tolist(), b.owned_slots.tolist(), strict=True))
        assert [names_of[slot] for slot in a.owned_slots.tolist()] == b.owned_slots.tolist()


def test_spare_blocks_and_columns_are_as_many_as_asked_for() -> None:
    placement = place(make("(q1 k9) (q1 k2) d16 b4"), spare_blocks=0, spare_columns=0)
    assert placement.num_blocks == 4
    assert placement.batch.block_table.shape == (2, 3)
    assert placement.batch.key_cache.shape == (4, 4, 1, 16)
    table = placement.batch.block_table
    assert sorted([*table[0].tolist(), int(table[1, 0])]) == [0, 1, 2, 3]


def test_whole_blocks_of_a_shared_prefix_are_stored_once_and_partial_ones_are_not() -> None:
    # 10 shared tokens in blocks of 4: two whole blocks, and half of a third that each must own.
    placement = place(make("(q1 k12) (q1 k10) (q1 k11) d16 b4 shared=10"))
    table = placement.batch.block_table
    assert len(table[:, :2].unique()) == 2
    assert len(table[:, 2].unique()) == 3
    assert placement.num_blocks == 2 + 3 + 3


def test_a_sequence_shares_only_blocks_that_it_fills() -> None:
    # The second holds 7 of the 8 shared tokens: its last block will be written to.
    placement = place(make("(q1 k9) (q1 k7) (q1 k8) d16 b4 shared=8"))
    table = placement.batch.block_table
    assert len(table[:, 0].unique()) == 1
    assert int(table[0, 1]) == int(table[2, 1]) != int(table[1, 1])
    assert placement.num_blocks == 2 + 1 + 1 + 3


def test_private_copies_share_nothing_and_hold_the_same() -> None:
    inputs = make("3x(q1 k12) d16 b4 shared=10")
    shared, private = place(inputs), place(inputs, share_prefix=False)
    assert len(private.owned_slots.unique()) == 36
    assert len(shared.owned_slots.unique()) == 36 - 2 * 8
    for name in ("key_cache", "value_cache"):
        assert torch.equal(
            gathered(shared, getattr(shared.batch, name), inputs.problem),
            gathered(private, getattr(private.batch, name), inputs.problem),
        )


@examples(50)
@given(problems(max_len=60))
def test_no_slot_has_two_owners_but_in_the_shared_prefix(problem: AttentionProblem) -> None:
    placement = place(make_inputs(problem))
    slots = placement.owned_slots.split([request.seq_len for request in problem.requests])
    size = problem.block_size
    shared = problem.shared_prefix // size * size
    tails = torch.cat([own[min(shared, len(own) // size * size) :] for own in slots])
    assert len(tails.unique()) == len(tails)


def test_a_prefix_that_no_sequence_reaches_takes_no_memory() -> None:
    placement = place(make("2x(q1 k5) d16 b4 shared=400"))
    assert placement.num_blocks == 1 + 2 + 3


def test_a_batch_of_empty_sequences_has_only_poison() -> None:
    placement = place(make("(q1 k0) (q0 k0) d16 b4"))
    assert placement.num_blocks == 3
    assert bool(placement.batch.key_cache.isnan().all())
    assert not set(placement.batch.block_table.flatten().tolist()) & {0, 1, 2}


def test_reset_empties_the_outputs_and_keeps_the_canaries() -> None:
    placement = place(make("(q3 k9) d16 b4"))
    placement.batch.out.fill_(1)
    assert placement.batch.lse is not None
    placement.batch.lse.fill_(1)
    placement.guarded_lse[0, 0] = 1
    placement.reset()
    assert bool(placement.batch.out.isnan().all())
    assert bool(placement.batch.lse.isnan().all())
    # What was damaged stays damaged.
    assert placement.overwritten() == ["wrote to the rows before `lse`"]


def test_writing_the_outputs_is_no_damage() -> None:
    placement = place(make("(q3 k9) (q1 k0) g2 d16 b4"))
    placement.batch.out.normal_()
    assert placement.batch.lse is not None
    placement.batch.lse.fill_(-torch.inf)
    assert placement.overwritten() == []


def test_without_lse_there_is_none_to_fill_and_all_of_its_memory_is_guarded() -> None:
    placement = place(make("(q3 k9) g2 d16 b4"), with_lse=False)
    assert placement.batch.lse is None
    assert bool((placement.guarded_lse == CANARY).all())
    placement.batch.out.zero_()
    placement.reset()
    assert bool(placement.batch.out.isnan().all())
    assert placement.overwritten() == []


def poke(tensor: Tensor, *index: int) -> None:
    """Flip one bit."""
    element = tensor[index].reshape(1)
    element.view(torch.uint8)[0] ^= 1


def guard(cache: Tensor, block: int) -> Tensor:
    """A block outside the pool. Torch refuses a view beyond the allocation."""
    start = cache.storage_offset() + block * cache.stride(0)
    return cache.as_strided(cache.shape[1:], cache.stride()[1:], start)


def owned_slot(placement: Placement) -> tuple[int, int]:
    block, offset = divmod(int(placement.owned_slots[4]), placement.batch.block_size)
    return block, offset


def free_slot(placement: Placement) -> tuple[int, int]:
    free = set(range(placement.num_blocks * placement.batch.block_size))
    slot = sorted(free - set(placement.owned_slots.tolist()))[1]
    return divmod(slot, placement.batch.block_size)


CACHE_DAMAGE = ["wrote to the key or value cache"]
# What a kernel does, and what is said of it.
DAMAGE: dict[str, tuple[Callable[[Placement], None], list[str]]] = {
    "the row before out": (
        lambda p: poke(p.guarded_out, GUARD_ROWS - 1, 1, 15),
        ["wrote to the rows before `out`"],
    ),
    "two rows before out": (
        lambda p: poke(p.guarded_out, 0, 0, 0),
        ["wrote to the rows before `out`"],
    ),
    "the row after out": (
        lambda p: poke(p.guarded_out, -GUARD_ROWS, 0, 0),
        ["wrote to the rows after `out`"],
    ),
    "nan after out": (
        lambda p: p.guarded_out[-1, 1].fill_(torch.nan),  # type: ignore[dict-item,return-value]
        ["wrote to the rows after `out`"],
    ),
    "past the heads of a row of out": (
        lambda p: poke(p.guarded_out, GUARD_ROWS, p.batch.out.shape[1], 0),
        ["wrote between the rows of `out`"],
    ),
    "past the heads of a row of lse": (
        lambda p: poke(p.guarded_lse, GUARD_ROWS + 1, -1),
        ["wrote between the rows of `lse`"],
    ),
    "the row before lse": (
        lambda p: poke(p.guarded_lse, GUARD_ROWS - 1, 1),
        ["wrote to the rows before `lse`"],
    ),
    "the row after lse": (
        lambda p: poke(p.guarded_lse, -GUARD_ROWS, 0),
        ["wrote to the rows after `lse`"],
    ),
    "a key": (lambda p: poke(p.batch.key_cache, *owned_slot(p), 1, 7), CACHE_DAMAGE),
    "a value": (lambda p: poke(p.batch.value_cache, *owned_slot(p), 0, 0), CACHE_DAMAGE),
    "a free key slot": (lambda p: poke(p.batch.key_cache, *free_slot(p), 0, 0), CACHE_DAMAGE),
    "a free value slot": (lambda p: poke(p.batch.value_cache, *free_slot(p), 0, 0), CACHE_DAMAGE),
    "the block before the pool": (
        lambda p: poke(guard(p.batch.key_cache, -1), 0, 0, 0),
        CACHE_DAMAGE,
    ),
    "the block after the pool": (
        lambda p: poke(guard(p.batch.value_cache, p.num_blocks), 3, 1, 15),
        CACHE_DAMAGE,
    ),
    "the last guard block": (
        lambda p: poke(guard(p.batch.value_cache, p.num_blocks + GUARD_BLOCKS - 1), 3, 1, 15),
        CACHE_DAMAGE,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@each_layout
@pytest.mark.parametrize(("write", "finding"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(
    write: Callable[[Placement], None], finding: list[str], seed: int, dtype: str
) -> None:
    placement = place(make(f"(q2 k9) (q1 k5) h2 d16 b4 {dtype}"), seed=seed)
    write(placement)
    assert placement.overwritten() == finding


def test_damage_beside_the_heads_of_the_values_is_noticed() -> None:
    placement = place(make("(q2 k9) (q1 k5) h2 d16 b4"), seed=1)
    values = placement.batch.value_cache
    beside = values.as_strided((1,), (1,), values.storage_offset() + 2 * 16)
    assert bool(beside.isnan())
    beside.fill_(0)
    assert placement.overwritten() == CACHE_DAMAGE


def test_every_kind_of_damage_is_told_apart() -> None:
    placement = place(make("(q2 k9) (q1 k5) d16 b4"))
    placement.guarded_out.zero_()
    placement.guarded_lse.zero_()
    placement.batch.key_cache.zero_()
    assert placement.overwritten() == [
        "wrote to the rows before `out`",
        "wrote to the rows after `out`",
        "wrote between the rows of `out`",
        "wrote to the rows before `lse`",
        "wrote to the rows after `lse`",
        "wrote between the rows of `lse`",
        "wrote to the key or value cache",
    ]


INPUT_TENSORS = ("query", "block_table", "seq_lens", "query_start_loc", "alibi_slopes", "sinks")


@pytest.mark.parametrize("name", INPUT_TENSORS)
def test_damage_to_an_input_is_noticed(name: str) -> None:
    placement = place(make("(q2 k9) (q1 k5) h2 d16 b4 alibi sinks"))
    getattr(placement.batch, name).zero_()
    assert len(placement.overwritten()) == 1
    assert name in placement.overwritten()[0]


@pytest.mark.parametrize("name", INPUT_TENSORS)
def test_a_call_cannot_change_the_inputs_that_the_truth_is_computed_from(name: str) -> None:
    inputs = make("(q2 k9) (q1 k5) h2 d16 b4 alibi sinks")
    again = make("(q2 k9) (q1 k5) h2 d16 b4 alibi sinks")
    getattr(place(inputs).batch, name).zero_()
    for field in ("query", "keys", "values", "alibi_slopes", "sinks"):
        assert torch.equal(getattr(inputs, field), getattr(again, field))
