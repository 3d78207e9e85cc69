"""The cascade, prefill and the cache operations, compiled. Run with PAGEDBENCH_TEST_GPU=1."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.cascades import groupings, launches, sharing_problems
from helpers.profiles import examples
from kernels import cache_ops
from kernels.attention import paged_attention
from kernels.cascade import cascade_attention, paged_attention_with_cascade
from kernels.shared_prefix import PrefixGroups, SharedPrefix, find_prefix_groups
from paged import cache as torch_ops
from reference.attention.checks import judge
from reference.attention.contract import VARIANTS, Capabilities
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.truth import attend

SHARING = AttentionProblem.parse("40x(q1 k2100) h8 g4 d128 b16 bf16 shared=2048")


def on_this_device():
    """All that the cascade can do, but for e4m3 where multiprocessors lack it (before sm_89)."""
    old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9)
    return Capabilities(
        kv_dtypes=frozenset({"e5m2"} if old else {"e4m3", "e5m2"}),
        head_dims=frozenset({64, 80, 128}),
        variants=frozenset(VARIANTS) - {"window"},
    )


def groups_on_the_device(problem, shared):
    return PrefixGroups.of(
        shared,
        seq_lens=[request.seq_len for request in problem.requests],
        query_lens=[request.query_len for request in problem.requests],
        block_size=problem.block_size,
        device="cuda:0",
    )


@examples(60)
@given(problem=sharing_problems(capabilities=on_this_device()), data=st.data())
def test_truth(problem, data):
    shared = data.draw(groupings(problem))
    launch = data.draw(st.none() | launches(problem))
    placement = place(make_inputs(problem, device="cuda"))
    groups = groups_on_the_device(problem, shared)
    cascade_attention(placement.batch, groups=groups, launch=launch)
    torch.cuda.synchronize()
    assert not judge(problem, attend(make_inputs(problem)), placement)


@pytest.mark.parametrize(
    "spec",
    [
        "40x(q1 k2100) h8 g4 d128 b16 bf16 shared=2048",
        "40x(q1 k2100) h8 g4 d128 b16 bf16 kv=e5m2 kscale=0.5 vscale=1.7 shared=2048",
        "5x(q1 k2100) 3x(q64 k2200) (q1 k90) h2 g8 d64 b64 fp16 shared=2048 softcap=30.0 sinks",
        "9x(q1 k1100) (q7 k1040) h2 g1 d256 b32 bf16 shared=1024 alibi",
        "9x(q1 k1100) h2 g3 d96 b1 fp32 shared=1024",
    ],
)
def test_cascade_and_plain_attention_are_both_right(spec):
    problem = AttentionProblem.parse(spec)
    truth, inputs = attend(make_inputs(problem)), make_inputs(problem, device="cuda")
    host = place(make_inputs(problem)).batch
    shared = find_prefix_groups(
        host.block_table,
        seq_lens=[request.seq_len for request in problem.requests],
        query_lens=[request.query_len for request in problem.requests],
        block_size=problem.block_size,
    )
    groups = groups_on_the_device(problem, shared)
    for kernel in (
        paged_attention,
        lambda batch: cascade_attention(batch, groups=groups),
        lambda batch: paged_attention_with_cascade(batch, groups=groups),
    ):
        placement = place(inputs)
        kernel(placement.batch)
        torch.cuda.synchronize()
        assert not judge(problem, truth, placement)


def in_cascade(batch):
    groups = groups_on_the_device(SHARING, [SharedPrefix(tuple(range(40)), 128)])
    cascade_attention(batch, groups=groups)


@pytest.mark.parametrize(
    ("attention", "problem"),
    [
        (in_cascade, SHARING),
        (paged_attention, "(q300 k900) (q1 k2000) (q77 k77) h2 g4 d128 b16 bf16"),
        (partial(paged_attention, num_splits=8), "(q1 k3000) (q1 k900) h2 g4 d128 b16 bf16"),
    ],
    ids=["cascade", "prefill", "splits"],
)
def test_a_thousand_repeats_give_the_same_bits(attention, problem):
    placement = place(make_inputs(AttentionProblem.parse(str(problem)), device="cuda"))
    attention(placement.batch)
    first = placement.batch.out.clone()
    for _ in range(1000):
        placement.reset()
        attention(placement.batch)
        assert torch.equal(first, placement.batch.out)


def test_without_groups_nothing_waits_for_the_device():
    # The host reads nothing back: under this mode torch raises where it would.
    batch = place(make_inputs(SHARING, device="cuda")).batch
    groups = groups_on_the_device(SHARING, [SharedPrefix(tuple(range(40)), 128)])
    paged_attention_with_cascade(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        paged_attention_with_cascade(batch)
        paged_attention_with_cascade(batch, groups=groups)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# One warp, two, several and the most for a token; parts of a block of several programs.
@pytest.mark.parametrize("heads", [1, 2, 8, 32])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "e5m2"])
def test_cache_operations_give_torch_bits_for_any_number_of_warps(heads, dtype):
    cache_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "e5m2": torch.float8_e5m2}[dtype]
    expected = torch.randn((2, 30, 16, heads, 128), device="cuda").to(cache_dtype)
    got = expected.clone()
    new_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
    keys, values = torch.randn(2, 100, heads, 128, device="cuda").to(new_dtype)
    slots = torch.randperm(480, device="cuda")[:100]
    scales = {"k_scale": 0.3, "v_scale": 1.7} if dtype == "e5m2" else {}
    pairs = torch.randperm(30, device="cuda").view(2, 15).T.contiguous()
    for ops, caches in ((torch_ops, expected), (cache_ops, got)):
        ops.write_slots(*caches.unbind(0), keys, values, slots, **scales)
        ops.copy_blocks(*caches.unbind(0), pairs)
    assert torch.equal(expected.view(torch.uint8), got.view(torch.uint8))
