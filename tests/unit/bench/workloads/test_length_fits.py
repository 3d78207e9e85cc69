"""The fitted laws have the published moments, exactly, and what is drawn has those of the law."""

import dataclasses

import numpy as np
import pytest

from bench.workloads.fits import FITS, Gamma, LengthFit, LengthLaw, Lognormal, fitted
from bench.workloads.source import read_all
from studies.derive_fits import SOLVED
from studies.length_moments import moments

# Prompt mean, output mean, E[o^2] / E[o], E[i o] / E[o]: figures 11 and 2 of the PagedAttention
# paper; for Azure the trace's, to the digits of its published table.
PUBLISHED = {
    "sharegpt-fit": ((161.31, 0.005), (337.99, 0.005), (598, 0.05), (159.6, 0.005)),
    "alpaca-fit": ((19.31, 0.005), (58.45, 0.005), (2 * 58.45, 0.01), (19.31, 0.005)),
    "azure-fit": ((1155, 0.5), (211, 0.5), (337, 0.5), (1059, 0.5)),
    "azure-code-fit": ((2048, 0.5), (28, 0.5), (156, 0.5), (2053, 6)),
}
CVS = {
    "sharegpt-fit": (1.39, 0.877),
    "alpaca-fit": (0.6, 1.0),
    "azure-fit": (0.96, 0.77),
    "azure-code-fit": (0.96, 2.15),
}


@pytest.fixture(scope="module", params=FITS)
def drawn(request):
    return request.param, read_all(LengthFit(name=request.param, num_requests=400_000, seed=5))


@pytest.mark.parametrize("name", FITS)
def test_the_laws_moments_are_the_published(name):
    exact = moments(FITS[name].law)
    reached = (
        exact.prompt_mean,
        exact.output_mean,
        exact.output_weighted_output,
        exact.output_weighted_prompt,
    )
    for value, (published, slack) in zip(reached, PUBLISHED[name], strict=True):
        assert value == pytest.approx(published, abs=slack)
    assert (exact.prompt_cv, exact.output_cv) == pytest.approx(CVS[name], abs=0.004)


def test_the_outputs_second_moment_is_that_of_the_papers_memory_figure():
    """Orca (Max), OPT-13B: 15,728 slots, 7 reservations of 2048, shares of figure 2 in per cent."""
    slots_per_request = 15_728 / 7
    reserved, live = 0.133 * slots_per_request, 0.204 * slots_per_request
    exact = moments(FITS["sharegpt-fit"].law)
    assert exact.output_weighted_output == pytest.approx(2 * reserved, rel=0.001)
    assert exact.output_weighted_prompt == pytest.approx(live - reserved, abs=0.5)


