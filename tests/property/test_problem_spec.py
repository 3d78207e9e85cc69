"""Drawn problems: they survive their spec, stay within bounds, and shrink to a short line."""

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from helpers.profiles import examples
from reference.attention.contract import VARIANTS, Capabilities, variants_of
from reference.attention.problem import (
    FP8_DTYPES,
    INPUT_KINDS,
    MAX_LENGTH,
    MAX_SEED,
    QUERY_DTYPES,
    AttentionProblem,
    Request,
)
from reference.attention.strategies import BLOCK_SIZES, GROUP_SIZES, HEAD_DIMS, problems, seq_lens

FACTORS = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


def any_request() -> st.SearchStrategy[Request]:
    lengths = st.integers(0, MAX_LENGTH)
    sequences = st.builds(lambda a, b: Request(min(a, b), max(a, b)), lengths, lengths)
    return sequences | st.just(Request(1, 0))


@st.composite
def any_problem(draw: st.DrawFn) -> AttentionProblem:
    """Everything that a problem may hold, also what no test would run."""
    causal = draw(st.booleans())
    dtype = draw(st.sampled_from(sorted(QUERY_DTYPES)))
    kv_dtype = draw(st.sampled_from([dtype, *FP8_DTYPES]))
    scales = FACTORS if kv_dtype in FP8_DTYPES else st.just(1.0)
    return AttentionProblem(
        requests=tuple(draw(st.lists(any_request(), min_size=1, max_size=6))),
        num_kv_heads=draw(st.integers(1, 999)),
        group_size=draw(st.integers(1, 999)),
        head_dim=8 * draw(st.integers(2, 32)),
        block_size=2 ** draw(st.integers(0, 8)),
        dtype=dtype,
        kv_dtype=kv_dtype,
        causal=causal,
        window=draw(st.none() | st.integers(1, MAX_LENGTH)) if causal else None,
        softcap=draw(st.none() | FACTORS),
        alibi=draw(st.booleans()),
        sinks=draw(st.booleans()),
        scale=draw(st.none() | FACTORS),
        k_scale=draw(scales),
        v_scale=draw(scales),
        shared_prefix=draw(st.integers(0, MAX_LENGTH)),
        inputs=draw(st.sampled_from(INPUT_KINDS)),
        seed=draw(st.integers(0, MAX_SEED)),
    )


@examples(100)
@given(any_problem())
def test_any_problem_survives_its_spec(problem: AttentionProblem) -> None:
    spec = str(problem)
    assert AttentionProblem.parse(spec) == problem
    assert str(AttentionProblem.parse(spec)) == spec


@examples(100)
@given(any_problem(), st.randoms(use_true_random=False))
def test_the_order_of_the_words_after_the_requests_does_not_matter(problem, random) -> None:
    spec = str(problem)
    head, _, tail = spec.rpartition(") ")
    words = tail.split()
    random.shuffle(words)
    assert AttentionProblem.parse(f"{' '.join(words)} {head})") == problem


CAPABILITIES = {
    "everything": Capabilities(),
    "decode only": Capabilities(variants=frozenset()),
    "plain prefill": Capabilities(variants=frozenset({"prefill", "lse"})),
    "one of each": Capabilities(
        dtypes=frozenset({"fp16"}),
        kv_dtypes=frozenset(),
        head_dims=frozenset({128}),
        block_sizes=frozenset({16}),
        variants=frozenset({"prefill"}),
    ),
    "flash": Capabilities(
        dtypes=frozenset({"fp16", "bf16"}),
        kv_dtypes=frozenset({"e4m3"}),
        max_head_dim=128,
        block_sizes=frozenset({16, 32, 64, 128, 256}),
        variants=frozenset(VARIANTS) - {"sinks"},
    ),
    "unusual head size": Capabilities(head_dims=frozenset({40, 72})),
    "window but not noncausal": Capabilities(variants=frozenset({"window", "softcap"})),
}


@pytest.mark.parametrize("capabilities", CAPABILITIES.values(), ids=CAPABILITIES)
def test_nothing_outside_the_capabilities_is_drawn(capabilities: Capabilities) -> None:
    @examples(25)
    @given(problems(capabilities=capabilities))
    def draw(problem: AttentionProblem) -> None:
        assert capabilities.refusal(problem) is None

    draw()


