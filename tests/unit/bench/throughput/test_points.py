"""What is timed, and how many bytes and operations that is."""

import pytest
import torch

from bench.throughput.bars import bar_points
from bench.throughput.points import Grid, Point, decode_requests
from bench.throughput.tensors import copies_that_fit, make_samples
from bench.throughput.worker import unwritten
from helpers.traffic import needed_bytes
from paged.attention import paged_attention
from reference.attention.layout import usual
from reference.attention.problem import AttentionProblem, Request
from reference.errors import BadInput


def point(spec: str) -> Point:
    return Point(batch="by hand", problem=AttentionProblem.parse(spec))


def test_every_combination_is_a_point_with_a_name_of_its_own():
    points = Grid(
        batches=["4x64", "azure:3"],
        prefills=["2x32"],
        block_sizes=[1, 16],
        heads=[(2, 4), (1, 1)],
        head_dims=[64, 128],
        dtypes=["bf16", "fp16"],
        kv_dtypes=["", "e4m3"],
    ).points()
    assert len(points) == len({each.name for each in points}) == 3 * 2**5
    assert points[0].name == "decode 4x64 h2 g4 d64 b1 bf16"
    assert points[-1].name == "prefill 2x32 h1 g1 d128 b16 fp16 kv=e4m3"
    assert {each.ragged for each in points if each.batch == "azure:3"} == {True}
    assert {each.ragged for each in points if each.batch != "azure:3"} == {False}


def test_a_ragged_batch_has_the_lengths_of_running_requests_longest_first():
    requests = decode_requests("azure-conv:32")
    lengths = [request.seq_len for request in requests]
    # The same batch as that of `pagedbench check`.
    assert sum(lengths) == 30_693
    assert lengths == sorted(lengths, reverse=True)
    assert requests == decode_requests("azure:32") != decode_requests("azure:32", seed=1)


def test_no_batch_is_no_point():
    with pytest.raises(BadInput, match="no batch"):
        Grid().points()


@pytest.mark.parametrize(
    "spec",
    [
        "3x(q1 k50) h2 g4 d64 b16 bf16",
        "(q1 k50) (q1 k7) h2 g4 d64 b1 fp16",
        "2x(q40 k40) h2 g1 d32 b16 fp32",
        "(q1 k33) g4 d128 b32 bf16 kv=e4m3",
        "(q1 k50) (q1 k33) (q1 k70) (q1 k5) h2 g4 d64 b16 bf16 shared=34",
    ],
)
def test_bytes_are_those_that_any_kernel_has_to_move(spec):
    one = point(spec)
    needed = needed_bytes(usual(one.problem, device="cpu", seed=0))
    assert one.kv_bytes == needed.keys + needed.values


def test_operations_are_those_of_the_keys_that_are_seen():
    assert point("(q1 k10) d16 b16 bf16").flops == 4 * 16 * 10
    # Queries at 7, 8, 9 of a causal sequence see 8, 9 and 10 keys.
    assert point("(q3 k10) g2 d16 b16 bf16").flops == 4 * 16 * 2 * 27
    assert point("(q1 k10) h2 g4 d16 b16 bf16").intensity == 4  # group size x 2 / bytes of bfloat16


# --- tensors -------------------------------------------------------------------------------------

SMALL = "(q1 k40) (q1 k17) (q1 k3) h2 g2 d16 b8 bf16"


def copies(spec, *, most_bytes=10**9):
    return copies_that_fit(point(spec), cache_bytes=20_000, most_bytes=most_bytes)


def test_copies_are_several_caches_large_memory_is_a_limit_and_one_is_the_least():
    assert copies(SMALL) * point(SMALL).kv_bytes >= 60_000
    assert copies(SMALL, most_bytes=3 * point(SMALL).kv_bytes) == 3
    assert copies(SMALL, most_bytes=1) == 1


@pytest.mark.parametrize(
    "spec", [SMALL, "2x(q40 k40) g2 d16 b8 bf16", "(q1 k9) d16 b8 bf16 kv=e4m3"]
)
def test_a_right_answer_has_no_finding_and_a_wrong_one_has(spec):
    problem = AttentionProblem.parse(spec)
    sample, other = make_samples(point(spec), 2, device="cpu")
    batch = usual(problem, device="cpu", seed=problem.seed)
    paged_attention(batch)
    right = batch.out[sample.rows]
    assert sample.finding(right) == ""
    assert "the truth is" in other.finding(right)  # the answer of another input
    wrong = right.clone()
    wrong[-1, -1] += 1.0
    assert "the truth is" in sample.finding(wrong)
    assert unwritten(batch.out) == ""
    batch.out[0, 0, 0] = torch.nan
    assert unwritten(batch.out).startswith("1 of")
    assert sample.finding(torch.full_like(right, torch.nan))


def test_the_shortest_and_the_longest_sequence_are_checked_however_small_the_budget():
    spec = "(q1 k500) (q1 k700) (q1 k3) (q1 k900) d16 b8 bf16"
    # 16,384 keys are to be checked: fewer than 164 of each of so many inputs.
    (first, *_) = make_samples(point(spec), 101, device="cpu")
    assert [request.seq_len for request in first.problem.requests] == [3]
    (first, _) = make_samples(point(spec), 2, device="cpu")
    assert {request.seq_len for request in first.problem.requests} == {3, 500, 700, 900}


def test_a_prompt_is_checked_at_its_end_and_in_its_first_half():
    (sample,) = make_samples(point("(q100 k100) d16 b8 bf16"), 1, device="cpu")
    assert sample.problem.requests == (Request(16, 100), Request(16, 50))
    assert sample.rows.tolist() == [*range(84, 100), *range(34, 50)]


def test_the_bars_need_these_points_and_no_others():
    names = [each.name for each in bar_points("cuda")]
    assert names == [
        *(
            f"decode {batch} h8 g4 d128 b{size} bf16"
            for batch in ("64x4096", "16x32768")
            for size in (16, 32, 64, 128)
        ),
        "decode 64x4096 h8 g4 d128 b1 bf16",
        "decode 16x32768 h8 g4 d128 b1 bf16",
        "decode 1x131072 h8 g4 d128 b16 bf16",
        "decode azure-conv:32 h8 g4 d128 b16 bf16",
        "decode 64x4096 h8 g4 d128 b256 bf16",
        "decode 16x32768 h8 g4 d128 b256 bf16",
        "prefill 16x2048 h8 g4 d128 b16 bf16",
        "decode 64x4096 h8 g4 d128 b16 bf16 kv=e4m3",
        "decode 64x4096 h8 g4 d128 shared=2048 b16 bf16",
        "decode 16x4096 h8 g4 d128 shared=1024 b16 bf16",
        "decode 4x2048 h8 g4 d128 shared=256 b16 bf16",
        "decode 32x4096 h1 g128 d576 rope=64 b64 bf16",
    ]
    assert [each.name for each in bar_points("cpu")] == ["decode azure-conv:32 h8 g4 d128 b16 bf16"]


def test_a_latent_record_counts_once_in_bytes_and_twice_in_work():
    grid = Grid(batches=("2x100",), heads=((1, 16),), head_dims=((512, 64),), block_sizes=(64,))
    (point,) = grid.points()
    assert point.name == "decode 2x100 h1 g16 d576 rope=64 b64 bf16"
    assert point.problem.value_size == 512
    assert point.kv_bytes == 2 * 100 * 576 * 2
    assert point.flops == 2 * 100 * 16 * 2 * (576 + 512)
