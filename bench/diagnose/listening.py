"""Block events of a running server, as it publishes them over ZeroMQ."""

from __future__ import annotations

import errno
import json
import re
import threading
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from bench.diagnose.digests import Digests
from bench.workloads.block_events import batch_of
from reference.errors import BadInput

if TYPE_CHECKING:
    from bench.diagnose.recording import Input

QUEUED: Final = 100_000
"""Batches that wait for us before the library drops some; the servers queue as many."""

_POLL_MS: Final = 250
_SEQUENCE_BYTES: Final = 8


class EventListener:
    """Subscribes to one publisher. Raises BadInput: a library is missing, or the endpoint is none.

    Publishers of vLLM and SGLang bind where their endpoint has a `*` or `::`, or is not tcp, and
    connect elsewhere: then it is us who have to bind. `bind:` or `connect:` before the endpoint
    says it in so many words.
    """

    def __init__(
        self, endpoint: str, entry: Input, digests: Digests, *, instance: str | None = None
    ) -> None:
        if missing := [name for name in ("zmq", "msgpack") if find_spec(name) is None]:
            packages = " ".join(name.replace("zmq", "pyzmq") for name in missing)
            raise BadInput(f"--events {endpoint}: it needs more packages; pip install {packages}")
        self._entry = entry
        self._digests = digests
        self._instance = instance
        self._next: dict[bytes, int] = {}
        self._socket = _subscribed(endpoint)

    def take(self, over: threading.Event) -> None:
        """Take batches until it is over."""
        try:
            while not over.is_set():
                if self._socket.poll(_POLL_MS):
                    self.message(self._socket.recv_multipart())
                self._entry.file.tick()
        finally:
            self._socket.close(0)

    def message(self, parts: list[bytes]) -> None:
        """Take one message: topic, sequence number, batch."""
        import msgpack

        received: dict[str, Any] = {"recv": round(time.time(), 3)}
        if self._instance is not None:
            received["instance"] = self._instance
        try:
            topic, sequence, payload = parts
            if len(sequence) != _SEQUENCE_BYTES:
                raise ValueError("its number has not 8 bytes")
            number = int.from_bytes(sequence, "big")
            raw = msgpack.unpackb(payload, raw=False, strict_map_key=False)
            moment, events, rank = batch_of(raw)
            digested = [self._digests.event(event) for event in events]
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            self._entry.fail(f"a message is no batch of events ({type(error).__name__}: {error})")
            return
        expected = self._next.get(topic, number)
        self._next[topic] = number + 1
        if number > expected:
            self._entry.lost += number - expected
            received["lost"] = number - expected
        elif number < expected:
            received["restarted"] = True
        received |= {"seq": number, "ts": round(moment, 3), "dp_rank": rank, "events": digested}
        self._entry.taken += 1
        self._entry.file.add(json.dumps(received, separators=(",", ":")) + "\n")


def _subscribed(said: str) -> Any:
    """A socket that gets what is published at an endpoint. Raises BadInput."""
    import zmq

    how, colon, rest = said.partition(":")
    asked = how if colon and how in {"bind", "connect"} else ""
    endpoint = rest if asked else said
    if "://" not in endpoint:
        endpoint = f"tcp://{endpoint}"
    theirs = "*" in endpoint or "::" in endpoint or not endpoint.startswith("tcp:")
    socket: Any = zmq.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, QUEUED)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.setsockopt(zmq.LINGER, 0)
    try:
        if asked != "connect" and (asked == "bind" or not theirs):
            try:
                socket.bind(endpoint)
                return socket
            except zmq.ZMQError as error:
                # Somebody is bound there, or the address is another machine's: they are the server.
                theirs = error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENODEV}
                if asked == "bind" or not theirs:
                    raise
        if "::" in endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        ours = re.sub(r"//(\*|0\.0\.0\.0):", "//127.0.0.1:", endpoint)
        socket.connect(ours.replace("[::]", "[::1]"))
    except zmq.ZMQError as error:
        socket.close(0)
        raise BadInput(
            f"--events {said}: {error.strerror or error}; give the endpoint of the server's "
            f"--kv-events-config, such as tcp://*:5557"
        ) from None
    return socket
