"""Capabilities: a kernel says what it cannot do, and is neither asked for it nor let off."""

import dataclasses

import pytest
import torch
from hypothesis import given

from helpers.profiles import examples
from reference.attention.contract import (
    VARIANTS,
    Capabilities,
    PagedBatch,
    capabilities_of,
    declares,
    variants_of,
)
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import FP8_DTYPES, QUERY_DTYPES, AttentionProblem
from reference.attention.strategies import problems

PROBLEM = AttentionProblem.parse("(q1 k9) h2 g2 d80 b32 fp16 kv=e4m3")


@examples(60)
@given(problems())
def test_who_declares_nothing_is_held_to_everything(problem: AttentionProblem) -> None:
    assert Capabilities().refusal(problem) is None


# A problem, capabilities that are just enough for it, ones that are not, and what is said then.
DIMENSIONS = {
    "dtype": (
        PROBLEM,
        Capabilities(dtypes=frozenset({"fp16"})),
        Capabilities(dtypes=frozenset({"fp32", "bf16"})),
        "dtype fp16",
    ),
    "cache dtype": (
        PROBLEM,
        Capabilities(kv_dtypes=frozenset({"e4m3"})),
        Capabilities(kv_dtypes=frozenset({"e5m2"})),
        "cache dtype e4m3",
    ),
    "no float8 at all": (
        PROBLEM.replace(kv_dtype="fp16"),
        Capabilities(kv_dtypes=frozenset()),
        Capabilities(kv_dtypes=frozenset(), dtypes=frozenset()),
        "dtype fp16",
    ),
    "head size": (
        PROBLEM,
        Capabilities(head_dims=frozenset({64, 80})),
        Capabilities(head_dims=frozenset({64, 128})),
        "head size 80",
    ),
    "largest head size": (
        PROBLEM,
        Capabilities(max_head_dim=80),
        Capabilities(max_head_dim=72),
        "head size 80",
    ),
    "both head sizes": (
        PROBLEM,
        Capabilities(head_dims=frozenset({80}), max_head_dim=128),
        Capabilities(head_dims=frozenset({80}), max_head_dim=64),
        "head size 80",
    ),
    "block size": (
        PROBLEM,
        Capabilities(block_sizes=frozenset({16, 32})),
        Capabilities(block_sizes=frozenset({16, 64})),
        "block size 32",
    ),
    **{
        variant: (
            AttentionProblem.parse(f"{'(q2 k9)' if words == 'prefill' else '(q1 k9) ' + words}"),
            Capabilities(variants=frozenset({variant})),
            Capabilities(variants=frozenset(VARIANTS) - {variant}),
            f"variant {variant}",
        )
        for variant, words in {
            "prefill": "prefill",
            "noncausal": "noncausal",
            "window": "window=3",
            "softcap": "softcap=30",
            "alibi": "alibi",
            "sinks": "sinks",
        }.items()
    },
}


@pytest.mark.parametrize(
    ("problem", "able", "unable", "refusal"), DIMENSIONS.values(), ids=DIMENSIONS
)
def test_a_kernel_refuses_what_it_cannot_do_and_nothing_else(
    problem: AttentionProblem, able: Capabilities, unable: Capabilities, refusal: str
) -> None:
    assert able.refusal(problem) is None
    assert unable.refusal(problem) == refusal


def test_every_missing_variant_is_named() -> None:
    problem = AttentionProblem.parse("(q2 k9) window=3 alibi sinks")
    assert Capabilities(variants=frozenset({"prefill"})).refusal(problem) == (
        "variant alibi, sinks, window"
    )


def test_a_plain_decode_needs_no_variant() -> None:
    decode = AttentionProblem.parse("3x(q1 k9) (q1 k0) (q0 k0)")
    assert variants_of(decode) == frozenset()
    assert Capabilities(variants=frozenset()).refusal(decode) is None


@examples(60)
@given(problems())
def test_the_variants_of_a_problem_are_known_ones(problem: AttentionProblem) -> None:
    assert variants_of(problem) <= set(VARIANTS)
    assert Capabilities(variants=variants_of(problem)).refusal(problem) is None
    for variant in variants_of(problem):
        without = Capabilities(variants=variants_of(problem) - {variant})
        assert without.refusal(problem) == f"variant {variant}"


