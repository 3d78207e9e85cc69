"""The helper that plants bugs: what it refuses, and that its surroundings do what they say."""

import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import strategies as st

from helpers.mutants import (
    INPUT_MARGIN,
    CacheCall,
    Caught,
    Harness,
    Kernels,
    Mutant,
    StaleMutant,
    as_on_a_gpu,
    hunt,
    in_a_large_pool,
    mutate,
    plant,
    programs_in_reverse,
    with_margins,
)
from kernels.decode import decode_kernel
from reference.attention.inputs import make_inputs
from reference.attention.placement import GUARD_BLOCKS, place
from reference.attention.problem import AttentionProblem

SOURCE = "first = 1\nsecond = 2\nthird = 2\n"
PROBLEM = AttentionProblem.parse("(q1 k40) (q1 k7) h2 g3 d32 b16 fp16 kv=e4m3 kscale=0.5")


@triton.jit
def _last_program(out):
    tl.store(out, tl.program_id(0))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return plant(None, tmp_path_factory.mktemp("copy"))


def test_edits_are_applied_in_order() -> None:
    edits = (("first = 1", "first = 3"), ("first = 3", "first = 4"))
    assert mutate(Mutant("twice", "decode", edits), SOURCE).startswith("first = 4\n")


@pytest.mark.parametrize("edit", [("fourth", "4"), (" = 2", " = 3"), ("first = 1", "first = 1")])
def test_passage_that_does_not_change_exactly_once_is_refused(edit: tuple[str, str]) -> None:
    with pytest.raises(StaleMutant, match="must stand there once, and change"):
        mutate(Mutant("stale", "decode", (edit,)), SOURCE)


def test_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StaleMutant, match=r"there is no kernels/encode\.py"):
        plant(Mutant("lost", "encode", ()), tmp_path)


def test_change_that_is_not_python_is_refused(tmp_path: Path) -> None:
    broken = Mutant("broken", "decode", (("def decode_kernel(", "def decode_kernel)"),))
    with pytest.raises(SyntaxError):
        plant(broken, tmp_path)


def test_copy_uses_none_of_the_original(copied: Kernels) -> None:
    package = copied.paged_attention.__module__.split(".")[0]
    kernel = sys.modules[f"{package}.decode"].decode_kernel
    assert kernel is not decode_kernel
    imported = [
        *vars(sys.modules[f"{package}.attention"]).values(),
        *kernel.fn.__globals__.values(),
    ]
    homes = {str(getattr(value, "__module__", "")).split(".")[0] for value in imported}
    assert package in homes
    assert "kernels" not in homes


def test_hunt_finds_the_same_first_example_in_every_run(copied: Kernels) -> None:
    harness = Harness("large", st.integers(0, 1000), lambda _, n: ["large"] if n > 300 else [])
    caught = hunt(harness, copied)
    assert isinstance(caught, Caught)
    assert caught.example > 300
    assert hunt(harness, copied) == caught


def test_hunt_gives_up_after_so_many_examples(copied: Kernels) -> None:
    seen: set[int] = set()
    harness = Harness("never", st.integers(0, 1000), lambda _, n: seen.add(n) or [])
    assert hunt(harness, copied, max_examples=7) is None
    assert 1 < len(seen) <= 7


def test_margins_keep_values_and_strides() -> None:
    batch = place(make_inputs(PROBLEM)).batch
    wide = torch.cat([batch.query, batch.query], 1)
    batch = batch.replace(query=wide[:, : batch.query.shape[1]])
    inside = with_margins(batch)
    for name in ("query", "block_table", "seq_lens", "query_start_loc"):
        before, after = getattr(batch, name), getattr(inside, name)
        assert torch.equal(before, after)
        assert before.stride() == after.stride()
        assert after.storage_offset() == INPUT_MARGIN * after.stride(0)


def test_unwritten_memory_is_nan_as_on_a_gpu() -> None:
    with as_on_a_gpu():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_programs_run_in_reverse_only_within_the_context() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    _last_program[(5,)](out)
    assert out.item() == 4
    with programs_in_reverse():
        _last_program[(5,)](out)
    assert out.item() == 0
    _last_program[(5,)](out)
    assert out.item() == 4


def test_large_pool_changes_no_bit(copied: Kernels) -> None:
    near, far = place(make_inputs(PROBLEM)), place(make_inputs(PROBLEM))
    pools = []

    def subject(batch):
        pools.append(batch.key_cache)
        copied.paged_attention(batch)

    subject(near.batch)
    in_a_large_pool(subject)(far.batch)
    assert torch.equal(near.batch.out, far.batch.out)
    small, large = pools
    before = len(large) - len(small) - 2 * GUARD_BLOCKS
    assert before * large.stride(0) >= 2**31
    assert large.stride() == small.stride()


@pytest.mark.parametrize("layout", ["by block", "by slot", "apart"])
def test_pool_is_the_part_of_the_storage_between_the_guards(layout: str) -> None:
    call = CacheCall(layout=layout, heads=3, num_blocks=4, kv_dtype="bf16")
    storage, before = call.storage(), call.storage()
    keys, values = call.pool(storage)
    assert keys.shape == values.shape == (4, 16, 3, 16)
    keys.zero_()
    values.zero_()
    inner = slice(GUARD_BLOCKS, -GUARD_BLOCKS)
    for part, old in zip(storage, before, strict=True):
        assert torch.equal(part[:GUARD_BLOCKS], old[:GUARD_BLOCKS])
        assert torch.equal(part[-GUARD_BLOCKS:], old[-GUARD_BLOCKS:])
        assert (part[inner] == 0).double().mean() > 0.8
    assert (keys.stride() == values.stride()) == (layout != "apart")
