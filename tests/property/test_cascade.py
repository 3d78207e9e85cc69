"""The cascade, interpreted: against the truth, in what it touches, in the bytes that it moves."""

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from helpers.cascades import (
    cascade_traffic,
    grouped,
    groupings,
    launches,
    sharing_problems,
    with_rows,
)
from helpers.counted_bytes import moved
from helpers.mutants import as_on_a_gpu, in_a_large_pool, programs_in_reverse
from helpers.profiles import examples
from helpers.traffic import needed_bytes
from kernels import interpreter
from kernels.attention import paged_attention
from kernels.cascade import (
    cascade_attention,
    cascade_wherever_shared,
    paged_attention_with_cascade,
)
from kernels.interpreter.memory import (
    attention_roles,
    watch_attention,
    watch_memory,
)
from kernels.launch import Tiles
from kernels.shared_prefix import (
    CascadeLaunch,
    PrefixGroups,
    SharedPrefix,
    cascade_bytes,
    choose_cascade,
    find_prefix_groups,
)
from reference.attention.catalogue import LAWS, MEMORY, TRUTH
from reference.attention.checks import judge, run_check
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.truth import attend
from reference.attention.verdict import Status

CASCADE_LAUNCHES = 3
OTHER_BITS = "shared-prefix"
"""The law that the cascade breaks by design: it sums the keys of a shared prefix in another order.
Both ways are held to the truth here."""

ONE_GROUP = AttentionProblem.parse("8x(q1 k70) h2 g4 d32 b16 bf16 shared=64")


@examples(12)
@given(problem=sharing_problems(), data=st.data())
@example(AttentionProblem.parse("3x(q1 k0) 2x(q1 k17) g2 d16 b16 fp32 shared=16 sinks"), None)
def test_right_and_within_what_is_its_own_for_any_groups_tiles_and_splits(
    problem: AttentionProblem, data: st.DataObject | None
) -> None:
    batch = (placement := place(make_inputs(problem))).batch
    shared = [SharedPrefix((3, 4), 1)] if data is None else data.draw(groupings(problem))
    launch = choose_cascade(batch, grouped(problem, shared))
    launch = launch if data is None else data.draw(launches(problem))
    with as_on_a_gpu(), watch_memory(attention_roles(batch)) as memory:
        cascade_attention(batch, groups=grouped(problem, shared), launch=launch)
    assert [str(finding) for finding in memory.findings] == []
    assert memory.launches == CASCADE_LAUNCHES
    assert judge(problem, attend(make_inputs(problem)), placement) == []
    assert moved(memory) == cascade_traffic(batch, shared, launch)
    assert moved(memory, distinct=True) == needed_bytes(batch)


def test_a_prefix_is_loaded_once_for_a_group_and_not_once_for_a_member() -> None:
    batch = place(make_inputs(ONE_GROUP)).batch
    groups = grouped(ONE_GROUP, [SharedPrefix(tuple(range(8)), 4)])
    slot = 2 * 32 * 2  # two KV heads of 32 elements of two bytes
    launch = choose_cascade(batch, groups)
    # Eight members with four heads each: one tile of 32 rows, or two of 16.
    assert launch.prefix_tiles.block_m == 32
    for rows, times in ((32, 1), (16, 2)):
        with watch_memory(attention_roles(batch)) as memory:
            cascade_attention(batch, groups=groups, launch=with_rows(launch, rows))
        for name in ("key_cache", "value_cache"):
            assert memory.traffic[name].loaded == (times * 64 + 8 * 6) * slot


def test_partial_results_are_written_and_read_once() -> None:
    problem = AttentionProblem.parse("2x(q1 k70) (q1 k9) h2 g4 d32 b16 bf16 shared=64")
    batch = place(make_inputs(problem)).batch
    groups = grouped(problem, [SharedPrefix((0, 1), 4)])
    tiles = Tiles(block_n=16, block_m=16)
    launch = CascadeLaunch(tiles, tiles, prefix_splits=2, suffix_splits=1)
    with watch_memory(attention_roles(batch)) as memory:
        cascade_attention(batch, groups=groups, launch=launch)
    partials = memory.traffic["prefix_kernel.partial_out"]
    row = 8 * 32 * 4  # a token's eight heads of 32 float32
    assert partials.stored == partials.loaded == (2 * 2 + 3) * row
    by_model = cascade_bytes(batch, groups, launch, launch_bytes=0).partials
    assert by_model == (partials.stored + partials.loaded) * 33 // 32  # and the log-sum-exp


