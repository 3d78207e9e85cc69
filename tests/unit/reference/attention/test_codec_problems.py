"""Caches in a codec as problems: their words, who is asked, how they are drawn and laid out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, find, given, settings

from paged.attention import paged_attention
from paged.latent import paged_latent_attention
from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.codecs import decode
from reference.attention.contract import Capabilities, PagedBatch, capabilities_of, everything
from reference.attention.features import feature, features_of
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem, InvalidProblem
from reference.attention.records import CODECS
from reference.attention.strategies import problems

SPECS = {
    name: f"(q1 k77) (q5 k21) (q1 k0) d80 b16 bf16 codec={name} rope=16 shared=18"
    if of.latent
    else f"(q1 k77) (q5 k21) (q1 k0) h2 g3 d64 b16 bf16 codec={name} shared=18"
    for name, of in CODECS.items()
}


def reader(codec: str):
    return paged_latent_attention if CODECS[codec].latent else paged_attention


@pytest.mark.parametrize("codec", CODECS)
def test_a_spec_says_the_codec_and_a_kernel_has_to_name_it(codec: str) -> None:
    problem = AttentionProblem.parse(SPECS[codec])
    assert problem.codec == codec
    assert AttentionProblem.parse(str(problem)) == problem
    kind = "latent" if CODECS[codec].latent else "attention"
    assert Capabilities(kind=kind).refusal(problem) == f"codec {codec}"
    assert Capabilities(kind=kind, codecs=frozenset({codec})).refusal(problem) is None
    assert f"codec={codec}" in features_of(problem)
    assert "kv_dtype=same" not in features_of(problem)
    assert feature(f"codec={codec}").supported_by(everything(kind))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("codec=int2", "codec=int2: choose one of e4m3-head, "),
        ("codec=nvfp4 kv=e4m3", "a codec says what the cache is of"),
        ("codec=nvfp4 rope=16", "is not of latent caches"),
        ("codec=fp8-ds-mla", "needs rope="),
        ("codec=int8-token-head kscale=0.5", "only a float8 cache has scales, and nvfp4"),
        ("codec=nvfp4-swizzled dv=32", "a multiple of 64"),
        ("codec=nvfp4-swizzled b2", "one of 4 tokens"),
        ("codec=nvfp4 parts=2", "neither cache nor logits"),
    ],
)
def test_what_no_codec_can_be_asked_is_refused(words: str, complaint: str) -> None:
    block = "" if " b" in words else " b16"
    with pytest.raises(InvalidProblem, match=complaint):
        AttentionProblem.parse(f"(q1 k9) d64{block} bf16 {words}")


def test_an_unknown_codec_is_no_capability() -> None:
    with pytest.raises(ValueError, match="capability codecs: 'int2' is unknown; use e4m3-head"):
        Capabilities(codecs=frozenset({"int2"}))
    never = Capabilities(
        codecs=frozenset({"nvfp4"}), never_together=frozenset({"codec=nvfp4 head_dim=64"})
    )
    assert never.refusal(AttentionProblem.parse(SPECS["nvfp4"])) is not None


def test_codecs_are_drawn_for_whoever_names_them_and_shrink_away() -> None:
    able = capabilities_of(paged_attention)
    drawn: list[AttentionProblem] = []
    few = settings(max_examples=150, database=None, derandomize=True, phases=[Phase.generate])

    @few
    @given(problems(capabilities=able, max_seqs=1))
    def draw(problem: AttentionProblem) -> None:
        drawn.append(problem)

    draw()
    assert {problem.codec for problem in drawn} - {"nvfp4-swizzled"} == {"", *able.codecs} - {
        "nvfp4-swizzled"
    }
    assert len({problem.k_scale for problem in drawn if problem.codec == "nvfp4"}) > 1
    shrunk = find(
        problems(capabilities=able, max_seqs=1),
        lambda problem: problem.codec == "int8-token-head",
        settings=settings(max_examples=50, database=None, derandomize=True),
    )
    assert shrunk.max_seq_len <= 1
    assert problems_without_codecs() == {""}


def problems_without_codecs() -> set[str]:
    drawn = set()

    @settings(max_examples=15, database=None, derandomize=True, phases=[Phase.generate])
    @given(problems(max_seqs=1))
    def draw(problem: AttentionProblem) -> None:
        drawn.add(problem.codec)

    draw()
    return drawn


@pytest.mark.parametrize("codec", CODECS)
def test_our_torch_reads_it_under_every_check(codec: str) -> None:
    problem = AttentionProblem.parse(SPECS[codec])
    for dtype in ("fp32", "bf16"):
        asked = problem.replace(dtype=dtype, kv_dtype=dtype)
        for check in CHECKS:
            if check.applies(asked) and check.name != "memory":
                verdict = run_check(check, reader(codec), asked)
                assert verdict.status == "passed", verdict
    found = run_check(CHECKS[1], _ignores_the_codec, problem)
    assert found.status == "not supported" or found.wrong


def _ignores_the_codec(batch: PagedBatch) -> None:
    batch.out.zero_()


@pytest.mark.parametrize("poison", ["nan", "large"])
@pytest.mark.parametrize("codec", CODECS)
def test_bytes_of_nobody_are_poison_and_the_others_the_records(codec: str, poison: str) -> None:
    problem = AttentionProblem.parse(SPECS[codec])
    inputs = make_inputs(problem)
    placement = place(inputs, poison=poison)
    keys = placement.batch.key_cache
    assert keys.dtype == torch.uint8
    assert keys.shape[3] == CODECS[codec].bytes_of(problem.head_dim, problem.rope or 0)
    flat = keys.flatten(0, 1)
    assert torch.equal(flat[placement.owned_slots], inputs.keys)
    nobodys = torch.ones(len(flat), dtype=torch.bool)
    nobodys[placement.owned_slots] = False
    rope = problem.rope or 0
    held = decode(codec, flat[nobodys], problem.head_dim, rope=rope)
    assert bool(held.isnan().all() if poison == "nan" else held.isfinite().all())


def test_tokens_and_heads_differ_in_their_scales() -> None:
    problem = AttentionProblem.parse("(q1 k40) h2 d64 b16 bf16 codec=e4m3-token-head")
    scales = make_inputs(problem).keys[..., 64:].contiguous().view(torch.float32)
    assert len(scales.unique()) == scales.numel()
    problem = AttentionProblem.parse("(q1 k40) d288 b16 bf16 codec=fp8-ds-mla rope=32")
    tiles = make_inputs(problem).keys[..., 256:264].contiguous().view(torch.float32)
    assert float((tiles[..., 0] != tiles[..., 1]).double().mean()) > 0.5


@pytest.mark.parametrize("codec", CODECS)
def test_a_cache_of_no_tokens_is_checked_like_any_other(codec: str) -> None:
    wide = "d80 b16 bf16 rope=16" if CODECS[codec].latent else "d64 b16 bf16"
    problem = AttentionProblem.parse(f"(q1 k0) {wide} codec={codec}")
    for check in CHECKS:
        if check.applies(problem):
            assert not run_check(check, reader(codec), problem).wrong, check.name
