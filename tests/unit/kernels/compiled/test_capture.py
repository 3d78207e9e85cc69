"""What a captured launch is specialised for, and occupancy beside LLVM's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT
from kernels.compiled.baseline import built_in_path, known_versions, read_baseline
from kernels.compiled.batch import MAX_CONTEXT, engine_batch
from kernels.compiled.variants import VARIANTS
from reference.attention.problem import AttentionProblem


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_batch_has_the_strides_of_an_engine(variant):
    problem = AttentionProblem.parse(variant.problem)
    batch = engine_batch(problem)
    tensors = ("query", "key_cache", "value_cache", "block_table", "out", "lse", "seq_lens")
    for name in tensors:
        tensor = getattr(batch, name)
        assert tensor.data_ptr() % 16 == 0, name
        # Records of codes and a float32 lie at multiples of 4 bytes.
        unit = 4 if "cache" in name and "token-head" in problem.codec else 16
        assert all(stride % unit == 0 for stride in tensor.stride()[:-1]), name
        assert tensor.stride(-1) == 1
    assert batch.query.shape == (problem.num_tokens, problem.num_q_heads, problem.head_dim)
    assert batch.block_table.shape[1] * problem.block_size == MAX_CONTEXT
    used = sum(-(-request.seq_len // problem.block_size) for request in problem.requests)
    blocks = [
        block
        for row, request in enumerate(problem.requests)
        for block in batch.block_table[row, : -(-request.seq_len // problem.block_size)].tolist()
    ]
    assert sorted(blocks) == list(range(used))
    assert used < len(batch.key_cache)


@pytest.mark.parametrize("triton", known_versions())
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_decode_is_specialised_as_for_an_engine(triton, target):
    variants = read_baseline(built_in_path(triton)).targets[target].variants
    (launch,) = variants["decode bf16"].launches
    told = launch.arguments
    for name in ("query", "key_cache", "value_cache", "block_table", "out", "lse"):
        assert told[name].endswith(":16"), name
    # A stride of 1 is a constant, one of 0 (the only split) is divisible by 16 like all others.
    assert told.pop("stride_head_l") == "i32:1"
    strides = {value for name, value in told.items() if name.startswith("stride_")}
    assert strides == {"i32:16"}
    assert told["logit_factor"] == "fp32"
    assert told["slopes"] == "None"
    assert launch.constexprs["BLOCK_SIZE"] == 16


@pytest.mark.slow
def test_occupancy_by_registers_is_what_llvm_says(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("occupancy_of_llvm.py")), "gfx942"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads(run.stdout)
    assert len(rows) == 4
    assert [ours for _, _, ours in rows] == [said for _, said, _ in rows], rows
