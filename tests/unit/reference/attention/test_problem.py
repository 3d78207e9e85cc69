"""The spec of a problem: one line that says everything, and complaints that name the remedy."""

import ast
import dataclasses
import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch

import reference.attention.problem
from helpers.places import ROOT
from reference.attention.problem import (
    FP8_DTYPES,
    GRAMMAR,
    INPUT_KINDS,
    MAX_SEED,
    QUERY_DTYPES,
    AttentionProblem,
    InvalidProblem,
    Request,
)

ONE = (Request(1, 16),)


def test_documented_example_is_what_it_says() -> None:
    result = doctest.testmod(reference.attention.problem)
    assert result.attempted
    assert not result.failed


def test_documented_example_reads_as_these_fields() -> None:
    assert AttentionProblem.parse("2x(q1 k129) g4 d80 b16 bf16 window=32") == AttentionProblem(
        requests=(Request(1, 129), Request(1, 129)),
        num_kv_heads=1,
        group_size=4,
        head_dim=80,
        block_size=16,
        dtype="bf16",
        kv_dtype="bf16",
        window=32,
    )


def test_every_word_of_the_grammar_reaches_its_field() -> None:
    spec = (
        "3x(q2 k9) (q1 k0) h2 g3 d96 b256 fp16 kv=e5m2 kscale=0.5 vscale=0.03 window=7 "
        "softcap=30.0 scale=0.125 shared=5 spare=0 pool=70000 layout=packed strides=lse,out alibi "
        "sinks inputs=needle seed=41"
    )
    problem = AttentionProblem.parse(spec)
    assert dataclasses.asdict(problem) == {
        "requests": (*[{"query_len": 2, "seq_len": 9}] * 3, {"query_len": 1, "seq_len": 0}),
        "num_kv_heads": 2,
        "group_size": 3,
        "head_dim": 96,
        "block_size": 256,
        "dtype": "fp16",
        "kv_dtype": "e5m2",
        "codec": "",
        "causal": True,
        "parts": None,
        "interleave": False,
        **dict.fromkeys(("write", "chained", "unwritten", "causal_each"), False),
        "copy": None,
        "window": 7,
        "softcap": 30.0,
        "alibi": True,
        "sinks": True,
        "scale": 0.125,
        "k_scale": 0.5,
        "v_scale": 0.03,
        "shared_prefix": 5,
        "inputs": "needle",
        "layout": "packed",
        "strides": ("lse", "out"),
        "spare": 0,
        "pool": 70000,
        "seed": 41,
        **dict.fromkeys(("value_dim", "rope", "topk", "chunk"), None),
        "cross": False,
        "query_mask": "",
    }
    assert str(problem) == spec


def test_words_come_in_any_order_and_requests_keep_theirs() -> None:
    mixed = AttentionProblem.parse("sinks (q1 k3) fp32 2x(q4 k4) d16 (q1 k3)")
    assert mixed == AttentionProblem.parse("(q1 k3) 2x(q4 k4) (q1 k3) d16 fp32 sinks")
    assert [request.seq_len for request in mixed.requests] == [3, 4, 4, 3]


def test_equal_requests_are_counted_only_where_they_are_neighbours() -> None:
    problem = AttentionProblem(
        requests=(Request(1, 3), Request(1, 3), Request(2, 2), Request(1, 3))
    )
    assert str(problem).startswith("2x(q1 k3) (q2 k2) (q1 k3) ")


@pytest.mark.parametrize(
    "spaced", ["(q1  k16)", "( q1 k16 )", "(q1\tk16)", "1x(q1 k16)", "  (q1 k16)  "]
)
def test_blanks_within_a_request_do_not_matter(spaced: str) -> None:
    assert AttentionProblem.parse(spaced).requests == ONE


def test_defaults_are_left_out_of_the_spec() -> None:
    assert str(AttentionProblem(requests=ONE)) == "(q1 k16) d64 b16 bf16"


def test_a_scale_of_one_is_printed_because_it_is_not_the_default() -> None:
    problem = AttentionProblem(requests=ONE, scale=1.0)
    assert AttentionProblem.parse(str(problem)).scale == 1.0
    assert AttentionProblem(requests=ONE).softmax_scale == 0.125


@pytest.mark.parametrize(
    "word",
    [
        "q1",
        "k16",
        "(q1)",
        "(k16 q1)",
        "(q1 k16",
        "(q1,k16)",
        "(q-1 k16)",
        "(q1.0 k16)",
        "x(q1 k16)",
        "2(q1 k16)",
        "2X(q1 k16)",
        "-2x(q1 k16)",
        "bfloat16",
        "BF16",
        "e4m3",
        "causal",
        "noalibi",
        "h-1",
        "d64.0",
        "d",
        "windows=3",
        "alibi=1",
        "=3",
        "b16,",
    ],
)
def test_a_word_outside_the_grammar_prints_the_grammar(word: str) -> None:
    with pytest.raises(InvalidProblem) as complaint:
        AttentionProblem.parse(f"(q1 k16) {word} d32")
    assert str(complaint.value).endswith(f"is not a word of a problem; the grammar is: {GRAMMAR}")
    quoted = ast.literal_eval(str(complaint.value).partition(" is not a word")[0])
    assert quoted
    assert word.startswith(quoted)