@examples(12)
@given(problem=sharing_problems())
def test_checks_pass_where_the_cascade_is_taken(problem: AttentionProblem) -> None:
    for check in (MEMORY, TRUTH):
        verdict = run_check(check, cascade_wherever_shared, problem, watch=watch_attention)
        assert verdict.status is Status.PASSED, verdict.findings
    laws = [law for law in LAWS if law.applies(problem) and law.name != OTHER_BITS]
    verdict = run_check(laws[problem.seed % len(laws)], cascade_wherever_shared, problem)
    assert verdict.status is Status.PASSED, (verdict.check, verdict.findings)


@examples(6)
@given(problem=sharing_problems())
def test_order_of_the_programs_changes_no_bit(problem: AttentionProblem) -> None:
    one, other = (place(make_inputs(problem)) for _ in range(2))
    with as_on_a_gpu():
        cascade_wherever_shared(one.batch)
        with programs_in_reverse():
            cascade_wherever_shared(other.batch)
    assert torch.equal(one.batch.out, other.batch.out)
    assert one.batch.lse is not None
    assert other.batch.lse is not None
    assert torch.equal(one.batch.lse, other.batch.lse)


def test_a_cache_of_more_than_two_to_the_31_elements() -> None:
    problem = AttentionProblem.parse("2x(q1 k70) (q5 k60) g2 d64 b16 bf16 kv=e5m2 shared=48")
    placement = place(make_inputs(problem))
    groups = grouped(problem, [SharedPrefix((0, 1, 2), 3)])
    with interpreter.overflow_checks():
        in_a_large_pool(lambda batch: cascade_attention(batch, groups=groups))(placement.batch)
    assert judge(problem, attend(make_inputs(problem)), placement) == []


# Which path


def launched(problem: AttentionProblem, kernel=cascade_wherever_shared) -> int:
    batch = place(make_inputs(problem)).batch
    with watch_memory(attention_roles(batch)) as memory:
        kernel(batch)
    return memory.launches


@examples(6)
@given(problem=sharing_problems())
def test_the_cascade_is_taken_where_two_sequences_share_a_block(problem: AttentionProblem) -> None:
    assert launched(problem) == CASCADE_LAUNCHES
    assert launched(problem.replace(window=7, causal=True)) < CASCADE_LAUNCHES
    assert launched(problem.replace(shared_prefix=0)) < CASCADE_LAUNCHES


def test_problems_as_every_kernel_is_checked_with_take_the_cascade_too() -> None:
    # About one in fourteen does; of those with the lengths of a stream, one in seven.
    shared: list[AttentionProblem] = []

    @settings(max_examples=250, derandomize=True, database=None, phases=[Phase.generate])
    @given(problems())
    def collect(problem: AttentionProblem) -> None:
        if problem.shares_blocks and problem.window is None:
            shared.append(problem)

    collect()
    shared.sort(key=lambda problem: problem.num_tokens * problem.max_seq_len)
    small = shared[: len(shared) // 2]  # large ones take it as often, and take seconds
    assert sum(launched(problem) == CASCADE_LAUNCHES for problem in small) >= 0.015 * 250


def test_the_cascade_is_chosen_when_it_pays() -> None:
    # Two KV heads, 64 elements of two bytes, keys and values: 512 bytes a token.
    few = AttentionProblem.parse("4x(q1 k40) h2 g2 d64 b8 bf16 shared=8")
    many = AttentionProblem.parse("4x(q1 k400) h2 g2 d64 b16 bf16 shared=384")
    for problem, blocks, pays in ((few, 1, False), (many, 24, True)):
        batch = place(make_inputs(problem)).batch
        groups = grouped(problem, [SharedPrefix((0, 1, 2, 3), blocks)])
        model = cascade_bytes(
            batch, groups, launch := choose_cascade(batch, groups), launch_bytes=0
        )
        assert model.saved == 3 * problem.block_size * blocks * 512
        assert model.partials == 2 * 4 * 4 * launch.num_parts * 65 * 4
        assert model.pays == pays
        assert (launched(problem, paged_attention_with_cascade) == CASCADE_LAUNCHES) == pays
        assert not cascade_bytes(batch, groups, launch, launch_bytes=2**20).pays


def test_plain_attention_elsewhere_to_the_bit() -> None:
    problem = AttentionProblem.parse("3x(q1 k40) h2 g2 d64 b16 bf16 window=9 shared=32")
    one, other = (place(make_inputs(problem)).batch for _ in range(2))
    paged_attention_with_cascade(one)
    paged_attention(other)
    assert torch.equal(one.out, other.out)


# Groups


@examples(100)
@given(
    table=st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=1, max_size=6),
    data=st.data(),
)
def test_groups_share_their_blocks_and_the_first_one_saves_the_most(
    table: list[list[int]], data: st.DataObject
) -> None:
    size = 4
    query_lens = [data.draw(st.integers(0, 3)) for _ in table]
    seq_lens = [query_len + data.draw(st.integers(0, 5 * size)) for query_len in query_lens]
    shared = find_prefix_groups(
        torch.tensor(table, dtype=torch.int32),
        seq_lens=seq_lens,
        query_lens=query_lens,
        block_size=size,
    )
    usable = [
        (seq_len - query_len) // size if query_len else 0
        for seq_len, query_len in zip(seq_lens, query_lens, strict=True)
    ]
    members = [member for group in shared for member in group.members]
    assert len(members) == len(set(members))
    for group in shared:
        assert len({tuple(table[member][: group.num_blocks]) for member in group.members}) == 1
        assert min(usable[member] for member in group.members) >= group.num_blocks >= 1
    holders: dict[tuple[int, ...], int] = {}
    for row, blocks in zip(table, usable, strict=True):
        for depth in range(1, blocks + 1):
            holders[tuple(row[:depth])] = holders.get(tuple(row[:depth]), 0) + 1
    most = max(((count - 1) * len(blocks) for blocks, count in holders.items()), default=0)
    saved = [(len(group.members) - 1) * group.num_blocks for group in shared]
    assert (max(saved) if saved else 0) == (saved[0] if saved else 0) == most
    left = [row for row in range(len(table)) if row not in members and usable[row]]
    assert len({table[row][0] for row in left}) == len(left)  # nothing that is left shares a block


