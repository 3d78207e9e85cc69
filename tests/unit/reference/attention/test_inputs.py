"""The tensors of a problem: reproducible, and each kind shows the errors it is meant to show."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from helpers.profiles import examples
from reference.attention.inputs import Inputs, make_inputs, quantise
from reference.attention.problem import AttentionProblem, InvalidProblem, Request
from reference.attention.strategies import problems
from reference.attention.truth import visible


def make(spec: str) -> Inputs:
    return make_inputs(AttentionProblem.parse(spec))


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def logits_of(inputs: Inputs, sequence: int = 0) -> Tensor:
    """scale * q . k of one sequence before any bias or mask, [query_len, heads, group, seq_len]."""
    problem = inputs.problem
    q_starts, k_starts = problem.query_starts, problem.cache_starts
    query = inputs.query[q_starts[sequence] : q_starts[sequence + 1]].double()
    query = query.unflatten(1, (problem.num_kv_heads, problem.group_size))
    keys = inputs.keys[k_starts[sequence] : k_starts[sequence + 1]].double() * problem.k_scale
    return torch.einsum("qhgd,khd->qhgk", query, keys) * problem.softmax_scale


def weights_of(inputs: Inputs, sequence: int = 0) -> Tensor:
    """Softmax weights under the mask; without soft-cap, ALiBi and sinks."""
    request = inputs.problem.requests[sequence]
    seen = visible(inputs.problem, request, torch.device("cpu"))
    hidden = ~seen.view(request.query_len, 1, 1, request.seq_len)
    return logits_of(inputs, sequence).masked_fill(hidden, -math.inf).softmax(-1)


def same_tensors(one: Inputs, other: Inputs) -> bool:
    names = ("query", "keys", "values", "alibi_slopes", "sinks")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(
        (a is None) == (b is None) and (a is None or torch.equal(as_bytes(a), as_bytes(b)))
        for a, b in pairs
    )


@examples(60)
@given(problems())
def test_inputs_are_decided_by_the_problem(problem: AttentionProblem) -> None:
    torch.manual_seed(problem.seed)
    one = make_inputs(problem)
    torch.rand(7)  # the global generator is nobody's business
    assert same_tensors(one, make_inputs(AttentionProblem.parse(str(problem))))


@examples(60)
@given(problems())
def test_inputs_have_the_documented_shapes_and_dtypes(problem: AttentionProblem) -> None:
    inputs = make_inputs(problem)
    heads, head_dim = problem.num_kv_heads, problem.head_dim
    assert inputs.query.shape == (problem.num_tokens, problem.num_q_heads, head_dim)
    assert inputs.keys.shape == inputs.values.shape == (problem.cache_tokens, heads, head_dim)
    assert inputs.query.dtype == problem.torch_dtype
    assert inputs.keys.dtype == inputs.values.dtype == problem.torch_kv_dtype
    for tensor, there in ((inputs.alibi_slopes, problem.alibi), (inputs.sinks, problem.sinks)):
        assert (tensor is not None) == there
        if tensor is not None:
            assert tensor.shape == (problem.num_q_heads,)
            assert tensor.dtype == torch.float32
    for tensor in (inputs.query, inputs.keys, inputs.values):
        assert bool(tensor.float().isfinite().all())


def test_another_seed_gives_other_tensors() -> None:
    one, other = make("(q2 k9) d16"), make("(q2 k9) d16 seed=1")
    for name in ("query", "keys", "values"):
        assert not torch.equal(getattr(one, name), getattr(other, name))


def test_keys_and_values_differ() -> None:
    inputs = make("(q1 k9) d16 shared=9")
    assert not torch.equal(inputs.keys, inputs.values)


@pytest.mark.parametrize(
    "words", ["d16", "d80", "d256", "scale=1.0", "scale=0.05", "h4", "kv=e4m3"]
)
def test_flat_logits_have_a_standard_deviation_of_one(words: str) -> None:
    inputs = make(f"(q200 k200) fp32 g2 {words}")
    logits = logits_of(inputs)
    assert float(logits.std()) == pytest.approx(1, abs=0.05)
    assert abs(float(logits.mean())) < 0.05
    # Every key counts: the heaviest of 200 has a few per cent of the weight.
    assert float(weights_of(inputs)[-1].max()) < 0.3


@pytest.mark.parametrize("words", ["d16", "d64", "d256", "scale=1.0", "kv=e5m2"])
def test_loud_logits_overflow_a_softmax_without_maximum(words: str) -> None:
    logits = logits_of(make(f"(q100 k400) fp32 g2 {words} inputs=loud"))
    assert float(logits.std()) == pytest.approx(40, rel=0.05)
    # exp overflows float32 beyond 88.7: most rows do that, on either side.
    assert float((logits.amax(-1) > 100).double().mean()) > 0.5
    assert float((logits.amin(-1) < -100).double().mean()) > 0.5


# What kernels put in place of minus infinity must not lie above what they see.
@pytest.mark.parametrize("kv", ["", "kv=e4m3 kscale=0.03", "kv=e5m2"])
@pytest.mark.parametrize(
    "words", ["fp32 d16", "fp16 d80", "bf16 d256 scale=1.0", "fp16 d16 scale=0.05"]
)
def test_sunken_logits_lie_below_the_lowest_numbers_that_kernels_use(words: str, kv: str) -> None:
    inputs = make(f"(q30 k200) h2 g2 {words} {kv} inputs=sunken")
    logits = logits_of(inputs)
    assert bool(inputs.query.isfinite().all())
    assert float(logits.max()) < -65_504
    assert float(logits.mean()) == pytest.approx(-80_000, rel=0.05)


@pytest.mark.parametrize(
    "words", ["fp32 d64", "fp16 d80", "bf16 d128", "bf16 d256", "fp16 d64 scale=1.0"]
)
@pytest.mark.parametrize("mask", ["", "window=40", "noncausal"])
@pytest.mark.parametrize("kv", ["", "kv=e4m3 kscale=0.5"])
def test_needles_of_usual_head_sizes_put_all_weight_on_one_key(
    words: str, mask: str, kv: str
) -> None:
    heaviest = weights_of(make(f"(q30 k150) h2 g4 {words} {mask} {kv} inputs=needle")).amax(-1)
    assert float(heaviest.min()) > 0.9
    assert float(heaviest.median()) > 0.999


@pytest.mark.parametrize("words", ["d16", "d32", "d16 kv=e4m3", "d16 scale=1.0"])
def test_needles_of_small_head_sizes_put_most_weight_on_few_keys(words: str) -> None:
    # Two random vectors of 16 elements are not orthogonal: now and then a second key comes close.
    weights = weights_of(make(f"(q30 k150) h2 g4 {words} bf16 inputs=needle"))
    heaviest = weights.sort(-1, descending=True).values
    assert float((heaviest[..., 0] > 0.9).double().mean()) > 0.9
    assert float((heaviest[..., :4].sum(-1) > 0.9).double().mean()) > 0.98


@pytest.mark.parametrize("mask", ["", "window=40", "noncausal"])
def test_needles_point_where_addressing_errs(mask: str) -> None:
    inputs = make(f"(q60 k160) h2 g8 b16 fp32 {mask} inputs=needle")
    problem = inputs.problem
    target = weights_of(inputs).argmax(-1)
    position = torch.arange(100, 160).view(-1, 1, 1)
    last = position if problem.causal else torch.full_like(position, 159)
    first = (last - problem.window + 1) if problem.window else torch.zeros_like(last)
    shares = {
        "first key": target == first,
        "last key": target == last,
        "first slot of a block": target % 16 == 0,
        "last slot of a block": target % 16 == 15,
    }
    for what, hit in shares.items():
        assert float(hit.double().mean()) > 0.15, what
    inside = (target > first) & (target < last) & (target % 16 != 0) & (target % 16 != 15)
    assert float(inside.double().mean()) > 0.1
    assert len(target.unique()) > 40
    assert bool(((target >= first) & (target <= last)).all())


def test_needles_of_one_token_differ_from_head_to_head() -> None:
    target = weights_of(make("(q1 k150) h2 g8 d64 fp32 inputs=needle")).argmax(-1)
    assert len(target.unique()) > 4


def test_needles_in_a_batch_of_empty_sequences_have_nowhere_to_point() -> None:
    inputs = make("2x(q1 k0) (q0 k0) d16 inputs=needle")
    assert inputs.query.shape == (2, 1, 16)
    assert bool(inputs.query.isfinite().all())


@pytest.mark.parametrize("kv", ["", "kv=e4m3 kscale=0.5 vscale=0.03", "kv=e5m2"])
def test_shared_prefix_is_the_same_in_all_sequences_and_ends_where_it_should(kv: str) -> None:
    inputs = make(f"(q1 k20) (q4 k9) (q1 k0) (q1 k13) h2 d16 shared=12 {kv}")
    starts = inputs.problem.cache_starts
    for tensor in (as_bytes(inputs.keys), as_bytes(inputs.values)):
        first = tensor[starts[0] : starts[0] + 20]
        assert torch.equal(first[:9], tensor[starts[1] : starts[1] + 9])
        last = tensor[starts[3] : starts[3] + 13]
        assert torch.equal(first[:12], last[:12])
        assert not torch.equal(first[12], last[12])


def test_without_a_shared_prefix_sequences_have_nothing_in_common() -> None:
    inputs = make("2x(q1 k8) d16 fp32")
    assert not bool((inputs.keys[:8] == inputs.keys[8:]).all(-1).any())


def test_a_prefix_longer_than_every_sequence_is_shared_as_far_as_it_goes() -> None:
    inputs = make("(q1 k8) (q1 k5) d16 fp32 shared=900")
    assert torch.equal(inputs.keys[:5], inputs.keys[8:13])


FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def float8_grid(dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(values, codes) of the finite non-negative numbers of a float8 type, ascending."""
    codes = torch.arange(128, dtype=torch.uint8)
    values = codes.view(dtype).double().numpy()
    finite = np.isfinite(values)
    return values[finite], codes.numpy()[finite]