def test_the_grammar_names_every_dtype_and_kind_of_inputs() -> None:
    for name in (*QUERY_DTYPES, *FP8_DTYPES, *INPUT_KINDS):
        assert name in GRAMMAR


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("d64 d64", "head_dim"),
        ("d64 d80", "head_dim"),
        ("h1 h2", "num_kv_heads"),
        ("g1 g2", "group_size"),
        ("b1 b2", "block_size"),
        ("bf16 fp16", "dtype"),
        ("kv=e4m3 kv=e5m2", "kv_dtype"),
        ("window=3 window=4", "window"),
        ("softcap=3 softcap=3", "softcap"),
        ("scale=1 scale=2", "scale"),
        ("shared=1 shared=2", "shared_prefix"),
        ("alibi alibi", "alibi"),
        ("sinks sinks", "sinks"),
        ("noncausal noncausal", "causal"),
        ("inputs=flat inputs=loud", "inputs"),
        ("seed=1 seed=2", "seed"),
    ],
)
def test_a_doubled_word_is_an_error_that_quotes_the_second(words: str, field: str) -> None:
    spec = f"(q1 k16) {words}"
    with pytest.raises(InvalidProblem) as complaint:
        AttentionProblem.parse(spec)
    second = words.split()[1]
    assert str(complaint.value) == f"{second!r} in {spec!r}: {field} is given twice"


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("window=many", "int"),
        ("window=1.5", "int"),
        ("window=", "int"),
        ("window=nan", "int"),
        ("window", "int"),
        ("shared=1e3", "int"),
        ("seed=0x10", "int"),
        ("softcap=thirty", "float"),
        ("scale=", "float"),
        ("kscale=1,5", "float"),
        ("vscale=--1", "float"),
    ],
)
def test_nonsense_for_a_number_names_the_word_and_the_type(word: str, kind: str) -> None:
    with pytest.raises(InvalidProblem) as complaint:
        AttentionProblem.parse(f"(q1 k16) {word}")
    text = word.partition("=")[2]
    assert str(complaint.value) == f"{word!r}: {text!r} is not {kind}"


# (spec, value at fault, remedy)
COMPLAINTS = [
    ("", "a batch", "at least one request, such as (q1 k16)"),
    ("d64 bf16", "a batch", "at least one request, such as (q1 k16)"),
    ("(q1 k16) h0", "h0", "start at 1"),
    ("(q1 k16) g0", "g0", "start at 1"),
    ("(q1 k16) d8", "d8", "multiples of 8 from 16 to 576"),
    ("(q1 k16) d0", "d0", "multiples of 8 from 16 to 576"),
    ("(q1 k16) d20", "d20", "multiples of 8 from 16 to 576"),
    ("(q1 k16) d584", "d584", "multiples of 8 from 16 to 576"),
    ("(q1 k16) b0", "b0", "powers of two from 1 to 256"),
    ("(q1 k16) b24", "b24", "powers of two from 1 to 256"),
    ("(q1 k16) b512", "b512", "powers of two from 1 to 256"),
    ("(q1 k16) kv=fp8", "kv=fp8", "one of e4m3, e5m2"),
    ("(q1 k16) fp16 kv=bf16", "kv=bf16", "one of e4m3, e5m2"),
    ("(q1 k16) window=0", "window=0", "a window is 1 to"),
    ("(q1 k16) window=-3", "window=-3", "a window is 1 to"),
    ("(q1 k16) window=3 noncausal", "window=3", "needs causal attention"),
    ("(q1 k16) softcap=0", "softcap=0.0", "positive and finite"),
    ("(q1 k16) softcap=-1", "softcap=-1.0", "positive and finite"),
    ("(q1 k16) softcap=nan", "softcap=nan", "positive and finite"),
    ("(q1 k16) softcap=1e400", "softcap=inf", "positive and finite"),
    ("(q1 k16) scale=0", "scale=0.0", "positive and finite"),
    ("(q1 k16) scale=inf", "scale=inf", "positive and finite"),
    ("(q1 k16) kv=e4m3 kscale=0", "k_scale=0.0", "positive and finite"),
    ("(q1 k16) kv=e4m3 vscale=-inf", "v_scale=-inf", "positive and finite"),
    ("(q1 k16) kscale=0.5", "kscale=0.5", "only a float8 cache has scales"),
    ("(q1 k16) vscale=2", "vscale=2", "only a float8 cache has scales"),
    ("(q1 k16) shared=-1", "shared=-1", "a prefix has 0 to 2,147,483,647 tokens"),
    ("(q1 k16) inputs=quiet", "inputs=quiet", "one of flat, needle, loud, sunken"),
    ("(q1 k16) kv", "kv", "one of e4m3, e5m2"),
    ("(q1 k16) kv=", "kv=", "one of e4m3, e5m2"),
    ("(q1 k16) 0x(q1 k4)", "0x", ""),
    ("(q2 k1)", "(q2 k1)", "k must be at least q"),
    ("(q2 k0)", "(q2 k0)", "k must be at least q"),
]


