"""The public traces, where they are at hand: read whole, and equal to what is published of them."""

import numpy as np
import pytest

from bench.waste.figures.block_size import expected_internal_fraction
from bench.workloads.builtin import LEVELS, STREAM_LAWS
from bench.workloads.fits import FITS
from bench.workloads.need import contiguous_need, paged_need
from bench.workloads.source import fitting, read_all
from bench.workloads.traces import first_turns, read_trace
from helpers.published import published_file
from studies.length_moments import moments

# Requests; span in seconds; mean, p50, p90, p99, max of prompts, then of outputs, whole tokens.
PUBLISHED = {
    "azure-conv": (19366, 3502, (1155, 1020, 2734, 4142, 14050), (211, 129, 424, 601, 1000)),
    "azure-code": (8819, 3436, (2048, 1469, 5187, 7436, 7437), (28, 13, 55, 251, 1899)),
    "sharegpt": (30731, None, (2340, 1730, 5696, 7433, 8141), (439, 415, 834, 998, 1024)),
    "sharegpt-first-turns": (5678, None, (228, 64, 600, 2382, 7398), (471, 471, 871, 1003, 1024)),
    "mooncake-conv": (
        12031,
        3537,
        (12035, 6909, 27367, 85400, 126195),
        (343, 350, 597, 1118, 2000),
    ),
}


def read_published(name):
    path = published_file(name)
    return first_turns(path) if name.endswith("first-turns") else read_trace(path)


@pytest.fixture(scope="module", params=PUBLISHED)
def named_trace(request):
    return request.param, read_published(request.param)


def test_rows_span_means_and_quantiles_are_the_published(named_trace):
    name, trace = named_trace
    requests, span_s, prompt, output = PUBLISHED[name]
    assert len(trace) == requests
    assert trace.timed == (span_s is not None)
    if span_s is not None:
        assert np.ptp(trace.arrival_s) == pytest.approx(span_s, abs=0.5)
    for published, lengths in ((prompt, trace.prompt_tokens), (output, trace.output_tokens)):
        # Published quantiles are cut, means rounded.
        assert round(lengths.mean()) == published[0]
        assert tuple(np.quantile(lengths, (0.5, 0.9, 0.99, 1)).astype(int)) == published[1:]


def test_the_built_in_table_is_the_trace_quantile_for_quantile(named_trace):
    name, trace = named_trace
    law = STREAM_LAWS[name]
    for table, column in (
        (law.prompt_tokens, trace.prompt_tokens),
        (law.output_tokens, trace.output_tokens),
    ):
        assert np.quantile(column, LEVELS, method="inverted_cdf").tolist() == list(table)
    if law.rate_per_s is not None:
        assert 1 / np.diff(trace.arrival_s).mean() == pytest.approx(law.rate_per_s, abs=0.0005)


def test_paged_waste_of_a_real_trace_meets_the_closed_form(named_trace):
    _, trace = named_trace
    for block_size in (8, 16, 32, 64, 128):
        need = paged_need(trace, block_size=block_size)
        expected = expected_internal_fraction(need.tokens_per_request, block_size)
        assert need.waste_fraction == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(
    ("name", "max_model_len", "token_percent"),
    [("azure-conv", 2**14, 7.5), ("azure-code", 2**14, 12.9), ("mooncake-conv", 2**17, 9.8)],
)
def test_reserved_memory_holds_as_few_tokens_as_simulation_found(
    name, max_model_len, token_percent
):
    """A separate event-driven simulation of saturated pools gave these shares.

    Its pools of 2**17 and 2**20 slots hold whole reservations with nothing left over, so that a
    share of the pool is a share of what is allocated.
    """
    trace = read_published(name)
    need = contiguous_need(read_all(fitting(trace, max_model_len)), max_model_len=max_model_len)
    assert 100 * need.token / need.allocated == pytest.approx(token_percent, abs=0.3)


def test_mooncake_prefixes_have_the_published_sharing():
    prefix = read_published("mooncake-conv").prefix
    assert prefix.tokens_per_block == 512
    assert prefix.ids.size == 288_500
    assert np.unique(prefix.ids).size == 182_790
    # All requests begin with one and the same block.
    assert np.unique(prefix.ids[prefix.offsets[:-1]]).tolist() == [0]


@pytest.mark.parametrize(
    ("fit", "name"), [("azure-fit", "azure-conv"), ("azure-code-fit", "azure-code")]
)
def test_the_azure_fits_have_the_moments_of_the_traces(fit, name):
    trace = read_published(name)
    i, o = trace.prompt_tokens.astype(float), trace.output_tokens.astype(float)
    exact = moments(FITS[fit].law)
    assert exact.prompt_mean == pytest.approx(i.mean(), rel=1e-4)
    assert exact.output_mean == pytest.approx(o.mean(), rel=1e-4)
    assert exact.prompt_cv == pytest.approx(i.std() / i.mean(), rel=1e-4)
    assert exact.output_cv == pytest.approx(o.std() / o.mean(), rel=1e-4)
    assert exact.output_weighted_output == pytest.approx((o * o).mean() / o.mean(), rel=2e-4)
    assert exact.output_weighted_prompt == pytest.approx((i * o).mean() / o.mean(), rel=3e-3)
    gaps = np.diff(trace.arrival_s)
    assert FITS[fit].rate_per_s == pytest.approx(1 / gaps.mean(), rel=1e-3)
    assert FITS[fit].cv == pytest.approx(gaps.std() / gaps.mean(), rel=5e-3)