def nearest_even(numbers: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The float8 nearest to each float64, ties to the even code, saturated: by search."""
    grid, codes = float8_grid(dtype)
    # Past the largest, float64 itself could no longer tell the candidates apart.
    magnitude = np.minimum(np.abs(numbers), grid[-1])
    distance = np.abs(magnitude[:, None] - grid[None, :])
    closest = distance == distance.min(1, keepdims=True)
    # Of two equally near neighbours one has an even code: let it win the argmax.
    chosen = (closest * (1 + (codes % 2 == 0))).argmax(1)
    return np.copysign(grid[chosen], numbers)


def rounding_cases(dtype: torch.dtype) -> np.ndarray:
    """Every float8, every midpoint, both float32 neighbours of each, and what lies beyond."""
    grid, _ = float8_grid(dtype)
    exact = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]).astype(np.float32)
    up, down = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))
    largest = np.float32(grid[-1])
    beyond = np.array([1.01, 1.0625, 1.125, 2.0, 1e30], dtype=np.float32) * largest
    tiny = np.array([1e-45, 1e-30, 1e-8], dtype=np.float32)
    positive = np.concatenate([exact, up, down, beyond, tiny])
    return np.concatenate([positive, -positive])


@pytest.mark.parametrize("dtype", FLOAT8.values(), ids=FLOAT8)
@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0**-7, 8.0])
def test_quantise_rounds_to_nearest_even_and_saturates(dtype: torch.dtype, scale: float) -> None:
    cases = rounding_cases(dtype)
    got = quantise(torch.from_numpy(cases) * scale, dtype, scale).double().numpy()
    expected = nearest_even(cases.astype(np.float64), dtype)
    # The scales are powers of two, so dividing gives the cases back (but for those below float32).
    wrong = (got != expected) & (np.abs(cases) > 1e-36)
    assert not wrong.any(), list(zip(cases[wrong], got[wrong], expected[wrong], strict=True))[:5]
    assert np.abs(got).max() == torch.finfo(dtype).max


@pytest.mark.parametrize("dtype", FLOAT8.values(), ids=FLOAT8)
def test_quantise_divides_in_float32_by_scales_that_are_no_power_of_two(dtype: torch.dtype) -> None:
    numbers = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    for scale in (0.03, 1.7, 3.0):
        divided = numbers.numpy() / np.float32(scale)
        expected = nearest_even(divided.astype(np.float64), dtype)
        assert np.array_equal(quantise(numbers, dtype, scale).double().numpy(), expected)


@pytest.mark.parametrize("dtype", FLOAT8.values(), ids=FLOAT8)
@pytest.mark.parametrize("wide", [torch.float16, torch.bfloat16])
def test_quantise_rounds_half_precision_once(dtype: torch.dtype, wide: torch.dtype) -> None:
    numbers = torch.arange(0, 1 << 15, 3, dtype=torch.int32).to(torch.int16).view(wide)
    numbers = numbers[numbers.isfinite()]
    got = quantise(numbers, dtype, 1.0).double().numpy()
    assert np.array_equal(got, nearest_even(numbers.double().numpy(), dtype))


@pytest.mark.parametrize("dtype", FLOAT8.values(), ids=FLOAT8)
def test_quantise_saturates_infinity_and_keeps_nan(dtype: torch.dtype) -> None:
    special = quantise(torch.tensor([math.inf, -math.inf, math.nan]), dtype, 1.0).float()
    largest = torch.finfo(dtype).max
    assert special[:2].tolist() == [largest, -largest]
    assert bool(special[2].isnan())


def test_a_float8_cache_times_its_scale_is_near_what_it_stands_for() -> None:
    exact = make("(q1 k50) d64 fp32")
    for kv, steps in (("e4m3", 2**-4), ("e5m2", 2**-3)):
        stored = make(f"(q1 k50) d64 fp32 kv={kv} kscale=0.03 vscale=1.7")
        for name, scale in (("keys", 0.03), ("values", 1.7)):
            truth = getattr(exact, name)
            error = (getattr(stored, name).float() * scale - truth).abs()
            # Half a step of the format, and its smallest subnormal near zero.
            assert bool((error <= steps * truth.abs() + 2.0**-9 * scale).all())


@pytest.mark.parametrize("kv", ["", "kv=e4m3"])
def test_select_takes_the_tail_of_the_queries_and_the_head_of_the_cache(kv: str) -> None:
    inputs = make(f"(q1 k5) (q4 k9) (q1 k0) (q3 k7) h2 g2 d16 bf16 sinks {kv}")
    picked = inputs.select([(3, Request(2, 6)), (2, Request(1, 0)), (1, Request(1, 9))])
    assert picked.problem.requests == (Request(2, 6), Request(1, 0), Request(1, 9))
    # Sequence 3 has query rows 6..8 for its tokens 4..6: tokens 4 and 5 are rows 6 and 7.
    assert torch.equal(picked.query, inputs.query[[6, 7, 5, 4]])
    rows = [*range(14, 20), *range(5, 14)]
    for name in ("keys", "values"):
        expected = as_bytes(getattr(inputs, name))[rows]
        assert torch.equal(as_bytes(getattr(picked, name)), expected)
    assert picked.sinks is inputs.sinks
    assert picked.problem == inputs.problem.replace(requests=picked.problem.requests)


def test_select_of_everything_changes_nothing() -> None:
    inputs = make("(q1 k5) (q4 k9) (q1 k0) (q0 k3) d16 alibi")
    everything = inputs.select(list(enumerate(inputs.problem.requests)))
    assert everything.problem == inputs.problem
    assert same_tensors(everything, inputs)


def test_select_may_take_a_sequence_twice() -> None:
    inputs = make("(q2 k5) d16")
    twice = inputs.select([(0, Request(1, 5)), (0, Request(1, 4))])
    assert torch.equal(twice.query, inputs.query[[1, 0]])
    assert twice.keys.shape[0] == 9


@pytest.mark.parametrize("request_", [Request(1, 6), Request(3, 5), Request(2, 4), Request(1, 3)])
def test_select_refuses_tokens_that_the_sequence_lacks(request_: Request) -> None:
    inputs = make("(q1 k9) (q2 k5) d16")
    with pytest.raises(ValueError, match="asks for tokens that sequence 1"):
        inputs.select([(1, request_)])


def test_select_of_a_cache_without_queries_is_possible() -> None:
    picked = make("(q1 k9) d16").select([(0, Request(0, 3))])
    assert picked.query.shape[0] == 0
    assert picked.keys.shape[0] == 3


def test_select_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one request"):
        make("(q1 k9) d16").select([])


def test_a_scale_whose_queries_overflow_is_refused():
    spec = "(q1 k40) d64 b16 {} scale=1e-6"
    with pytest.raises(InvalidProblem, match=r"scale=1e-06: queries .* overflow fp16"):
        make_inputs(AttentionProblem.parse(spec.format("fp16")))
    assert make_inputs(AttentionProblem.parse(spec.format("bf16"))).query.isfinite().all()