# Honest declarations: these kernels can do more in one respect than the contract asks for.
@pytest.mark.parametrize(
    "capabilities",
    [
        Capabilities(head_dims=frozenset({64, 256}), max_head_dim=128),
        Capabilities(head_dims=frozenset({8, 20, 64, 640}), max_head_dim=640),
        Capabilities(head_dims=frozenset({64}), block_sizes=frozenset({16, 48, 512})),
    ],
    ids=["beyond its largest", "beyond the contract", "odd blocks"],
)
def test_sizes_are_drawn_from_what_kernel_and_contract_both_allow(
    capabilities: Capabilities,
) -> None:
    @settings(max_examples=40, database=None)  # not fewer in a quick run: a size would be missed
    @given(problems(capabilities=capabilities))
    def draw(problem: AttentionProblem) -> None:
        assert problem.head_dim == 64
        assert capabilities.refusal(problem) is None

    draw()


@pytest.mark.parametrize(
    ("capabilities", "name"),
    [
        (Capabilities(dtypes=frozenset()), "dtypes"),
        (Capabilities(block_sizes=frozenset()), "block_sizes"),
        (Capabilities(block_sizes=frozenset({48})), "block_sizes"),
        (Capabilities(head_dims=frozenset()), "head_dims"),
        (Capabilities(max_head_dim=8), "head_dim"),
    ],
    ids=["no dtype", "no block size", "bad block size", "no head size", "small head size"],
)
def test_capabilities_that_leave_nothing_to_draw_are_an_error(
    capabilities: Capabilities, name: str
) -> None:
    with pytest.raises(ValueError, match=rf"capabilities\.\w*{name}.*leaves nothing to draw"):
        find(problems(capabilities=capabilities), lambda _: True, settings=QUIET)


@examples(40)
@given(st.data())
def test_bounds_of_the_batch_hold(data: st.DataObject) -> None:
    max_seqs = data.draw(st.integers(1, 3))
    max_len = data.draw(st.integers(1, 40))
    max_kv_heads = data.draw(st.integers(1, 3))
    problem = data.draw(
        problems(max_seqs=max_seqs, max_len=max_len, max_kv_heads=max_kv_heads, prefill=False)
    )
    assert len(problem.requests) <= max_seqs
    assert problem.max_seq_len <= max_len
    assert problem.num_kv_heads <= max_kv_heads
    assert problem.max_query_len <= 1
    assert problem.shared_prefix <= problem.max_seq_len


@examples(40)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 60), st.data())
def test_requests_of_a_stream_have_its_lengths(
    prompt: int, output: int, max_len: int, data: st.DataObject
) -> None:
    problem = data.draw(problems(lengths=[(prompt, output)], max_len=max_len, max_seqs=2))
    for request in problem.requests:
        assert request.seq_len <= max_len
        at_the_prompt = request.seq_len == min(prompt, max_len) and request.query_len <= 24
        shortest, longest = min(prompt + 1, max_len), min(prompt + max(output, 1), max_len)
        decoding = request.query_len == 1 and shortest <= request.seq_len <= longest
        assert at_the_prompt or decoding


@examples(100)
@given(st.sampled_from(BLOCK_SIZES), st.integers(0, 300), st.data())
def test_lengths_stay_within_their_bounds(
    block_size: int, max_len: int, data: st.DataObject
) -> None:
    assert 0 <= data.draw(seq_lens(block_size, max_len=max_len)) <= max_len


QUIET = settings(database=None, max_examples=1000)


def shares_a_block(problem: AttentionProblem) -> bool:
    holders = [r for r in problem.requests if r.seq_len >= problem.block_size]
    return problem.shared_prefix >= problem.block_size and len(holders) > 1


# What a failure looks like when exactly this provokes it.
MINIMAL: dict[str, Callable[[AttentionProblem], bool]] = {
    "(q2 k2) d16 b16 fp32": lambda p: p.max_query_len > 1,
    "(q1 k2) d16 b16 fp32 window=1": lambda p: p.window is not None and p.max_seq_len > p.window,
    "2x(q1 k16) d16 b16 fp32 shared=16": shares_a_block,
}


@pytest.mark.parametrize(("spec", "provokes"), MINIMAL.items(), ids=MINIMAL)
def test_a_failure_shrinks_to_a_line_that_names_its_cause(
    spec: str, provokes: Callable[[AttentionProblem], bool]
) -> None:
    found = find(problems(max_seqs=2), provokes, settings=QUIET, random=Random(0))
    assert str(found) == spec


