"""The kernels, compiled, on the device that is there. Run with PAGEDBENCH_TEST_GPU=1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.check.search import replay
from helpers.profiles import examples
from kernels import cache_ops
from kernels.attention import paged_attention
from kernels.launch import Tiles
from paged import cache as torch_ops
from reference.attention.catalogue import TRUTH, applicable
from reference.attention.checks import judge, run_check
from reference.attention.contract import Capabilities
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.truth import attend
from reference.attention.verdict import Status


def on_this_device():
    """Everything, but for e4m3 where the multiprocessors do not know it (before sm_89)."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        return Capabilities(kv_dtypes=frozenset({"e5m2"}))
    return Capabilities()


def passes(check, problem):
    verdict = run_check(check, paged_attention, problem, device="cuda")
    assert verdict.status is Status.PASSED, (str(problem), verdict.findings)


# Every variant compiles anew: few block sizes and head sizes, many lengths.
@examples(150)
@given(problems(capabilities=on_this_device(), max_len=700))
def test_truth(problem):
    passes(TRUTH, problem)


@examples(60)
@given(problems(capabilities=on_this_device(), max_len=300))
def test_laws(problem):
    for law in applicable(problem):
        passes(law, problem)


@pytest.mark.parametrize("pool", ["", " pool=134217728"], ids=["near", "far"])
def test_a_kernel_is_right_that_is_judged_from_another_process(pool):
    """Its memory crosses by way of the host."""
    problem = AttentionProblem.parse("(q1 k129) (q3 k40) h2 g4 d64 b16 bf16 strides=out,lse" + pool)
    verdicts = replay("triton", "cuda", problem).verdicts
    wrong = [verdict for verdict in verdicts if verdict.wrong]
    assert not wrong, wrong
    assert pool or sum(verdict.status is Status.PASSED for verdict in verdicts) > 5


@pytest.mark.parametrize("num_splits", [1, 2, 7, 64])
def test_splits(num_splits):
    problem = AttentionProblem.parse("(q1 k5000) (q1 k1) (q1 k0) (q1 k130) h2 g4 d128 b16 bf16")
    inputs = make_inputs(problem, device="cuda")
    placement = place(inputs)
    paged_attention(placement.batch, num_splits=num_splits)
    assert not judge(problem, attend(make_inputs(problem)), placement)


@pytest.mark.parametrize("block_size", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_every_block_size(block_size):
    spec = f"(q1 k1500) (q1 k257) (q1 k64) h2 g4 d128 b{block_size} bf16"
    passes(TRUTH, AttentionProblem.parse(spec))
    passes(TRUTH, AttentionProblem.parse(spec.replace("(q1 k257)", "(q100 k257)")))


def test_a_cache_of_more_than_two_to_the_31_elements():
    # 2^31 elements of e5m2 are 2 GiB a tensor.
    problem = AttentionProblem.parse("(q1 k300) g4 d128 b16 bf16 kv=e5m2")
    inputs = make_inputs(problem, device="cuda")
    placement = place(inputs)
    batch = placement.batch
    offset = 2**31 // batch.key_cache[0].numel()
    caches = []
    for cache in (batch.key_cache, batch.value_cache):
        large = torch.empty(
            (offset + len(cache), *cache.shape[1:]), dtype=torch.uint8, device="cuda"
        )
        large[offset:] = cache.view(torch.uint8)
        caches.append(large.view(cache.dtype))
    used = torch.arange(batch.block_table.shape[1], device="cuda") < -(-300 // 16)
    table = torch.where(used, batch.block_table + offset, batch.block_table)
    big = batch.replace(key_cache=caches[0], value_cache=caches[1], block_table=table)
    for query_len in (1, 2):
        placement.reset()
        paged_attention(big.replace(max_query_len=query_len))
        assert not judge(problem, attend(make_inputs(problem)), placement)


@pytest.mark.parametrize("block_n", [16, 32, 64, 128])
def test_tiles_do_not_change_the_answer(block_n):
    problem = AttentionProblem.parse("(q1 k777) (q1 k64) g8 d128 b16 bf16 inputs=needle")
    placement = place(make_inputs(problem, device="cuda"))
    paged_attention(placement.batch, tiles=Tiles(block_n=block_n, block_m=16))
    assert not judge(problem, attend(make_inputs(problem)), placement)


@examples(40)
@given(
    st.sampled_from(("fp32", "fp16", "bf16", *sorted(on_this_device().kv_dtypes))),
    st.sampled_from((1, 16, 64)),
    st.integers(0, 200),
    st.sampled_from((1.0, 0.03, 1.7)),
)
def test_cache_write_and_copy_give_torch_bits(dtype, block_size, num_tokens, scale):
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    cache_dtype = (
        kinds.get(dtype) or {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[dtype]
    )
    num_blocks = 400 // block_size + 2
    shape = (2, num_blocks, block_size, 4, 96)
    expected = torch.randn(shape, device="cuda").to(cache_dtype)
    got = expected.clone()
    keys, values = torch.randn(2, num_tokens, 4, 96, device="cuda").to(
        kinds.get(dtype, torch.bfloat16)
    )
    slots = torch.randperm(num_blocks * block_size, device="cuda")[:num_tokens]
    slots[::7] = -1
    scales = {"k_scale": scale, "v_scale": scale} if expected.element_size() == 1 else {}
    blocks = torch.randperm(num_blocks, device="cuda")[: num_blocks // 2 * 2].view(2, -1).T
    blocks = blocks.contiguous()
    for ops, caches in ((torch_ops, expected), (cache_ops, got)):
        ops.write_slots(*caches.unbind(0), keys, values, slots, **scales)
        ops.copy_blocks(*caches.unbind(0), blocks)
    assert torch.equal(expected.view(torch.uint8), got.view(torch.uint8))