@pytest.mark.parametrize(("spec", "value", "remedy"), COMPLAINTS)
def test_every_complaint_names_the_value_and_the_remedy(spec: str, value: str, remedy: str) -> None:
    with pytest.raises(InvalidProblem) as complaint:
        AttentionProblem.parse(spec)
    assert value in str(complaint.value)
    assert remedy in str(complaint.value)


def test_an_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(InvalidProblem, match="dtype 'float16': choose one of fp32, fp16, bf16"):
        AttentionProblem(requests=ONE, dtype="float16")


@pytest.mark.parametrize("lengths", [(-1, 4), (1, -4), (-1, -1)])
def test_a_negative_length_is_an_error(lengths: tuple[int, int]) -> None:
    with pytest.raises(InvalidProblem, match=rf"q{lengths[0]} k{lengths[1]}.*none is negative"):
        Request(*lengths)


def test_the_edges_of_every_range_are_legal() -> None:
    for head_dim in (16, 24, 256):
        for block_size in (1, 2, 256):
            problem = AttentionProblem(requests=ONE, head_dim=head_dim, block_size=block_size)
            assert AttentionProblem.parse(str(problem)) == problem
    assert AttentionProblem(requests=ONE, window=1).window == 1


def test_derived_numbers_are_those_of_the_batch() -> None:
    problem = AttentionProblem.parse("(q1 k5) (q0 k3) (q4 k9) (q1 k0) h2 g3 d16")
    assert problem.num_q_heads == 6
    assert problem.num_tokens == 6
    assert problem.cache_tokens == 17
    assert problem.max_query_len == 4
    assert problem.max_seq_len == 9
    assert problem.query_starts == [0, 1, 1, 5, 6]
    assert problem.cache_starts == [0, 5, 8, 17, 17]
    assert problem.softmax_scale == 0.25
    assert problem.torch_dtype is torch.bfloat16
    assert problem.torch_kv_dtype is torch.bfloat16
    assert not problem.quantised


@pytest.mark.parametrize(
    ("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)]
)
def test_a_float8_cache_keeps_the_dtype_of_the_query(name: str, dtype: torch.dtype) -> None:
    problem = AttentionProblem.parse(f"(q1 k4) fp16 kv={name}")
    assert problem.quantised
    assert (problem.torch_dtype, problem.torch_kv_dtype) == (torch.float16, dtype)


def test_problems_are_values() -> None:
    one, other = (AttentionProblem.parse("(q1 k4) g2 alibi") for _ in range(2))
    assert one == other
    assert len({one, other, one.replace(seed=1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seed = 3  # type: ignore[misc]


def test_replace_checks_what_it_makes() -> None:
    problem = AttentionProblem.parse("(q1 k4)")
    assert problem.replace(window=3).window == 3
    with pytest.raises(InvalidProblem, match="window=0"):
        problem.replace(window=0)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**64, 10**30])
def test_a_seed_that_no_generator_takes_is_an_error(seed: int) -> None:
    with pytest.raises(InvalidProblem, match=f"seed={seed}"):
        AttentionProblem(requests=ONE, seed=seed)


def test_the_largest_seed_leaves_room_for_another_order_of_the_pages() -> None:
    problem = AttentionProblem(requests=ONE, seed=MAX_SEED)
    for seed in (problem.seed, problem.seed + 1):
        torch.Generator().manual_seed(seed)


def test_numbers_of_numpy_print_as_numbers() -> None:
    problem = AttentionProblem(
        requests=(Request(np.int64(1), np.int32(16)),),  # type: ignore[arg-type]
        window=np.int64(5),  # type: ignore[arg-type]
        shared_prefix=np.int64(2),  # type: ignore[arg-type]
        softcap=np.float64(30.0),
        scale=np.float64(0.125),
    )
    assert str(problem) == "(q1 k16) d64 b16 bf16 window=5 softcap=30.0 scale=0.125 shared=2"
    assert AttentionProblem.parse(str(problem)) == problem


@pytest.mark.parametrize(
    "spec", ["1000000000x(q1 k1)", "65537x(q1 k1)", "40000x(q1 k1) 40000x(q1 k2)"]
)
def test_a_batch_beyond_all_bounds_is_refused_before_it_is_made(spec):
    with pytest.raises(InvalidProblem):
        AttentionProblem.parse(spec)


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000])
@pytest.mark.parametrize("spec", ["{}x(q1 k1)", "(q1 k{})", "(q1 k1) d{}"])
def test_numbers_of_absurd_length_are_not_words_of_a_problem(spec, digits):
    with pytest.raises(InvalidProblem, match="grammar"):
        AttentionProblem.parse(spec.format(digits))


@pytest.mark.parametrize(
    "module",
    [
        "reference.attention.problem",
        "reference.attention.strategies",
        "reference.attention.features",
        "subjects.attention.resolve",
        "subjects.allocators.resolve",
        "reference.allocator.moves",
    ],
)
def test_what_is_judged_at_the_command_line_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
