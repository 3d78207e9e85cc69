"""Scrapes of a server's metrics: at regular times, and seldom where it does not answer."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPException
from typing import TYPE_CHECKING, Final
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from bench.diagnose.recording import Input

TIMEOUT_S: Final = 10.0
"""For a whole answer, however slowly it comes."""

MAX_ANSWER_BYTES: Final = 2**24
"""The longest page that we know, of eight engines, has half a megabyte."""

BACK_OFF_S: Final = 5.0
"""Longest wait between two attempts at a server that does not answer, or the interval if longer.
More would miss what a server does first after a restart."""

KNOWN: Final = (
    "vllm:",
    "sglang:",
    "trtllm_",
    "tgi_",
    "llamacpp:",
    "dynamo_",
    "lmdeploy:",
    "http_requests_total",
    "process_start_time_seconds",
)
"""How the names of metrics begin that a recording keeps."""

_SAMPLE: Final = re.compile(r"([a-zA-Z_:][\w:]*)(\{.*\})?( +\S.*)")


class NoMetrics(Exception):
    """There was an answer, and it is no page of metrics."""


class Scraper:
    """Takes scrapes of one server."""

    def __init__(
        self,
        address: str,
        entry: Input,
        *,
        every_s: float,
        instance: str | None = None,
        everything: bool = False,
    ) -> None:
        self._address = address
        self._entry = entry
        self._every_s = every_s
        self._instance = instance
        self._everything = everything

    def take(self, over: threading.Event) -> None:
        """Scrape until it is over."""
        due_s = time.monotonic()
        failures = 0
        while not over.is_set():
            moment = time.time()
            try:
                page = "".join(self._kept(fetch(self._address, over)))
                self._entry.taken += 1
                failures = 0
                self._entry.file.add(f"# scrape {moment:.3f}\n{page}")
            except (OSError, HTTPException, ValueError, NoMetrics) as error:
                if over.is_set():
                    return
                failures += 1
                reason = _said(error)
                self._entry.fail(reason)
                self._entry.file.add(f"# scrape {moment:.3f} FAILED {reason}\n")
            wait_s = self._every_s
            if failures > 1:
                slowest_s = max(BACK_OFF_S, self._every_s)
                wait_s = min(self._every_s * 2 ** min(failures - 1, 20), slowest_s)
            due_s += wait_s
            if due_s < time.monotonic():
                due_s = time.monotonic() + (wait_s if failures else 0.0)
            while not over.wait(max(0.0, min(1.0, due_s - time.monotonic()))):
                self._entry.file.tick()
                if time.monotonic() >= due_s:
                    break

    def _kept(self, page: str) -> Iterator[str]:
        """Lines of the page that a recording keeps."""
        samples = 0
        for line in page.splitlines():
            kept = line
            if line.startswith("# TYPE "):
                name = line.split(" ", 3)[2]
            elif line.startswith("#") or not (sample := _SAMPLE.fullmatch(line)):
                continue
            else:
                samples += 1
                name, labels, value = sample.groups()
                if self._instance is not None:
                    inner = f",{labels[1:-1]}" if labels and labels != "{}" else ""
                    kept = f'{name}{{instance="{self._instance}"{inner}}}{value}'
            # The moment at which each counter began: the process's own start says it once.
            if self._everything or (name.startswith(KNOWN) and not name.endswith("_created")):
                yield kept + "\n"
        if not samples:
            raise NoMetrics("the answer has no metrics in it; is it the address of /metrics?")


def fetch(address: str, over: threading.Event) -> str:
    """A page. Raises OSError, HTTPException or ValueError where none comes in time."""
    headers = {"Accept": "text/plain", "User-Agent": "pagedbench-record"}
    target = urlsplit(address)
    who, at, host = target.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {b64encode(unquote(who).encode()).decode()}"
    asked = urllib.request.Request(urlunsplit(target._replace(netloc=host)), headers=headers)
    end_s = time.monotonic() + TIMEOUT_S
    with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
        parts: list[bytes] = []
        size = 0
        while part := answer.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise NoMetrics(f"the answer has over {MAX_ANSWER_BYTES >> 20} MiB")
            if time.monotonic() > end_s or over.is_set():
                raise TimeoutError(f"the answer took over {TIMEOUT_S:.0f} s")
    return b"".join(parts).decode("utf-8", "replace")


def _said(error: Exception) -> str:
    """Why there is no page, on one line."""
    inner = getattr(error, "reason", error)  # urllib wraps what the socket says
    said = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    if isinstance(error, HTTPError):
        said = f"HTTP {error.code} {said}"
    return " ".join(str(said).split())[:200]
