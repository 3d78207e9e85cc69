"""Requests as a server meets them: drawn from the stream when they arrive, and not before."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, SupportsIndex

from paged.errors import BadSize, checked_size

LATEST_NS: Final = 2**62
"""Moments from there on are refused."""


class Request(NamedTuple):
    """What a server knows of a request."""

    prompt_tokens: int
    output_tokens: int
    """Lengths, in tokens; at least one token is generated."""
    arrival_ns: int | None = None
    """Nanoseconds after the start; None: as soon as the server takes it."""
    keys: tuple[int, ...] = ()
    """One for each full block of the prompt. Equal keys stand for equal tokens in the block and
    before it. An array, for `paged.counting` alone, has numbers from 0 on."""
    tenant: int = 0
    """Whose request it is."""


def checked_requests(requests: Iterable[Request]) -> Iterator[Request]:
    """Yield the requests of a stream, in Python's integers, or raise BadSize, which names the
    request.
    """
    timed, last_ns = False, 0
    for number, request in enumerate(requests, start=1):
        prompt, output, arrival_ns, _, _ = request
        timeless = arrival_ns is None
        if not (type(prompt) is type(output) is int and (timeless or type(arrival_ns) is int)):
            prompt = _integer(number, "prompt tokens", prompt)
            output = _integer(number, "output tokens", output)
            if arrival_ns is not None:
                arrival_ns = _integer(number, "arrival in nanoseconds", arrival_ns)
            request = Request(prompt, output, arrival_ns, *request[3:])  # noqa: PLW2901
        if prompt < 0 or output < 1:
            raise BadSize(
                f"request {number} of the stream has {prompt} prompt and {output} output "
                f"tokens; give at least 0 and 1, and leave others out"
            )
        if number == 1:
            timed = not timeless
        if timed is timeless or (arrival_ns or 0) < last_ns:
            before = f"{last_ns} ns" if timed else "no time"
            raise BadSize(
                f"request {number} of the stream arrives at {arrival_ns} ns, after {before}; give "
                f"all requests a time from 0 on, never falling, or none"
            )
        last_ns = arrival_ns or 0
        if last_ns >= LATEST_NS:
            raise BadSize(
                f"request {number} of the stream arrives at {arrival_ns} ns; give less than 2**62, "
                f"146 years"
            )
        yield request


def _integer(number: int, name: str, value: SupportsIndex) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise BadSize(
            f"request {number} of the stream: {name} = {value!r}; give an integer"
        ) from None


def opened(
    requests: Iterable[Request], clients: int | None
) -> tuple[Request, Iterator[Request], bool]:
    """Return the first request of a stream, those behind it, and whether they have times of
    arrival.

    Raises BadSize: there is no request, or one is not as it has to be; or `clients` make no sense.
    """
    if clients is not None:
        checked_size("clients", clients, at_least=1)
    source = checked_requests(requests)
    first = next(source, None)
    if first is None:
        raise BadSize("the stream is empty: give at least one request")
    timed = first.arrival_ns is not None
    if timed and clients is not None:
        raise BadSize(
            f"clients = {clients} with arrival times: leave out one of the two; it says when "
            f"requests arrive"
        )
    return first, source, timed


class Arrivals:
    """The queue of those that have arrived, fed from a stream.

    A stream has arrival times for all requests, and they arrive then; or for none, and as many wait
    as the server wants to see: the head of a backlog of `depth`. `clients` are then the most
    requests that wait or run at once (a closed loop). Who does not `fits` could never be served,
    and is turned away when it is read.

    Raises BadSize: there is no request, or one is not as it has to be; the message names it.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        *,
        clients: int | None = None,
        depth: int = 1,
        fits: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        first, self._source, self.timed = opened(requests, clients)
        self._clients = clients
        self.closed = clients is not None
        """Whether the next may have to wait for another to be completed: call `taken` then, too."""
        self._depth = checked_size("depth", depth, at_least=1)
        self._fits = fits
        self.waiting: deque[Request] = deque()
        """Requests that have arrived, in order. Whoever takes one calls `taken`."""
        self.now_ns = 0
        """Moment at which whoever comes in a closed loop has arrived; set it before `taken`."""
        self.count = self.refused = 0
        """Requests that have arrived, those turned away included; and those."""
        self.more = True
        """Whether requests have yet to arrive."""
        self._next = first
        self._take_in(first)
        if not self.timed:
            self.taken(outstanding=0)

    @property
    def next_ns(self) -> int | None:
        """When the next one arrives; None where none does at a time of its own."""
        return self._next.arrival_ns if self.timed and self.more else None

    def draw(self, now_ns: int) -> None:
        """Let everybody arrive who is due by `now_ns`. For streams with arrival times."""
        while self.more and self._next.arrival_ns <= now_ns:  # type: ignore[operator]
            self._arrive()

    def idle_until(self, now_ns: int) -> int:
        """Let the next one arrive at an idle server; return when that is, `now_ns` or later."""
        now_ns = max(now_ns, self._next.arrival_ns or 0)
        self.draw(now_ns)
        return now_ns

    def taken(self, *, outstanding: int) -> None:
        """Let the next arrive if there is a place in the queue beside those who run or are to come
        back.
        """
        if self.timed:
            return
        waiting, clients = self.waiting, self._clients
        while (
            self.more
            and len(waiting) < self._depth
            and (clients is None or outstanding + len(waiting) < clients)
        ):
            self._arrive()

    def _arrive(self) -> None:
        # In a closed loop, a client asks as soon as it has its last answer.
        self.waiting.append(
            self._next._replace(arrival_ns=self.now_ns) if self.closed else self._next
        )
        self.count += 1
        self._take_in(next(self._source, None))

    def _take_in(self, request: Request | None) -> None:
        """Make the next one of `request` and those behind it that can be served."""
        while request is not None:
            if self._fits(request):
                self._next = request
                return
            self.count += 1
            self.refused += 1
            request = next(self._source, None)
        self.more = False
