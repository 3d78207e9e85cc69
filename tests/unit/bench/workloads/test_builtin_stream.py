"""Built-in streams meet the table they are drawn from, and repeat."""

import numpy as np
import pytest

from bench.workloads.builtin import LEVELS, STREAM_LAWS, builtin_stream

INNER = [level for level in LEVELS if 0.0 < level < 1.0]


@pytest.fixture(scope="module", params=STREAM_LAWS)
def law_and_draw(request):
    return STREAM_LAWS[request.param], builtin_stream(request.param, num_requests=200_000)


def test_a_big_draw_meets_every_quantile_of_the_table_and_reaches_its_ends(law_and_draw):
    law, stream = law_and_draw
    for table, drawn in (
        (law.prompt_tokens, stream.prompt_tokens),
        (law.output_tokens, stream.output_tokens),
    ):
        assert table[0] <= drawn.min() <= 1.01 * table[0] + 1
        assert 0.9 * table[-1] <= drawn.max() <= table[-1]
        for level, tokens in zip(INNER, table[1:-1], strict=True):
            # Four standard errors of an empirical level; the law's steps at ties and the rounding
            # to whole tokens may only widen what lies at or below the tabled length.
            slack = 4 * np.sqrt(level * (1 - level) / drawn.size)
            assert np.mean(drawn < tokens) <= level + slack
            assert np.mean(drawn <= tokens) >= level - slack


def test_arrivals_are_poisson_at_the_published_rate(law_and_draw):
    law, stream = law_and_draw
    if law.rate_per_s is None:
        assert stream.arrival_s is None
        return
    gaps = np.diff(stream.arrival_s)
    assert stream.arrival_s[0] == 0.0
    assert 1 / gaps.mean() == pytest.approx(law.rate_per_s, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.01)
    # An exponential law has this share of its gaps below its mean; evenly spread ones have half.
    assert np.mean(gaps < gaps.mean()) == pytest.approx(1 - np.exp(-1), abs=0.005)


def test_the_columns_are_drawn_apart(law_and_draw):
    _, stream = law_and_draw
    assert abs(np.corrcoef(stream.prompt_tokens, stream.output_tokens)[0, 1]) < 0.01


def test_every_law_rises_and_names_its_source_and_licence():
    for law in STREAM_LAWS.values():
        assert "CC-BY-4.0" in law.source or "Apache-2.0" in law.source
        for table in (law.prompt_tokens, law.output_tokens):
            assert len(table) == len(LEVELS)
            assert list(table) == sorted(table)
            assert table[0] >= 1


@pytest.mark.parametrize("name", STREAM_LAWS)
def test_the_same_seed_gives_the_same_stream_and_another_another(name):
    first, again = builtin_stream(name, seed=3), builtin_stream(name, seed=3)
    assert len(first) == 2000
    assert first.prompt_tokens.tolist() == again.prompt_tokens.tolist()
    assert first.output_tokens.tolist() == again.output_tokens.tolist()
    assert first.prompt_tokens.tolist() != builtin_stream(name, seed=4).prompt_tokens.tolist()


def test_arrivals_go_on_where_a_chunk_ends():
    arrival_s = builtin_stream(num_requests=40_000, rate_per_s=1.0, seed=6).arrival_s
    gaps_s = -np.log1p(-np.random.default_rng(np.random.SeedSequence(6).spawn(3)[2]).random(40_000))
    gaps_s[0] = 0.0
    assert arrival_s.tolist() == np.cumsum(gaps_s).tolist()


def test_the_default_draw_is_pinned():
    """Records compare by these lengths: a change of the drawing is a change of every record."""
    stream = builtin_stream()
    assert stream.prompt_tokens[:6].tolist() == [3334, 509, 1169, 231, 762, 1117]
    assert stream.output_tokens[:6].tolist() == [285, 83, 213, 113, 409, 399]


def test_a_rate_may_be_given_where_the_data_set_has_none():
    stream = builtin_stream("sharegpt", num_requests=20_000, rate_per_s=2.0)
    assert 1 / np.diff(stream.arrival_s).mean() == pytest.approx(2.0, rel=0.03)
