"""A recording of a running server: its metrics, block events and log lines, in a folder.

Each file grows by whole gzip members, every few seconds: whatever ends the process, what was
written can be read. What is kept of each input is said in `docs/recording.md`: known metrics,
digests of blocks, log lines with figures. No token, no text of a request.
"""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict

from bench.diagnose.digests import Digests
from bench.diagnose.following import LogFollower
from bench.diagnose.listening import EventListener
from bench.diagnose.scraping import Scraper
from reference.errors import BadInput

FLUSH_S: Final = 5.0
"""Seconds after which a line is in the file at the latest."""

FLUSH_CHARS: Final = 2**19
"""Text that is kept in memory at most."""

RESERVED_BYTES: Final = 2**16
"""Of the limit, for `recording.json`."""

_LOOK_S: Final = 0.25

Ended = Literal["recording", "time", "size", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be recorded. Raises BadInput: nothing is, or an address is none."""

    metrics: tuple[str, ...] = ()
    """Addresses of /metrics, one for each server."""
    events: tuple[str, ...] = ()
    """Endpoints of block events, as the servers were told them."""
    log: Path | None = None
    folder: Path
    every_s: float = 1.0
    last_s: float | None = None
    """None: until it is stopped."""
    max_bytes: int = 100 * 10**6
    every_metric: bool = False
    """Not only those whose names begin like a known engine's."""

    def __post_init__(self) -> None:
        if not (self.metrics or self.events or self.log):
            raise BadInput("nothing to record: give --metrics URL, --events ENDPOINT or --log FILE")
        object.__setattr__(self, "metrics", tuple(map(_address, self.metrics)))
        if self.max_bytes <= 2 * RESERVED_BYTES:
            raise BadInput(f"--max-size {self.max_bytes} bytes: give at least 1MB")


class Counts(BaseModel):
    """What came of one input."""

    model_config = ConfigDict(frozen=True)

    of: str
    """Address, endpoint or file, without a password."""
    file: str
    taken: int = 0
    """Scrapes, batches of events, log lines that were kept."""
    failed: int = 0
    """Scrapes without an answer, batches that could not be read, log lines that were left out."""
    lost: int = 0
    """Batches of events that the sequence numbers say never arrived."""
    last_failure: str = ""


class Recording(BaseModel):
    """What a recording holds; `recording.json` in its folder."""

    model_config = ConfigDict(frozen=True)

    start_s: float
    """Unix time."""
    end_s: float
    every_s: float
    ended: Ended
    bytes: int
    inputs: list[Counts]


class Budget:
    """Bytes that all files together may take."""

    def __init__(self, limit: int) -> None:
        self.spent = 0
        self.full = threading.Event()
        self._limit = limit - RESERVED_BYTES
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether that much still may be written."""
        with self._lock:
            if self.spent + size > self._limit:
                self.full.set()
                return False
            self.spent += size
            return True


class Growing:
    """A gzip file that can be read up to its last flush, whatever ends the process."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self._path = path
        self._budget = budget
        self._lines: list[str] = []
        self._chars = 0
        self._flushed_s = time.monotonic()
        self._lock = threading.Lock()
        path.touch()

    def add(self, text: str) -> None:
        """Take whole lines."""
        with self._lock:
            self._lines.append(text)
            self._chars += len(text)
        self.tick()

    def tick(self) -> None:
        """Write what is due."""
        if time.monotonic() - self._flushed_s >= FLUSH_S or self._chars >= FLUSH_CHARS:
            self.flush()

    def flush(self) -> None:
        """Write what there is, as a member of its own."""
        with self._lock:
            text, self._lines, self._chars = "".join(self._lines), [], 0
            self._flushed_s = time.monotonic()
            if text:
                member = gzip.compress(text.encode("utf-8", "replace"), mtime=0)
                if self._budget.take(len(member)):
                    with self._path.open("ab") as file:
                        file.write(member)


class Input:
    """One input: the thread that takes from it, and the file that it goes to."""

    def __init__(self, of: str, file: Growing, name: str) -> None:
        self.file = file
        self.taken = self.failed = self.lost = 0
        self.last_failure = ""
        self._of, self._name = of, name

    def fail(self, reason: str) -> None:
        """Count a failure."""
        self.failed += 1
        self.last_failure = reason

    @property
    def counts(self) -> Counts:
        """What came of it so far."""
        return Counts(
            of=self._of,
            file=self._name,
            taken=self.taken,
            failed=self.failed,
            lost=self.lost,
            last_failure=self.last_failure,
        )


Take = Callable[[threading.Event], None]


def record(wanted: Wanted, stop: threading.Event, tell: Callable[[str], None]) -> Recording:
    """Record until `stop` is set, the time is over or the limit is reached.

    Raises BadInput: the folder is taken, something cannot be opened, or nothing ever came; then
    nothing is left of it.
    """
    with _folder(wanted.folder):
        return _recorded(wanted, stop, tell)


def _recorded(wanted: Wanted, stop: threading.Event, tell: Callable[[str], None]) -> Recording:
    budget = Budget(wanted.max_bytes)
    start_s, began_s = time.time(), time.monotonic()
    over = threading.Event()
    broken: list[Exception] = []
    ended: Ended = "recording"
    inputs, takers = _prepared(wanted, budget)

    def state() -> Recording:
        return Recording(
            start_s=start_s,
            end_s=time.time(),
            every_s=wanted.every_s,
            ended=ended,
            bytes=budget.spent,
            inputs=[each.counts for each in inputs],
        )

    def run(take: Take) -> None:
        try:
            take(over)
        except Exception as error:
            broken.append(error)

    threads = [threading.Thread(target=run, args=(take,), daemon=True) for take in takers]
    for thread in threads:
        thread.start()
    saved_s = 0.0
    try:
        while not broken and ended == "recording":
            if stop.wait(_LOOK_S):
                ended = "stopped"
            elif budget.full.is_set():
                ended = "size"
            elif wanted.last_s is not None and time.monotonic() - began_s >= wanted.last_s:
                ended = "time"
            tell(said(state()))
            if time.monotonic() - saved_s >= FLUSH_S:
                _save(wanted.folder, state())
                saved_s = time.monotonic()
    finally:
        over.set()
        for thread in threads:
            thread.join(1.0)  # one that still waits for an answer has nothing to add
        for each in inputs:
            each.file.flush()
        result = state()
        _save(wanted.folder, result)
    if broken:
        raise broken[0]
    if not any(each.taken for each in inputs):
        raise BadInput(_nothing(result))
    return result


def said(state: Recording) -> str:
    """How far a recording is, in a line."""
    parts = [f"{state.end_s - state.start_s:,.0f} s", f"{state.bytes / 1e6:,.1f} MB"]
    for each in state.inputs:
        part = f"{each.taken:,} {_UNITS[re.split('[.-]', each.file)[0]]}"
        if each.failed and each.last_failure:
            part += f", {each.failed:,} failed"
        if each.lost:
            part += f", {each.lost:,} lost"
        if each.failed and not each.taken:
            part += f" ({each.last_failure})"
        parts.append(part)
    return "recording: " + "; ".join(parts)


_LOG: Final = "server.log.gz"
_UNITS: Final = {"metrics": "scrapes", "kv_events": "batches of events", "server": "log lines"}


def _prepared(wanted: Wanted, budget: Budget) -> tuple[list[Input], list[Take]]:
    """Open every input and its file."""
    inputs: list[Input] = []
    takers: list[Take] = []

    def opened(of: str, name: str) -> Input:
        inputs.append(Input(of, Growing(wanted.folder / name, budget), name))
        return inputs[-1]

    several = len(wanted.metrics) > 1
    servers = [urlsplit(address).netloc.rpartition("@")[2] for address in wanted.metrics]
    for place, address in enumerate(wanted.metrics):
        number = f"-{place + 1}" if several else ""
        entry = opened(_without_secrets(address), f"metrics{number}.prom.gz")
        scraper = Scraper(
            address,
            entry,
            every_s=wanted.every_s,
            instance=servers[place] if several else None,
            everything=wanted.every_metric,
        )
        takers.append(scraper.take)
    digests = Digests()
    several = several or len(wanted.events) > 1
    if len(servers) != len(wanted.events):
        servers = [endpoint.rpartition("//")[2] for endpoint in wanted.events]
    for place, endpoint in enumerate(wanted.events):
        number = f"-{place + 1}" if len(wanted.events) > 1 else ""
        entry = opened(endpoint, f"kv_events{number}.jsonl.gz")
        instance = servers[place] if several else None
        takers.append(EventListener(endpoint, entry, digests, instance=instance).take)
    if wanted.log is not None:
        takers.append(LogFollower(wanted.log, opened(wanted.log.name, _LOG)).take)
    return inputs, takers


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the folder, and take it away where what follows is refused: it can be tried again."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise BadInput(
            f"-o {folder}: {error.strerror or error}; name a folder that can be written"
        ) from None
    if taken:
        raise BadInput(f"-o {folder}: it is not empty; name a folder of the recording's own")
    try:
        yield
    except BadInput:
        for ours in folder.iterdir():
            ours.unlink()
        if not existed:
            folder.rmdir()
        raise


def _save(folder: Path, state: Recording) -> None:
    draft = folder / "recording.json.part"
    draft.write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / "recording.json")


def _address(said: str) -> str:
    """An address as it is asked. Raises BadInput."""
    address = said if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", said) else f"http://{said}"
    try:
        parts = urlsplit(address)
        if not parts.hostname or parts.port == 0 or re.search(r"\s", address):
            raise ValueError(said)
        if parts.scheme not in {"http", "https"}:
            raise ValueError(said)
    except ValueError:
        raise BadInput(
            f"--metrics {said}: it is no address; give it like http://localhost:8000/metrics"
        ) from None
    path = "/metrics" if parts.path in {"", "/"} else parts.path
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _without_secrets(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _nothing(state: Recording) -> str:
    reasons = [
        f"{each.of}: {each.last_failure or 'nothing came'}"
        for each in state.inputs
        if not each.taken
    ]
    return f"nothing was recorded: {'; '.join(reasons)}; is the server running?"
