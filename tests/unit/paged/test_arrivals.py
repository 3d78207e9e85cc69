"""Requests are drawn when they arrive, and not before."""

import re
from collections.abc import Iterator

import numpy as np
import pytest

from paged.arrivals import Arrivals, Request
from paged.errors import BadSize


class Counted:
    """A stream that knows how far it was read."""

    def __init__(self, *requests: Request) -> None:
        self.read = 0
        self.requests = requests

    def __iter__(self) -> Iterator[Request]:
        for request in self.requests:
            self.read += 1
            yield request


BACKLOG = [Request(prompt, 1) for prompt in range(5)]


def test_of_a_backlog_only_the_head_waits_and_one_more_was_read() -> None:
    stream = Counted(*BACKLOG)
    arrivals = Arrivals(stream)
    assert (list(arrivals.waiting), arrivals.count, stream.read) == (BACKLOG[:1], 1, 2)
    arrivals.taken(outstanding=0)
    assert arrivals.count == 1, "the queue has its head already"
    arrivals.waiting.popleft()
    arrivals.taken(outstanding=1)
    assert (list(arrivals.waiting), arrivals.count, stream.read) == (BACKLOG[1:2], 2, 3)


def test_a_deeper_queue_shows_as_many_as_were_asked_for() -> None:
    arrivals = Arrivals(BACKLOG, depth=3)
    assert list(arrivals.waiting) == BACKLOG[:3]


def test_the_last_request_ends_the_stream() -> None:
    arrivals = Arrivals(BACKLOG[:2])
    assert arrivals.more
    arrivals.waiting.popleft()
    arrivals.taken(outstanding=1)
    assert not arrivals.more
    arrivals.waiting.popleft()
    arrivals.taken(outstanding=2)
    assert (len(arrivals.waiting), arrivals.count) == (0, 2)


def test_a_closed_loop_waits_until_a_client_is_free() -> None:
    arrivals = Arrivals(BACKLOG, clients=2)
    arrivals.waiting.popleft()
    arrivals.taken(outstanding=1)
    arrivals.waiting.popleft()
    arrivals.taken(outstanding=2)
    assert (len(arrivals.waiting), arrivals.count) == (0, 2)
    arrivals.taken(outstanding=1)
    assert (len(arrivals.waiting), arrivals.count) == (1, 3)


def test_timed_requests_arrive_at_their_times() -> None:
    stream = Counted(*(Request(1, 1, at) for at in (5, 5, 7, 20)))
    arrivals = Arrivals(stream)
    assert (arrivals.count, stream.read) == (0, 1)
    arrivals.draw(4)
    assert arrivals.count == 0
    arrivals.draw(5)
    assert (arrivals.count, stream.read) == (2, 3)
    assert arrivals.idle_until(6) == 7
    assert arrivals.count == 3
    assert arrivals.idle_until(30) == 30
    assert (arrivals.count, arrivals.more) == (4, False)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "the stream is empty"),
        ([Request(-1, 1)], "request 1 of the stream has -1 prompt and 1 output"),
        ([Request(1, 0)], "request 1 of the stream has 1 prompt and 0 output"),
        ([Request(1.5, 1)], "request 1 of the stream: prompt tokens = 1.5; give an integer"),
        ([Request(1, "2")], "request 1 of the stream: output tokens = '2'; give an integer"),
        ([Request(1, 1, 0.5)], "request 1 of the stream: arrival in nanoseconds = 0.5; give"),
        ([Request(1, 1, 5), Request(1, 1, 4)], "request 2 of the stream arrives at 4 ns, after 5"),
        ([Request(1, 1, -1)], "request 1 of the stream arrives at -1 ns"),
        ([Request(1, 1, 5), Request(1, 1)], "request 2 of the stream arrives at None ns"),
        ([Request(1, 1), Request(1, 1, 5)], "request 2 of the stream arrives at 5 ns, after no"),
    ],
)
def test_a_request_that_is_not_as_it_has_to_be_is_named(
    requests: list[Request], message: str
) -> None:
    with pytest.raises(BadSize, match=re.escape(message)):
        Arrivals(requests, depth=2).draw(10)


def test_integers_of_numpy_count_like_any_other() -> None:
    arrivals = Arrivals([Request(np.int8(100), np.int8(100), np.int64(0))])
    arrivals.draw(0)
    prompt, output, arrival_ns, *_ = arrivals.waiting[0]
    assert [type(number) for number in (prompt, output, arrival_ns)] == [int] * 3
    assert prompt + output == 200


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(BadSize, match="clients = 2 with arrival times"):
        Arrivals([Request(1, 1, 5)], clients=2)
    with pytest.raises(BadSize, match="clients"):
        Arrivals(BACKLOG, clients=0)
    with pytest.raises(BadSize, match="depth"):
        Arrivals(BACKLOG, depth=0)


def test_who_could_never_be_served_is_turned_away_and_not_waited_for() -> None:
    requests = [Request(9, 1), Request(1, 1), Request(9, 1), Request(2, 1), Request(9, 1)]
    arrivals = Arrivals(requests, fits=lambda request: request.prompt_tokens < 9)
    assert (list(arrivals.waiting), arrivals.refused, arrivals.more) == ([requests[1]], 2, True)
    arrivals.waiting.popleft()
    arrivals.taken(outstanding=1)
    assert (list(arrivals.waiting), arrivals.refused, arrivals.more) == ([requests[3]], 3, False)
    assert arrivals.count == 5
    nobody = Arrivals([Request(9, 1, 5)], fits=lambda request: False)
    assert (nobody.more, nobody.timed, nobody.count, nobody.refused) == (False, True, 1, 1)
