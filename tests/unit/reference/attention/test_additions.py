"""Latent caches, chosen keys, masks among a step's tokens: drawn, true, and laws that can fail."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from bench.check.minimise import minimise
from bench.search.drawing import draw_each, only_our_constants
from paged.attention import paged_attention
from paged.latent import global_slots, paged_latent_attention
from reference.attention.catalogue import CHECKS, TRUTH
from reference.attention.checks import run_check
from reference.attention.chosen import choose
from reference.attention.contract import Capabilities, PagedBatch, capabilities_of, declares
from reference.attention.features import features_of
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem, InvalidProblem
from reference.attention.strategies import problems
from reference.attention.truth import attend

Kernel = Callable[[PagedBatch], None]


def failing(kernel: Kernel, spec: str) -> set[str]:
    """The checks that a kernel fails on a problem; those that it does not support are none."""
    problem = AttentionProblem.parse(spec)
    verdicts = [run_check(check, kernel, problem) for check in CHECKS if check.applies(problem)]
    return {verdict.check for verdict in verdicts if verdict.wrong}


def latent(change: Callable[[PagedBatch], None]) -> Kernel:
    """A latent kernel in torch with one defect."""
    return declares(capabilities_of(paged_latent_attention))(change)


def attention(change: Callable[[PagedBatch], None]) -> Kernel:
    """A kernel over keys and values with one defect."""
    return declares(capabilities_of(paged_attention))(change)


@latent
def takes_the_rotary_part_for_the_value(batch: PagedBatch) -> None:
    shifted = batch.key_cache[..., batch.rope :]
    paged_latent_attention(batch.replace(value_cache=shifted))
    batch.out.copy_(batch.out.roll(1, -1))


@latent
def scales_by_the_value(batch: PagedBatch) -> None:
    paged_latent_attention(batch.replace(scale=batch.value_dim**-0.5))


@latent
def drops_the_rotary_part(batch: PagedBatch) -> None:
    query = batch.query.clone()
    query[..., batch.value_dim :] = 0
    paged_latent_attention(batch.replace(query=query))


@latent
def stops_at_the_first_minus_one(batch: PagedBatch) -> None:
    ended = (batch.indices < 0).cumsum(-1) > 0
    paged_latent_attention(batch.replace(indices=batch.indices.masked_fill(ended, -1)))


@latent
def takes_minus_one_for_zero(batch: PagedBatch) -> None:
    paged_latent_attention(batch.replace(indices=batch.indices.clamp(min=0)))


@latent
def takes_indices_for_slots(batch: PagedBatch) -> None:
    table = torch.arange(batch.block_table.shape[1], dtype=torch.int32)
    paged_latent_attention(batch.replace(block_table=table.expand_as(batch.block_table)))


def wrong_where(shown: Callable[[PagedBatch], bool], right: Kernel) -> Kernel:
    """Half as much again where a batch shows something."""

    @declares(capabilities_of(right))
    def kernel(batch: PagedBatch) -> None:
        right(batch)
        if shown(batch):
            batch.out.mul_(1.5)

    return kernel


@attention
def ignores_the_mask(batch: PagedBatch) -> None:
    paged_attention(batch.replace(query_mask=None))


@attention
def shifts_the_mask(batch: PagedBatch) -> None:
    paged_attention(batch.replace(query_mask=batch.query_mask.roll(1, 1)))


@attention
def turns_the_mask(batch: PagedBatch) -> None:
    mask = batch.query_mask
    square = mask.t() if mask.shape[0] == mask.shape[1] else mask
    paged_attention(batch.replace(query_mask=square))


@attention
def ends_the_chunk_a_key_early(batch: PagedBatch) -> None:
    paged_attention(batch.replace(chunk=batch.chunk and batch.chunk + 1))


@attention
def takes_a_chunk_for_a_window(batch: PagedBatch) -> None:
    paged_attention(batch.replace(chunk=None, window=batch.chunk or batch.window))


@attention
def is_causal_across(batch: PagedBatch) -> None:
    paged_attention(batch.replace(causal=True))


@attention
def takes_the_first_for_all(batch: PagedBatch) -> None:
    paged_attention(batch.replace(causal_of=batch.causal_of[:1].expand_as(batch.causal_of)))


@attention
def takes_causality_by_token(batch: PagedBatch) -> None:
    paged_attention(batch.replace(causal_of=batch.causal_of.roll(1)))


@attention
def ignores_who_is_causal(batch: PagedBatch) -> None:
    paged_attention(batch.replace(causal_of=None))


@attention
def gives_the_lse_in_base_2(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is not None:
        batch.lse.div_(math.log(2))


@attention
def leaves_a_bias_in_the_lse(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is not None:
        batch.lse.add_(0.25 * batch.seq_lens.view(-1, 1).log())


@attention
def reads_values_as_long_as_keys(batch: PagedBatch) -> None:
    paged_attention(batch)
    batch.out[..., batch.query.shape[2] :] = 0


LATENT = "(q1 k21) (q1 k9) g2 d48 rope=16 b4 fp32"
SPARSE = "(q2 k40) (q1 k9) g2 d48 rope=16 b4 topk=32 fp32 seed=3"
EACH = "(q4 k9) (q3 k7) (q1 k5) g2 d16 b4 fp32 causal-each seed=5"
SHARDED = "(q1 k40) (q1 k9) d16 b4 fp32 seed={}"
TREE = "(q6 k9) g2 d16 b4 fp32 mask=tree seed=1"


@pytest.mark.parametrize(
    ("kernel", "spec", "found"),
    [
        (takes_the_rotary_part_for_the_value, LATENT, {"truth"}),
        (scales_by_the_value, LATENT, {"truth"}),
        (drops_the_rotary_part, LATENT, {"truth"}),
        (stops_at_the_first_minus_one, SPARSE, {"truth", "chosen-order", "all-chosen"}),
        (takes_minus_one_for_zero, SPARSE, {"truth", "all-chosen"}),
        (takes_indices_for_slots, SPARSE, {"truth", "all-chosen"}),
        (ignores_the_mask, TREE, {"truth", "siblings"}),
        (shifts_the_mask, TREE, {"truth", "chain-mask"}),
        (turns_the_mask, TREE, {"truth", "chain-mask"}),
        (ends_the_chunk_a_key_early, "(q3 k19) d16 b4 fp32 chunk=4", {"truth"}),
        (takes_a_chunk_for_a_window, "(q3 k19) d16 b4 fp32 chunk=4", {"truth"}),
        (is_causal_across, "(q6 k3) d16 b4 fp32 cross", {"truth"}),
        (takes_the_first_for_all, EACH, {"truth", "causal-each", "alone"}),
        (takes_causality_by_token, EACH, {"truth", "causal-each"}),
        (ignores_who_is_causal, EACH, {"truth", "causal-each"}),
        (gives_the_lse_in_base_2, SHARDED.format(0), {"truth", "shards"}),
        (leaves_a_bias_in_the_lse, SHARDED.format(1), {"truth", "shards"}),
        (reads_values_as_long_as_keys, "(q1 k9) d16 dv=48 b4 fp32", {"truth"}),
    ],
)
def test_a_defect_is_found(kernel: Kernel, spec: str, found: set[str]) -> None:
    assert found <= failing(kernel, spec)
    right = paged_latent_attention if "rope" in spec else paged_attention
    assert failing(right, spec) == set()


def test_a_tree_reorders_no_block_that_a_neighbour_has() -> None:
    # The shared prefix reaches into the step, where the other order changes the keys of one alone.
    assert failing(paged_attention, "(q2 k16) (q1 k16) d16 b16 fp32 shared=16 mask=tree") == set()


def test_chosen_keys_are_never_beyond_the_length_that_stands_beside_them() -> None:
    @declares(capabilities_of(paged_latent_attention))
    def asserts(batch: PagedBatch) -> None:
        lengths = batch.seq_lens.repeat_interleave(batch.query_start_loc.diff().long())
        assert batch.indices is None or bool((batch.indices < lengths.view(-1, 1, 1)).all())
        paged_latent_attention(batch)

    assert failing(asserts, SPARSE) == set()


def test_each_law_is_needed() -> None:
    # Of each of these kernels only one of the laws says that it is wrong.
    tree, sparse = "(q6 k9) d16 b4 fp32 mask=tree seed=1", "(q1 k40) d48 rope=16 b4 topk=32 fp32"
    drawn = choose(AttentionProblem.parse(tree)).query_mask
    chosen = choose(AttentionProblem.parse(sparse)).indices
    chain = torch.ones(6, 6).tril().bool()

    def is_chain(batch: PagedBatch) -> bool:
        return batch.query_mask is not None and torch.equal(batch.query_mask, chain)

    def is_reordered(batch: PagedBatch) -> bool:
        mask = batch.query_mask
        return mask is not None and not torch.equal(mask, drawn) and not is_chain(batch)

    def is_turned(batch: PagedBatch) -> bool:
        return batch.indices is not None and torch.equal(batch.indices, chosen.flip(-1))

    def has_all(batch: PagedBatch) -> bool:
        return batch.indices is not None and batch.indices.shape[-1] == 40

    def is_causal_in_none(batch: PagedBatch) -> bool:
        return batch.causal_of is None and not batch.causal

    def has_a_third(batch: PagedBatch) -> bool:
        return batch.seq_lens.tolist() == [13, 3]

    for shown, right, spec, law in (
        (is_causal_in_none, paged_attention, EACH, "causal-each"),
        (has_a_third, paged_attention, SHARDED.format(0), "shards"),
        (is_chain, paged_attention, tree, "chain-mask"),
        (is_reordered, paged_attention, tree, "siblings"),
        (is_turned, paged_latent_attention, sparse, "chosen-order"),
        (has_all, paged_latent_attention, sparse, "all-chosen"),
    ):
        assert failing(wrong_where(shown, right), spec) == {law}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("(q5 k3)", "k must be at least q"),
        ("(q1 k3) rope=16 h2", "a latent cache has one head"),
        ("(q1 k3) d64 rope=64", "dv=0"),
        ("(q1 k3) topk=4", "needs rope="),
        ("(q1 k3) rope=16 topk=0", "1 to 8,192 keys"),
        ("(q1 k3) chunk=0", "a chunk is 1 to"),
        ("(q1 k3) chunk=4 window=3", "without a window"),
        ("(q1 k3) mask=bush", "choose one of chain, tree"),
        ("(q1 k3) mask=tree alibi", "no window, chunk or alibi"),
        ("(q1 k3) cross alibi", "no position among the keys"),
        ("(q2 k3) causal-each window=2", "no window"),
        ("(q2 k3) causal-each alibi", "no window, chunk, mask=, topk=, cross or alibi"),
        ("(q1 k3) dv=20", "multiples of 8"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_remedy(spec: str, said: str) -> None:
    with pytest.raises(InvalidProblem, match=said):
        AttentionProblem.parse(spec)


@pytest.mark.parametrize("kernel", [paged_attention, paged_latent_attention])
def test_what_a_kernel_can_do_besides_is_drawn_and_read_back(kernel: Kernel) -> None:
    able = capabilities_of(kernel)
    seen: set[str] = set()

    def look(problem: AttentionProblem) -> None:
        assert AttentionProblem.parse(str(problem)) == problem
        assert able.refusal(problem) is None
        seen.update(features_of(problem))

    with only_our_constants():
        draw_each(problems(capabilities=able), count=120, seed_of_draw=0, seen=set(), example=look)
    assert able.also <= seen
    assert ("latent" in seen) == (able.kind == "latent")


def test_nothing_of_it_is_asked_of_who_does_not_say_so() -> None:
    for word in ("dv=48", "chunk=4", "mask=tree", "cross", "d48 rope=16"):
        problem = AttentionProblem.parse(f"(q2 k9) {word}")
        assert run_check(TRUTH, lambda _: None, problem).status == "not supported"
    other = Capabilities(kind="latent", head_dims=frozenset({576}), value_dims=frozenset({512}))
    assert other.refusal(AttentionProblem.parse("(q1 k9) d48 rope=16")) == "head size 48"
    assert other.refusal(AttentionProblem.parse("(q1 k9) d576 rope=64")) is None
    assert other.refusal(AttentionProblem.parse("(q1 k9)")) == "kind attention"


def test_a_failure_shrinks_to_the_kind_that_it_needs() -> None:
    drawn = "(q3 k40) (q1 k9) g7 d576 rope=64 b32 topk=64 fp16 softcap=30.0 sinks seed=4"
    small = minimise(AttentionProblem.parse(drawn), lambda problem: problem.topk is not None)
    assert str(small) == "(q1 k1) d32 b16 fp16 rope=0 topk=1"


def test_chosen_positions_are_the_sequences_own_and_lead_to_its_slots() -> None:
    problem = AttentionProblem.parse("(q3 k40) (q1 k0) (q2 k17) d48 rope=16 b4 topk=16 seed=5")
    placement = place(make_inputs(problem))
    batch, starts = placement.batch, problem.cache_starts
    slots = global_slots(batch)
    row = 0
    for sequence, request in enumerate(problem.requests):
        owned = placement.owned_slots[starts[sequence] : starts[sequence + 1]]
        for position in range(request.seq_len - request.query_len, request.seq_len):
            chosen = batch.indices[row, 0]
            real = chosen[chosen >= 0].long()
            assert len(real.unique()) == len(real)
            assert bool((real <= position).all())
            assert slots[row][chosen >= 0].tolist() == owned[real].tolist()
            assert bool((slots[row][chosen < 0] == -1).all())
            row += 1


def test_a_tree_has_branches_and_every_token_sees_itself() -> None:
    mask = choose(AttentionProblem.parse("(q24 k30) mask=tree")).query_mask
    assert bool(mask.diagonal().all())
    assert not bool(mask.triu(1).any())
    assert not bool(mask.tril().all())
    for token in range(24):  # the ancestors of a token's ancestors are its own
        for ancestor in mask[token].nonzero().flatten().tolist():
            assert bool((mask[token] >= mask[ancestor]).all())


def test_the_truth_of_a_latent_cache_is_that_of_its_parts() -> None:
    problem = AttentionProblem.parse("(q2 k9) g3 d48 rope=16 fp32")
    inputs = make_inputs(problem)
    assert torch.equal(inputs.values, inputs.keys[..., :32])
    plain = problem.replace(rope=None, value_dim=32)
    same = dataclasses.replace(inputs, problem=plain)
    assert torch.equal(attend(inputs).out, attend(same).out)
