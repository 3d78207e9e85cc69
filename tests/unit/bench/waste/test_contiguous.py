"""Contiguous serving: a case by hand, other arenas on the paper's stream, what is refused."""

from typing import Any

import numpy as np
import pytest

from bench.waste.contiguous import ContiguousPolicy, serve_contiguous
from bench.waste.simulate import lengths_of
from bench.workloads.fits import fitted
from bench.workloads.source import saturated
from paged.accounting import Serving
from paged.errors import BadSize

SERVER_SLOTS = (
    15_728  # 12 GiB in tokens of 800 KiB: the pool of the PagedAttention paper's 13B model
)
REQUESTS = 20_000

Request = tuple[int, int, int | None]


def policy(**changes: Any) -> ContiguousPolicy:
    given: dict[str, Any] = {"reservation": "oracle", "arena": "first-fit", "max_model_len": 2048}
    return ContiguousPolicy(**given | changes)


def serve(stream: list[Request], slots: int, policy: ContiguousPolicy, **options: Any) -> Serving:
    return serve_contiguous(iter(stream), policy, slots=slots, **options)


# By hand


def test_thirty_per_cent_free_and_a_request_of_31_waits() -> None:
    """Ten requests of 70 and ten of 30 fill the pool; the short ones end, and 31 do not fit."""
    stream: list[Request] = [(50, 20, None), (20, 10, None)] * 10 + [(30, 1, None)]
    total = serve(stream, 1000, policy()).total
    # The short ones run for 10 steps and the long ones for 20, until when 300 slots are free.
    assert total.waiting_short == 10
    assert total.free_short == 0
    assert total.waiting_frag == 10
    assert total.free_frag == 10 * 300
    assert total.steps == 21


def sharegpt(count: int) -> list[Request]:
    return list(lengths_of(saturated(fitted("sharegpt-fit", num_requests=count, seed=0))))


@pytest.mark.parametrize(
    ("arena", "look_ahead", "token"),
    [("first-fit", 0, 51.0), ("best-fit", 0, 51.6), ("buddy", 8, 40.9), ("buddy", 64, 42.1)],
)
def test_exact_arenas_and_look_ahead_waste_less(arena: str, look_ahead: int, token: float) -> None:
    """Not published: another simulation of the same stream gave these, for other draws."""
    options = policy(arena=arena, look_ahead=look_ahead)
    loaded = serve(sharegpt(REQUESTS), SERVER_SLOTS, options, warmup=REQUESTS // 10).loaded
    assert 100 * loaded.token_fraction == pytest.approx(token, abs=1.0)


# Bad input


def test_a_stream_without_requests_or_with_a_bad_one_is_refused() -> None:
    with pytest.raises(ValueError, match="the stream is empty: give at least one request"):
        serve([], 8, policy())
    with pytest.raises(BadSize, match="request 2 of the stream has 4 prompt and 0 output tokens"):
        serve([(1, 1, None), (4, 0, None)], 8, policy())


def test_integers_of_numpy_count_like_any_other() -> None:
    stream: Any = [(np.int8(100), np.int8(100), np.int64(0))] * 2
    plain: list[Request] = [(100, 100, 0)] * 2
    assert serve(stream, 500, policy()) == serve(plain, 500, policy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reservation": "half"}, "reservation = 'half': choose one of max, pow2, oracle"),
        ({"arena": "slab"}, "arena = 'slab': choose one of buddy, first-fit, best-fit"),
        ({"max_model_len": 0}, "max_model_len = 0: give an integer, at least 1"),
        ({"look_ahead": -1}, "look_ahead = -1: give an integer, at least 0"),
        ({"max_running": 0}, "max_running = 0: give an integer, at least 1"),
    ],
)
def test_a_bad_policy_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy(**changes)


@pytest.mark.parametrize(("name", "value"), [("slots", 0), ("warmup", -1), ("observe_every", 0)])
def test_a_bad_number_is_named(name: str, value: int) -> None:
    with pytest.raises(BadSize, match=f"{name} = {value}: give an integer"):
        serve_contiguous([(1, 1, None)], policy(), **{"slots": 8, name: value})
