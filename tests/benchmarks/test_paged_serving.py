"""Requests per second of the two paged servers, and the time of the whole paper figure."""

from itertools import starmap

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.waste.figures.sosp23 import SLOTS, sosp23
from bench.waste.simulate import lengths_of
from bench.workloads.fits import fitted
from paged.arrivals import Request
from paged.counting import serve_by_counts
from paged.policy import PagedPolicy
from paged.scheduler import serve


def requests(count: int) -> list[Request]:
    return list(starmap(Request, lengths_of(fitted("sharegpt-fit", num_requests=count))))


@pytest.mark.benchmark(group="paged serving, ShareGPT fit")
@pytest.mark.parametrize("watermark", [0.0, 0.01])
def test_serving_by_counts(benchmark: BenchmarkFixture, watermark: float) -> None:
    stream = requests(50_000)
    policy = PagedPolicy(watermark=watermark)
    served = benchmark.pedantic(
        serve_by_counts, (stream, policy), {"slots": SLOTS}, rounds=5, warmup_rounds=1
    )
    assert served.total.completed == len(stream)
    if benchmark.stats is not None:
        benchmark.extra_info["requests_per_s"] = round(len(stream) / benchmark.stats["min"])


@pytest.mark.benchmark(group="paged serving, ShareGPT fit")
def test_serving_block_by_block(benchmark: BenchmarkFixture) -> None:
    stream = requests(5_000)
    served = benchmark.pedantic(serve, (stream, PagedPolicy()), {"slots": SLOTS}, rounds=3)
    assert served.total.completed == len(stream)
    if benchmark.stats is not None:
        benchmark.extra_info["requests_per_s"] = round(len(stream) / benchmark.stats["min"])


@pytest.mark.benchmark(group="the paper's memory figure")
def test_the_whole_paper_figure(benchmark: BenchmarkFixture) -> None:
    figure = benchmark.pedantic(sosp23, rounds=3)
    assert figure.met