def test_rows_on_both_sides_of_a_group_are_a_group_too() -> None:
    table = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.int32)
    shared = find_prefix_groups(
        table, seq_lens=[9, 5, 13, 13], query_lens=[1, 1, 1, 1], block_size=4
    )
    assert [(group.members, group.num_blocks) for group in shared] == [((2, 3), 3), ((0, 1), 1)]


def test_what_is_no_group_is_refused() -> None:
    lengths = {"seq_lens": [40, 40, 17], "query_lens": [1, 1, 1], "block_size": 16}
    wrong = {
        "no group": [],
        "two sequences or more": [SharedPrefix((0,), 1)],
        "one block or more": [SharedPrefix((0, 1), 0)],
        "sequence 3 is not one of 3": [SharedPrefix((0, 3), 1)],
        "sequence 1 is in a group already": [SharedPrefix((0, 1), 1), SharedPrefix((1, 2), 1)],
        "a prefix of 32 reaches into": [SharedPrefix((0, 2), 2)],
    }
    for message, shared in wrong.items():
        with pytest.raises(ValueError, match=message):
            PrefixGroups.of(shared, **lengths)
    with pytest.raises(ValueError, match="give the host's copy"):
        find_prefix_groups(torch.zeros((3, 2), device="meta"), **lengths)


def test_what_the_cascade_cannot_do_is_refused() -> None:
    groups = grouped(ONE_GROUP, [SharedPrefix((0, 1), 4)])
    batch = place(make_inputs(ONE_GROUP)).batch
    one = torch.ones(len(batch.seq_lens), dtype=torch.bool)
    for word, change in (
        ("window=5", {"window": 5}),
        ("chunk=5", {"chunk": 5}),
        ("query_mask", {"query_mask": one.unsqueeze(1)}),
        ("causal_of", {"causal_of": one}),
        ("values of 8 elements", {"out": batch.out[..., :8]}),
    ):
        with pytest.raises(ValueError, match=f"{word}: a cascade has none"):
            cascade_attention(batch.replace(**change), groups=groups)
    with pytest.raises(ValueError, match="groups of 8 sequences for a batch of 3"):
        cascade_attention(batch.replace(seq_lens=batch.seq_lens[:3]), groups=groups)
    elsewhere = replace(groups, prefix_lens=groups.prefix_lens.to("meta"))
    with pytest.raises(ValueError, match="groups on meta, the batch on cpu"):
        cascade_attention(batch, groups=elsewhere)
    with pytest.raises(ValueError, match="must be int32"):
        cascade_attention(batch.replace(block_table=batch.block_table.long()), groups=groups)
    low = with_rows(choose_cascade(batch, groups), 2)
    with pytest.raises(ValueError, match="block_m=2: a tile holds the 4 query heads"):
        cascade_attention(batch, groups=groups, launch=low)