@pytest.mark.parametrize(
    ("field", "known"),
    [("dtypes", QUERY_DTYPES), ("kv_dtypes", FP8_DTYPES), ("variants", VARIANTS)],
)
def test_a_name_that_nobody_knows_is_an_error_that_lists_the_known(
    field: str, known: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=f"{field}: 'bogus' is unknown") as complaint:
        Capabilities(**{field: frozenset({"bogus", *list(known)[:1]})})
    assert str(complaint.value).endswith(f"use {', '.join(known)}")


TOGETHER = Capabilities(
    never_together=frozenset({"kv_dtype=e4m3 head_dim=80", "alibi noncausal", "dtype=bf16 sinks"})
)


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ("(q1 k9) d80 b16 fp16 kv=e4m3", "kv_dtype=e4m3 head_dim=80 together"),
        ("(q1 k9) d80 b16 fp16 kv=e5m2", None),
        ("(q1 k9) d64 b16 fp16 kv=e4m3", None),
        ("(q3 k9) d64 b16 fp32 alibi noncausal", "alibi noncausal together"),
        ("(q3 k9) d64 b16 fp32 alibi", None),
        ("(q3 k9) d64 b16 fp32 noncausal", None),
        ("(q1 k9) d64 b16 bf16 sinks", "dtype=bf16 sinks together"),
        ("(q1 k9) d64 b16 fp16 sinks", None),
    ],
)
def test_what_works_alone_may_not_work_at_once(spec: str, refused: str | None) -> None:
    assert TOGETHER.refusal(AttentionProblem.parse(spec)) == refused


@examples(60)
@given(problems(capabilities=TOGETHER))
def test_what_does_not_work_at_once_is_not_drawn(problem: AttentionProblem) -> None:
    assert TOGETHER.refusal(problem) is None


@pytest.mark.parametrize("words", ["alibi bogus", "heads=3", "kv=e4m3"])
def test_words_that_nobody_knows_are_an_error_too(words: str) -> None:
    with pytest.raises(ValueError, match=r"never_together: '\S+' in .* unknown; use prefill, "):
        Capabilities(never_together=frozenset({words}))


def test_a_query_dtype_is_no_cache_dtype() -> None:
    with pytest.raises(ValueError, match="kv_dtypes: 'bf16' is unknown; use e4m3, e5m2"):
        Capabilities(kv_dtypes=frozenset({"bf16"}))


def kernel(batch: PagedBatch) -> None:
    batch.out.zero_()


def test_capabilities_are_read_off_the_function() -> None:
    mine = Capabilities(block_sizes=frozenset({16}))

    def plain(batch: PagedBatch) -> None:
        kernel(batch)

    assert capabilities_of(plain) == Capabilities()
    declared = declares(mine)(plain)
    assert declared is plain
    assert capabilities_of(declared) is mine


def test_capabilities_are_read_off_a_callable_object() -> None:
    class Kernel:
        capabilities = Capabilities(dtypes=frozenset({"fp16"}))

        def __call__(self, batch: PagedBatch) -> None:
            kernel(batch)

    assert capabilities_of(Kernel()) is Kernel.capabilities


@pytest.mark.parametrize("wrong", [{"dtypes": ["fp16"]}, Capabilities, "fp16", 3, ()])
def test_capabilities_of_another_type_are_an_error(wrong: object) -> None:
    def declared(batch: PagedBatch) -> None:
        kernel(batch)

    declared.capabilities = wrong  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"must be a pagedbench\.Capabilities") as complaint:
        capabilities_of(declared)
    assert repr(wrong) in str(complaint.value)


def test_capabilities_and_calls_are_values_that_do_not_change() -> None:
    batch = place(make_inputs(PROBLEM)).batch
    for value, field in ((Capabilities(), "dtypes"), (batch, "scale")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


def test_replace_makes_another_call_on_the_same_tensors() -> None:
    batch = place(make_inputs(PROBLEM)).batch
    other = batch.replace(lse=None, scale=2.0)
    assert other.lse is None
    assert other.scale == 2.0
    assert other.out is batch.out
    assert batch.lse is not None


def test_sizes_are_read_off_the_tensors() -> None:
    batch = place(make_inputs(PROBLEM)).batch
    assert (batch.block_size, batch.num_kv_heads, batch.group_size) == (32, 2, 2)


def test_the_cache_of_a_call_is_strided_and_its_last_dimension_contiguous() -> None:
    batch = place(make_inputs(PROBLEM)).batch
    assert not batch.key_cache.is_contiguous()
    assert batch.key_cache.stride(-1) == batch.value_cache.stride(-1) == 1
    assert batch.key_cache.dtype == torch.float8_e4m3fn
