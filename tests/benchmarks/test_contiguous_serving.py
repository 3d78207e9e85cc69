"""Requests per second through a contiguous cache, on the fit to the PagedAttention paper's lengths.

`requests_per_s` in the extra information is requests over the time of the fastest round. The stream
is drawn beforehand; look-ahead is shown beside first come, first served.
"""

from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.waste.contiguous import ContiguousPolicy, serve_contiguous
from bench.workloads.fits import fitted
from paged.accounting import Serving
from reference.allocator.arenas import ArenaName, ReservationName

SLOTS = 15_728
MAX_MODEL_LEN = 2048
REQUESTS = 50_000


@cache
def stream(count: int) -> tuple[tuple[int, int, None], ...]:
    return tuple(
        (prompt, output, None)
        for part in fitted("sharegpt-fit", num_requests=count, seed=0).chunks()
        for prompt, output in zip(
            part.prompt_tokens.tolist(), part.output_tokens.tolist(), strict=True
        )
    )


@pytest.mark.parametrize(
    ("arena", "reservation", "look_ahead"),
    [
        ("buddy", "max", 0),
        ("buddy", "pow2", 0),
        ("buddy", "oracle", 0),
        ("first-fit", "oracle", 0),
        ("best-fit", "oracle", 0),
        ("buddy", "oracle", 8),
    ],
)
def test_sharegpt_fit(
    benchmark: BenchmarkFixture, arena: ArenaName, reservation: ReservationName, look_ahead: int
) -> None:
    policy = ContiguousPolicy(
        reservation=reservation, arena=arena, max_model_len=MAX_MODEL_LEN, look_ahead=look_ahead
    )
    count = REQUESTS if benchmark.enabled else REQUESTS // 10
    requests = stream(count)

    def serve() -> Serving:
        return serve_contiguous(iter(requests), policy, slots=SLOTS, warmup=count // 10)

    serving = benchmark.pedantic(serve, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["requests_per_s"] = round(count / benchmark.stats.stats.min)
    assert serving.total.completed == count
