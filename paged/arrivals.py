"""Requests as a server meets them: drawn from the stream when they arrive, and not before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from paged.errors import BadSize, checked_size


class Request(NamedTuple):
    """What a server knows of a request."""

    prompt_tokens: int
    output_tokens: int
    """Lengths, in tokens; at least one token is generated."""
    arrival_ns: int | None = None
    """Nanoseconds after the start; None: as soon as the server takes it."""
    keys: tuple[int, ...] = ()
    """One for each full block of the prompt. Equal keys stand for equal tokens in the block and
    before it."""
    tenant: int = 0
    """Whose request it is."""


class Arrivals:
    """The queue of those that have arrived, fed from a stream.

    A stream has arrival times for all requests, and they arrive then; or for none, and as many wait
    as the server wants to see: the head of a backlog.

    Parameters
    ----------
    requests
        The stream. It is read as far as is needed.
    clients
        Without arrival times: most requests that wait or run at once (a closed loop).
    depth
        Without arrival times: requests that wait as long as the stream has as many.
    fits
        Whether a request could ever be served. One that could not is turned away when it is read.

    Attributes
    ----------
    waiting
        Requests that have arrived and were not taken, in order. Whoever takes one calls `taken`.
    timed
        Whether the stream has arrival times.
    closed
        Whether the next one may have to wait for another to be completed: call `taken` then, too.
    more
        Whether requests have yet to arrive.
    count
        Requests that have arrived, or were turned away.
    refused
        Requests that were turned away.

    Raises BadSize: there is no request, or one is not as it has to be; the message names it.
    """

    __slots__ = (
        "_clients",
        "_depth",
        "_fits",
        "_next",
        "_read",
        "_source",
        "closed",
        "count",
        "more",
        "refused",
        "timed",
        "waiting",
    )

    def __init__(
        self,
        requests: Iterable[Request],
        *,
        clients: int | None = None,
        depth: int = 1,
        fits: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        if clients is not None:
            checked_size("clients", clients, at_least=1)
        self._clients = clients
        self.closed = clients is not None
        self._depth = checked_size("depth", depth, at_least=1)
        self._fits = fits
        self._source = iter(requests)
        self._read = 0
        self.waiting: deque[Request] = deque()
        self.count = self.refused = 0
        first = next(self._source, None)
        if first is None:
            raise BadSize("the stream is empty: give at least one request")
        self.timed = first.arrival_ns is not None
        if self.timed and clients is not None:
            raise BadSize(
                f"clients = {clients} with arrival times: leave out one of the two; it says when "
                f"requests arrive"
            )
        self.more = True
        self._next = first
        self._take_in(first, after_ns=0)
        if not self.timed:
            self.taken(outstanding=0)

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
        """Let the next arrive if there is a place in the queue. Without arrival times only.

        Parameters
        ----------
        outstanding
            Requests that run, or were preempted and are to come back.
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
        arriving = self._next
        self.waiting.append(arriving)
        self.count += 1
        following = next(self._source, None)
        if following is None:
            self.more = False
        else:
            self._take_in(following, after_ns=arriving.arrival_ns)

    def _take_in(self, request: Request | None, *, after_ns: int | None) -> None:
        """Make the next one of `request` and those behind it that can be served."""
        while request is not None:
            self._check(request, after_ns=after_ns)
            if self._fits(request):
                self._next = request
                return
            self.count += 1
            self.refused += 1
            after_ns = request.arrival_ns
            request = next(self._source, None)
        self.more = False

    def _check(self, request: Request, *, after_ns: int | None) -> None:
        prompt, output, arrival_ns, _, _ = request
        self._read += 1
        if prompt < 0 or output < 1:
            raise BadSize(
                f"request {self._read} of the stream has {prompt} prompt and {output} output "
                f"tokens; give at least 0 and 1"
            )
        timed = arrival_ns is not None
        if timed != self.timed or (arrival_ns or 0) < (after_ns or 0):
            raise BadSize(
                f"request {self._read} of the stream arrives at {arrival_ns} ns, after one at "
                f"{after_ns} ns; give all requests a time, never falling, or none"
            )
