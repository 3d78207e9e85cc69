"""The Triton readers of caches in a codec: right, within their memory, and each byte read once."""

from __future__ import annotations

import pytest

from helpers.traffic import launched_bytes
from kernels.attention import CODECS_READ, batch_invariant_attention, paged_attention
from kernels.interpreter.memory import watch_attention, watch_memory
from kernels.interpreter.memory.roles import attention_roles
from kernels.launch import choose_launch
from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem

DECODE = "(q1 k77) (q1 k0) (q1 k33) h2 g3 d80 b16 shared=18 softcap=30.0"
PREFILL = "(q1 k40) (q5 k21) h2 g2 d64 b8 window=9 sinks layout=packed"


@pytest.mark.parametrize("codec", CODECS_READ)
@pytest.mark.parametrize(
    ("kernel", "spec", "dtype"),
    [
        (paged_attention, DECODE, "bf16"),
        (paged_attention, DECODE, "fp16"),
        (paged_attention, PREFILL, "fp32"),
        (batch_invariant_attention, PREFILL, "fp16"),
    ],
)
def test_it_reads_right_and_only_its_own(codec, kernel, spec, dtype) -> None:
    problem = AttentionProblem.parse(f"{spec} {dtype} codec={codec} inputs=needle")
    for check in CHECKS[:2]:
        assert run_check(check, kernel, problem, watch=watch_attention).status == "passed"


@pytest.mark.parametrize("codec", CODECS_READ)
def test_each_byte_of_a_record_is_read_once(codec: str) -> None:
    problem = AttentionProblem.parse(f"(q1 k77) (q1 k33) h2 g3 d80 b16 bf16 codec={codec}")
    batch = place(make_inputs(problem)).batch
    with watch_memory(attention_roles(batch)) as memory:
        paged_attention(batch)
    expected = launched_bytes(batch, choose_launch(batch))
    moved = memory.traffic
    assert moved["key_cache"].loaded == expected.keys
    assert moved["value_cache"].loaded == expected.values
