"""Features of problems: each is shown by some problem, and what is declared decides which."""

import pytest
from hypothesis import given

from helpers.profiles import examples
from reference.attention.catalogue import CHECKS
from reference.attention.contract import VARIANTS, Capabilities, variants_of
from reference.attention.coverage import can_show
from reference.attention.features import (
    FEATURES,
    Feature,
    UnknownFeature,
    feature,
    features_for,
    features_of,
    witnesses,
)
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems

EVERYTHING = Capabilities()
NARROW = Capabilities(
    dtypes=frozenset({"bf16"}),
    kv_dtypes=frozenset(),
    head_dims=frozenset({72, 128}),
    block_sizes=frozenset({32}),
    variants=frozenset({"window"}),
)


def shown(spec: str) -> set[str]:
    return set(features_of(AttentionProblem.parse(spec)))


@pytest.mark.parametrize(
    ("spec", "features"),
    [
        ("(q1 k9) d16 b16 bf16", {"decode", "kv_dtype=same", "dtype=bf16", "heads=mha"}),
        ("(q3 k3) d16 b16 bf16", {"prefill"}),
        ("(q3 k9) d16 b16 bf16", {"prefill", "chunked"}),
        ("(q3 k3) (q1 k9) d16 b16 bf16", {"prefill", "mixed"}),
        ("(q1 k9) (q1 k0) (q0 k9) d16 b16 bf16", {"decode", "padding", "waiting"}),
        ("(q1 k0) d16 b16 bf16", {"padding"}),
        ("2x(q1 k9) d16 b8 bf16 shared=8", {"decode", "shared_prefix"}),
        ("2x(q1 k9) d16 b8 bf16 shared=7", {"decode"}),
        ("(q1 k9) g2 d16 b16 bf16", {"decode", "heads=mqa"}),
        ("(q1 k9) h2 g2 d16 b16 bf16", {"decode", "heads=gqa"}),
        ("(q1 k9) d72 b16 fp16 kv=e5m2", {"head_dim=72", "dtype=fp16", "kv_dtype=e5m2"}),
        ("(q1 k9) d16 b2 bf16 window=3 softcap=5.0", {"window", "softcap", "block_size=2"}),
        ("(q1 k9) d16 b2 bf16 noncausal alibi sinks", {"noncausal", "alibi", "sinks"}),
        ("(q1 k9) d16 b2 bf16 scale=0.5 inputs=loud", {"scale", "inputs=loud"}),
    ],
)
def test_what_a_problem_shows(spec: str, features: set[str]) -> None:
    batch = {"decode", "prefill", "mixed", "chunked", "padding", "waiting", "shared_prefix"}
    variants = {"noncausal", "window", "softcap", "alibi", "sinks", "scale"}
    assert features <= shown(spec)
    if features & batch:
        assert shown(spec) & batch == features & batch
    assert shown(spec) & variants == features & variants


@examples(120)
@given(problems())
def test_a_problem_shows_one_of_each_kind_and_the_variants_that_it_needs(
    problem: AttentionProblem,
) -> None:
    names = features_of(problem)
    for kind in ("dtype", "kv_dtype", "head_dim", "block_size", "heads", "inputs"):
        assert sum(name.startswith(f"{kind}=") for name in names) == 1, kind
    assert names & set(VARIANTS) - {"lse"} == variants_of(problem)


@examples(120)
@given(problems())
def test_whatever_is_drawn_has_a_witness(problem: AttentionProblem) -> None:
    # Otherwise a cell would be called impossible, or a check skipped, that a problem can show.
    for name in features_of(problem):
        for check in CHECKS:
            if check.applies(problem):
                assert can_show(check, EVERYTHING, feature(name)), (name, check.name)


PICKY = Capabilities(
    never_together=frozenset(
        {
            "kv_dtype=e4m3 head_dim=16",
            "dtype=fp32 kv_dtype=e5m2",
            "block_size=1 window",
            "block_size=2 prefill",
            "prefill noncausal",
            "kv_dtype=bf16 block_size=4",
        }
    )
)


@pytest.mark.parametrize("able", [NARROW, PICKY], ids=["narrow", "picky"])
def test_whatever_is_drawn_for_a_kernel_that_cannot_do_all_has_a_witness(
    able: Capabilities,
) -> None:
    @examples(60)
    @given(problems(capabilities=able))
    def has_a_witness(problem: AttentionProblem) -> None:
        for name in features_of(problem) - {"lse"}:
            assert feature(name).supported_by(able), name
            for check in CHECKS:
                if check.applies(problem):
                    assert can_show(check, able, feature(name)), (name, check.name)

    has_a_witness()


def test_what_a_kernel_cannot_do_at_once_has_no_witness() -> None:
    growth = next(check for check in CHECKS if check.name == "growth")
    assert can_show(growth, PICKY, feature("window"))
    assert not can_show(growth, PICKY, feature("window"), feature("block_size=1"))
    assert not can_show(growth, PICKY, feature("block_size=2"))
    assert can_show(growth, PICKY, feature("kv_dtype=e4m3"))
    assert not can_show(growth, PICKY, feature("kv_dtype=e4m3"), feature("head_dim=16"))
    assert can_show(growth, PICKY, feature("kv_dtype=e5m2"))


@pytest.mark.parametrize("wanted", FEATURES, ids=lambda feature: feature.name)
def test_witnesses_show_the_feature_within_the_capabilities(wanted: Feature) -> None:
    found = list(witnesses(EVERYTHING, (wanted,)))
    assert found
    assert all(wanted.name in features_of(problem) for problem in found)
    for problem in witnesses(NARROW, (wanted,)):
        assert NARROW.refusal(problem) is None
        assert wanted.name in features_of(problem)


def test_what_a_kernel_does_not_declare_is_not_supported() -> None:
    unsupported = {feature.name for feature in FEATURES if not feature.supported_by(NARROW)}
    sizes = {f"head_dim={size}" for size in (16, 32, 64, 80, 96, 256)}
    sizes |= {f"block_size={size}" for size in (1, 2, 4, 8, 16, 64, 128, 256)}
    variants = {"noncausal", "softcap", "alibi", "sinks", "lse", "prefill", "mixed", "chunked"}
    variants |= {"short_query"}
    dtypes = {"dtype=fp32", "dtype=fp16", "kv_dtype=e4m3", "kv_dtype=e5m2"}
    assert unsupported == sizes | variants | dtypes
    small = Capabilities(max_head_dim=64)
    assert [f.name for f in FEATURES if not f.supported_by(small)] == [
        "head_dim=80",
        "head_dim=96",
        "head_dim=128",
        "head_dim=256",
    ]


def test_sizes_that_are_declared_or_were_seen_stand_among_the_others() -> None:
    names = [feature.name for feature in features_for(NARROW, {"block_size=1", "head_dim=24"})]
    sizes = [int(name.partition("=")[2]) for name in names if name.startswith("head_dim=")]
    assert sizes == [16, 24, 32, 64, 72, 80, 96, 128, 256]
    assert len(names) == len(set(names)) == len(FEATURES) + 2


@pytest.mark.parametrize(
    "name", ["windows", "head_dim=20", "head_dim=584", "block_size=3", "block_size=", "head_dim=²"]
)
def test_a_name_that_is_no_feature_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UnknownFeature, match=r"is no feature of a problem; use one of dtype=fp32"):
        feature(name)


def test_a_feature_of_any_legal_size_is_one_object() -> None:
    assert feature("head_dim=72") is feature("head_dim=72")
    assert feature("block_size=16") is next(f for f in FEATURES if f.name == "block_size=16")
