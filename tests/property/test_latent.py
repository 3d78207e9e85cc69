"""The latent kernels, interpreted, against float64 on drawn problems; and the bytes they move."""

from functools import partial
from itertools import cycle

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from bench.check.watching import bytes_moved
from helpers.profiles import examples
from helpers.traffic import needed_bytes
from kernels.interpreter.memory import watch_attention
from kernels.latent_attention import paged_latent_attention
from kernels.launch import Tiles
from paged.latent import paged_latent_attention as torch_latent_attention
from reference.attention.catalogue import LAWS, MEMORY, TRUTH, applicable
from reference.attention.checks import run_check
from reference.attention.contract import AttentionKernel, capabilities_of, declares
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems

ABLE = capabilities_of(paged_latent_attention)
TURNS = cycle(LAWS)


def accept(kernel: AttentionKernel, problem: AttentionProblem) -> None:
    """Fail with the problem's spec unless memory, answer and one of the laws are right."""
    shown = applicable(problem)
    law = next((law for law, _ in zip(TURNS, LAWS, strict=False) if law in shown), TRUTH)
    for check in (MEMORY, TRUTH, law):
        verdict = run_check(check, kernel, problem, watch=watch_attention)
        assert not verdict.wrong, (str(problem), check.name, verdict.findings)


@examples(12, suppress_health_check=[HealthCheck.too_slow])
@given(problems(capabilities=ABLE, max_len=60))
def test_as_launched_by_default(problem):
    accept(paged_latent_attention, problem)


@examples(15, suppress_health_check=[HealthCheck.too_slow])
@given(
    problems(capabilities=ABLE, max_seqs=2, max_len=80),
    st.sampled_from((16, 32)),
    st.sampled_from((16, 128)),
    st.sampled_from((1, 2, 3, 5)),
)
def test_with_any_tile_and_split(problem, block_n, block_m, splits):
    tiles = Tiles(block_n=block_n, block_m=block_m)
    kernel = declares(ABLE)(partial(paged_latent_attention, tiles=tiles, num_splits=splits))
    accept(kernel, problem)


@examples(25, suppress_health_check=[HealthCheck.too_slow])
@given(problems(capabilities=capabilities_of(torch_latent_attention), max_len=120))
def test_in_torch(problem):
    accept(torch_latent_attention, problem)


@pytest.mark.parametrize(
    ("heads", "block_m", "times"), [(16, 16, 1), (128, 16, 8), (128, 128, 1), (24, 16, 2)]
)
def test_a_record_is_loaded_once_for_keys_and_values(heads, block_m, times):
    spec = f"(q1 k130) (q1 k0) (q1 k65) g{heads} d576 rope=64 b64 bf16"
    batch = place(make_inputs(AttentionProblem.parse(spec))).batch
    tiles = Tiles(block_n=64, block_m=block_m)
    moved = bytes_moved(partial(paged_latent_attention, num_splits=1, tiles=tiles), batch)
    records = 2 * 576 * (130 + 65)
    assert needed_bytes(batch).keys == records
    assert needed_bytes(batch).values == 0
    assert moved["key_cache"]["loaded"] == times * records
    assert moved["key_cache"]["loaded_distinct"] == records
    assert moved["value_cache"]["loaded"] == 0
    assert moved["query"]["loaded"] == 2 * 576 * 3 * heads
    assert moved["out"]["stored"] == 2 * 512 * 3 * heads


@pytest.mark.parametrize("words", ["", " topk=64"])
def test_each_byte_of_a_record_of_a_codec_is_loaded_once(words):
    spec = "(q1 k130) (q1 k0) (q1 k65) g7 d576 rope=64 b16 bf16 codec=fp8-ds-mla"
    batch = place(make_inputs(AttentionProblem.parse(spec + words))).batch
    moved = bytes_moved(partial(paged_latent_attention, num_splits=1), batch)
    seen = batch.seq_lens.sum() if batch.indices is None else (batch.indices >= 0).sum()
    assert moved["key_cache"]["loaded"] == 656 * int(seen)
    assert moved["value_cache"]["loaded"] == 0


@pytest.mark.parametrize(("block_m", "records"), [(16, 41 + 43 + 43), (32, 43 + 43)])
def test_a_tile_of_prefill_loads_what_its_last_row_sees(block_m, records):
    problem = AttentionProblem.parse("(q5 k43) g7 d48 rope=16 b16 bf16")
    batch = place(make_inputs(problem)).batch
    tiles = Tiles(block_n=16, block_m=block_m)
    moved = bytes_moved(partial(paged_latent_attention, tiles=tiles), batch)
    assert moved["key_cache"]["loaded"] == 2 * 48 * records
    assert moved["key_cache"]["loaded_distinct"] == 2 * 48 * 43
    assert moved["query"]["loaded"] == 2 * 48 * 5 * 7
    assert moved["out"]["stored"] == 2 * 32 * 5 * 7


def test_of_chosen_records_those_alone_are_loaded():
    problem = AttentionProblem.parse("(q1 k130) (q1 k65) g16 d576 rope=64 b16 fp16 topk=64")
    batch = place(make_inputs(problem)).batch
    moved = bytes_moved(paged_latent_attention, batch)
    assert moved["key_cache"]["loaded"] == 2 * 576 * int((batch.indices >= 0).sum())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"query": "out"}, "records of one head and of the query's 32 elements"),
        ({"key_cache": "value_cache"}, "records of one head and of the query's 48 elements"),
    ],
)
def test_what_breaks_the_contract_is_refused(change, said):
    batch = place(make_inputs(AttentionProblem.parse("(q1 k9) d48 rope=16"))).batch
    change = {k: getattr(batch, v) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=said):
        paged_latent_attention(batch.replace(**change))