def test_alpaca_saves_by_parallel_sampling_what_the_paper_does_within_two_points():
    law = FITS["alpaca-fit"].law
    prompt, output = law.prompt.weights(), law.output.weights()
    i, o = np.arange(1, prompt.size + 1), np.arange(1, output.size + 1)
    resident = np.cumsum(output[::-1])[::-1]  # at its k-th step is who has k tokens to produce
    shared = float(prompt @ (i // 16)) * float(output @ o)
    held = sum(
        share * float(resident @ -(-(tokens + o) // 16))
        for tokens, share in zip(i, prompt, strict=True)
    )
    for n, paper in ((2, 6.09), (4, 8.53), (6, 9.79)):
        saving = 100 * (n - 1) * shared / (n * held)
        assert saving == pytest.approx(paper, abs=2)
        assert saving == pytest.approx({2: 6.63, 4: 9.94, 6: 11.04}[n], abs=0.005)


def test_a_big_draw_has_the_laws_moments_and_keeps_to_its_bounds(drawn):
    name, stream = drawn
    law, exact = FITS[name].law, moments(FITS[name].law)
    i, o = stream.prompt_tokens.astype(float), stream.output_tokens.astype(float)
    for value, expected in (
        (i, exact.prompt_mean),
        (o, exact.output_mean),
        (o**2, exact.output_weighted_output * exact.output_mean),
        (i * o, exact.output_weighted_prompt * exact.output_mean),
    ):
        assert value.mean() == pytest.approx(expected, abs=4 * value.std() / np.sqrt(value.size))
    for tokens, side in ((i, law.prompt), (o, law.output)):
        assert side.shortest <= tokens.min()
        assert tokens.max() <= side.longest
    assert stream.final_tokens.max() <= (law.max_tokens or np.inf)
    assert o.min() >= 1


@pytest.mark.parametrize("name", FITS)
def test_the_constants_are_what_the_derivation_finds(name):
    solved, stated = SOLVED[name](), FITS[name].law
    assert solved.max_tokens == stated.max_tokens
    assert solved.link == pytest.approx(stated.link, abs=1e-7)
    for side in ("prompt", "output"):
        found, held = getattr(solved, side), getattr(stated, side)
        assert type(found) is type(held)
        assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(held), rel=1e-7)


@pytest.mark.parametrize("link", [-0.9, 0.0, 0.6])
def test_a_link_gives_the_stated_covariance_and_leaves_each_side_as_it_is(link):
    law = LengthLaw(prompt=Gamma(2.0, 9.0, 1, 200), output=Lognormal(2.0, 0.7, 2, 90), link=link)
    prompt, output = law.draw(np.random.default_rng(1), 400_000)
    exact = moments(law)
    covariance = (exact.output_weighted_prompt - exact.prompt_mean) * exact.output_mean
    drawn = np.cov(prompt, output)[0, 1]
    assert drawn == pytest.approx(covariance, abs=0.3)
    assert np.sign(covariance) == np.sign(link)
    for tokens, side in ((prompt, law.prompt), (output, law.output)):
        seen = np.bincount(tokens, minlength=side.longest + 1)[side.shortest :] / tokens.size
        assert np.abs(np.cumsum(seen) - np.cumsum(side.weights())).max() < 0.004


def test_moments_of_a_linked_law_that_is_cut_off_are_those_of_its_draws():
    law = dataclasses.replace(FITS["sharegpt-fit"].law, link=0.8)
    exact = moments(law)
    prompt, output = law.draw(np.random.default_rng(1), 400_000)
    assert prompt.mean() == pytest.approx(exact.prompt_mean, rel=0.01)
    assert output.mean() == pytest.approx(exact.output_mean, rel=0.01)
    weighted = (prompt * output).mean() / output.mean()
    assert weighted == pytest.approx(exact.output_weighted_prompt, rel=0.015)
    unlinked = moments(dataclasses.replace(law, link=0.0))
    assert exact.output_weighted_prompt > 1.05 * unlinked.output_weighted_prompt


@pytest.mark.parametrize("name", FITS)
def test_arrivals_are_the_fits_unless_others_are_asked_for(name):
    fit = FITS[name]
    source = fitted(name, num_requests=50_000)
    assert source.timed == (fit.rate_per_s is not None)
    if fit.rate_per_s is not None:
        gaps = np.diff(read_all(source).arrival_s)
        # Gaps of CV 13 vary by 13 / sqrt(50,000) = 6 % in their mean.
        assert 1 / gaps.mean() == pytest.approx(fit.rate_per_s, rel=0.02 * fit.cv)
        assert gaps.std() / gaps.mean() == pytest.approx(fit.cv, rel=0.15)
    other = np.diff(read_all(fitted(name, num_requests=50_000, rate_per_s=7.0, cv=1.0)).arrival_s)
    assert 1 / other.mean() == pytest.approx(7.0, rel=0.03)


def test_fits_and_seeds_are_independent_of_each_other():
    levels = {
        (name, seed): read_all(LengthFit(name=name, num_requests=20_000, seed=seed)).output_tokens
        for name, seed in (("azure-fit", 0), ("azure-fit", 1), ("azure-code-fit", 0))
    }
    first, *others = levels.values()
    for other in others:
        assert abs(np.corrcoef(np.log(first), np.log(other))[0, 1]) < 0.03


def test_the_default_draw_is_pinned():
    """Records compare by these lengths: a change of the drawing is a change of every record."""
    stream = read_all(LengthFit(name="sharegpt-fit", num_requests=6))
    assert stream.prompt_tokens.tolist() == [188, 3, 51, 4, 105, 384]
    assert stream.output_tokens.tolist() == [165, 723, 394, 494, 13, 312]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"name": "alpaca"}, "'alpaca' is unknown; use one of sharegpt-fit, alpaca-fit"),
        ({"name": "alpaca-fit", "num_requests": 0}, "num_requests is 0"),
        ({"name": "alpaca-fit", "seed": -1}, "seed is -1"),
        ({"name": "alpaca-fit", "cv": 2.0}, "cv 2.0 of 'alpaca-fit', which has no rate"),
        ({"name": "alpaca-fit", "rate_per_s": -1.0}, "rate_per_s is -1.0"),
    ],
)
def test_bad_arguments_are_refused_with_the_value(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        fitted(**arguments)