def test_a_variant_that_does_not_matter_is_shrunk_away() -> None:
    found_one = False

    def provokes(problem: AttentionProblem) -> bool:
        nonlocal found_one
        # The first failure that is met happens to be noncausal; that is not its cause.
        if problem.max_query_len < 2 or (problem.causal and not found_one):
            return False
        found_one = True
        return True

    found = find(problems(max_seqs=2), provokes, settings=QUIET, random=Random(5))
    assert str(found) == "(q2 k2) d16 b16 fp32"


def features(problem: AttentionProblem) -> set[str]:
    found = {
        f"d{problem.head_dim}",
        f"b{problem.block_size}",
        f"g{problem.group_size}",
        problem.dtype,
        f"cache {problem.kv_dtype}",
        f"inputs {problem.inputs}",
        *variants_of(problem),
    }
    query_lens = {request.query_len for request in problem.requests}
    edges = {
        "padding row": any(r == Request(1, 0) for r in problem.requests),
        "empty request": any(r == Request(0, 0) for r in problem.requests),
        "no query token at all": not problem.num_tokens,
        "waiting sequence": any(r.query_len == 0 < r.seq_len for r in problem.requests),
        "length 1": any(r == Request(1, 1) for r in problem.requests),
        "decode": any(r.query_len == 1 < r.seq_len for r in problem.requests),
        "chunked prefill": any(1 < r.query_len < r.seq_len for r in problem.requests),
        "whole prefill": any(1 < r.query_len == r.seq_len for r in problem.requests),
        "mixed batch": 1 in query_lens and max(query_lens) > 1,
        "several KV heads": problem.num_kv_heads > 1,
        "shared block": shares_a_block(problem),
        "prefix that ends within a block": problem.shared_prefix % problem.block_size > 0,
        "full last block": any(r.seq_len and not r.seq_len % 64 for r in problem.requests),
        "one past a block": any(r.seq_len % 64 == 1 for r in problem.requests),
        "window that cuts": problem.window is not None and problem.window < problem.max_seq_len,
        "scale": problem.scale is not None,
        "scaled keys": problem.k_scale != 1,
        "scaled values": problem.v_scale != 1,
        "three variants at once": len(variants_of(problem) - {"prefill"}) >= 3,
        "no variant": not variants_of(problem),
        "lone sequence": len(problem.requests) == 1,
        "four sequences": len(problem.requests) == 4,
    }
    return found | {name for name, there in edges.items() if there}


EXPECTED_FEATURES = {
    *(f"d{head_dim}" for head_dim in (16, 32, 64, 80, 96, 128, 256)),
    *(f"b{2**power}" for power in range(9)),
    *(f"g{size}" for size in GROUP_SIZES),
    *("fp32", "fp16", "bf16"),
    *(f"cache {name}" for name in ("fp32", "fp16", "bf16", "e4m3", "e5m2")),
    *("inputs flat", "inputs needle", "inputs loud", "inputs sunken"),
    *("prefill", "noncausal", "window", "softcap", "alibi", "sinks"),
    *("padding row", "empty request", "no query token at all", "length 1", "decode"),
    *("waiting sequence",),
    *("chunked prefill", "whole prefill", "mixed batch", "several KV heads"),
    *("shared block", "prefix that ends within a block", "full last block", "one past a block"),
    *("window that cuts", "scale", "scaled keys", "scaled values"),
    *("three variants at once", "no variant", "lone sequence", "four sequences"),
}


def test_six_hundred_draws_reach_every_variant_and_edge() -> None:
    reached: Counter[str] = Counter()
    offsets: Counter[int] = Counter()

    # A statement about the strategy, so the same draws in every run and under every profile.
    @settings(max_examples=600, derandomize=True, database=None, phases=[Phase.generate])
    @given(problems())
    def draw(problem: AttentionProblem) -> None:
        reached.update(features(problem))
        offsets.update(request.seq_len % 64 for request in problem.requests if request.seq_len > 1)

    draw()
    assert set(HEAD_DIMS) == {16, 32, 64, 80, 96, 128, 256}
    assert EXPECTED_FEATURES - set(reached) == set()
    # By chance alone, each place in a tile of 64 would be drawn equally often.
    for beside_a_boundary in (63, 0, 1):
        assert offsets[beside_a_boundary] > 2 * offsets.total() / 64
    # The common kinds are common: a run of a few dozen problems meets each of them.
    for common in ("prefill", "window", "softcap", "alibi", "sinks", "noncausal", "mixed batch"):
        assert reached[common] > 30, f"{common} in {reached[common]} of 600 problems"
