"""The server of `paged.counting` in machine code, where there is a C compiler and no prefix cache.

`counting.c` takes every step one after the other, which costs a few nanoseconds there. It is
compiled when it is first needed, and kept in the user's cache. Where that cannot be done,
`paged.counting` comes to the same figures, a great deal slower: a property test holds the two, and
the server that moves blocks, to each other.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import signal
import subprocess
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ctypes import POINTER, c_int64, c_void_p
from functools import cache
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from paged.accounting import TierUse
from paged.arrivals import Request, opened
from paged.clock import PS_PER_NS
from paged.counted import COUNTS, Setting, Snapshot
from paged.latency import Histogram, Service, Slo, Watch
from paged.layout import GroupSums, GroupTables

SWITCH: Final = "PAGEDBENCH_COMPILED"
"""Variable of the environment that keeps from compiling if it is 0."""

LIMIT_S: Final = 60.0
"""For the compiler, which takes a second."""

_LARGEST: Final = 2**62
"""What is larger than that, or takes longer, is left to Python."""
_BATCH: Final = 1024
_CLASSES: Final = 128 << 9
_RULES: Final = (
    *("blocks", "watermark", "ahead", "most_running", "budget", "swapping", "clients"),
    *("timed", "step_ps", "prompt_ps", "read_ps", "swap_ps", "slo_ttft", "slo_tpot", "slo_e2e"),
)
_SUMS: Final = (
    *("steps", "token", "free", "running", "prefilling", "queued", "computed", "waiting_free"),
    *("clock", "completed", "arrived", "refused"),
)
"""Fields of a `Snapshot` as `server_moment` writes them. The first six of `COUNTS` follow, and the
steps that somebody waited, by reason."""
_FIXED: Final = len(_SUMS) + 6 + 5
"""Numbers of a moment; behind them are those of `GroupSums`."""


class _Rules(ctypes.Structure):
    _fields_ = tuple((name, c_int64) for name in _RULES)


class _Tables(ctypes.Structure):
    _fields_ = tuple((name, c_int64) for name in ("count", "size", "window", "cap"))


_Pull: Final = ctypes.CFUNCTYPE(c_int64)
_State: Final = c_int64 * 3
_Service: Final = ctypes.c_char * (16 * 8)
_Tally: Final = ctypes.c_char * (16 * (4 + 3 * 3))
_Classes: Final = c_int64 * (3 * _CLASSES)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled server; None where there is no compiler, or nowhere to keep what it makes."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pagedbench"
    except RuntimeError:  # Nobody's home is known.
        return None
    return built(Path(__file__).with_name("counting.c"), home)


def built(source: Path, home: Path) -> ctypes.CDLL | None:
    """Compile a server's source, or take what was made of the same one before, in `home`.

    Nothing is loaded that another user could have put there.
    """
    try:
        command = [*(shlex.split(os.environ.get("CC", "")) or ["cc"]), "-O2", "-shared", "-fPIC"]
        made_of = source.read_bytes() + repr((command, platform.machine())).encode()
        made = home / f"{source.stem}-{sha256(made_of).hexdigest()[:16]}.so"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _ours_alone(home):
            return None
        if made.exists() and _ours_alone(made):
            try:
                return _declared(made)
            except (OSError, AttributeError):
                pass  # Not what was written: make it anew.
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            # Another process may be doing the same.
            fresh = Path(scratch, made.name)
            _compile([*command, str(source), "-o", str(fresh)])
            fresh.chmod(0o700)
            fresh.replace(made)
        return _declared(made)
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return None


def _compile(command: list[str]) -> None:
    """Run a compiler; raises SubprocessError: it fails, or takes longer than `LIMIT_S`."""
    none = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=none, stdout=none, stderr=none, start_new_session=True
    ) as compiler:
        try:
            if status := compiler.wait(LIMIT_S):
                raise subprocess.CalledProcessError(status, command)
        except BaseException:
            # With what it has started.
            with suppress(ProcessLookupError):
                os.killpg(compiler.pid, signal.SIGKILL)
            raise


def _ours_alone(path: Path) -> bool:
    """Whether this user owns it, and no other may write to it."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _declared(made: Path) -> ctypes.CDLL:
    """Load a library, and say what its functions take."""
    loaded = ctypes.CDLL(str(made.absolute()))
    loaded.server_new.argtypes = (POINTER(_Rules), c_int64, c_void_p, _Pull, *(c_void_p,) * 5)
    loaded.server_new.restype = c_void_p
    loaded.server_free.argtypes = (c_void_p,)
    loaded.server_free.restype = None
    loaded.server_run.argtypes = (c_void_p, c_int64, c_int64, POINTER(c_int64))
    loaded.server_run.restype = c_int64
    for report in (loaded.server_moment, loaded.server_service):
        report.argtypes = (c_void_p, c_void_p)
        report.restype = None
    loaded.server_tally.argtypes = (c_void_p, c_int64, c_void_p)
    loaded.server_tally.restype = c_void_p
    return loaded


def can_serve(setting: Setting) -> bool:
    """Whether the compiled server is there, and can do this."""
    policy, slots, time = setting.policy, setting.slots, setting.time
    if (layout := setting.layout) is not None:
        slots = setting.num_blocks * max(each.block_size for each in layout.groups)
    longest = time.step_ns + slots * (
        time.prefill_ns_per_token + time.kv_ps_per_token + 2 * time.swap_ns_per_token
    )
    within = max(slots, longest * PS_PER_NS, policy.token_budget or 0, policy.look_ahead) < _LARGEST
    return within and not policy.prefix_caching and library() is not None


def _numbers(written: bytes) -> list[int]:
    return [
        int.from_bytes(written[at : at + 16], "little", signed=True)
        for at in range(0, len(written), 16)
    ]


class Moment:
    """A `Snapshot` as it was written, to be read if it is needed; without groups, there is one."""

    __slots__ = ("_written", "steps")

    def __init__(self, steps: int, written: bytes) -> None:
        self.steps = steps
        self._written = written

    def snapshot(self) -> Snapshot:
        """Read it."""
        numbers = _numbers(self._written)
        sums, counts = numbers[: len(_SUMS)], numbers[len(_SUMS) : _FIXED - 5]
        groups = numbers[_FIXED:]
        return Snapshot(
            **dict(zip(_SUMS, sums, strict=True)),
            # What only a prefix cache has.
            duplicate=0,
            idle=0,
            evictions=0,
            counts=(*counts, *(0,) * (len(COUNTS) - len(counts))),
            waits=tuple(numbers[_FIXED - 5 : _FIXED]),
            groups=tuple(GroupSums(*groups[at : at + 3]) for at in range(0, len(groups), 3)),
        )


class CompiledServer:
    """As `paged.counting.CountingServer`, for what `can_serve`."""

    tiers: tuple[TierUse, ...] = ()
    """Behind its pool there is none."""

    def __init__(self, requests: Iterable[Request], setting: Setting) -> None:
        loaded = library()
        assert loaded is not None
        policy, time, clients = setting.policy, setting.time, setting.clients
        size = policy.block_size
        self.num_blocks = setting.num_blocks
        self.step = self.completed = 0
        self.draining = False
        """Whether every request has been admitted."""
        self._library = loaded
        self._size = setting.size
        first, rest, timed = opened(requests, clients)
        self._slo = setting.slo
        slo = setting.slo or Slo()
        rules = _Rules(
            blocks=self.num_blocks,
            watermark=policy.watermark_blocks(self.num_blocks),
            ahead=policy.look_ahead,
            most_running=min(policy.max_running or self.num_blocks, _LARGEST),
            budget=-1 if policy.token_budget is None else policy.token_budget,
            swapping=policy.preemption == "swap",
            clients=-1 if clients is None else min(clients, _LARGEST),
            timed=timed,
            step_ps=time.step_ns * PS_PER_NS,
            prompt_ps=time.prefill_ns_per_token * PS_PER_NS,
            read_ps=time.kv_ps_per_token,
            swap_ps=size * time.swap_ns_per_token * PS_PER_NS,
            slo_ttft=_limit(slo.ttft_ns),
            slo_tpot=_limit(slo.tpot_ns),
            slo_e2e=_limit(slo.e2e_ns),
        )
        self._failed: list[BaseException] = []
        self._classes = np.zeros(_CLASSES, np.int64)
        self._state = _State()
        columns = np.zeros((4, _BATCH), np.int64)
        pull = _Pull(_filling(columns, chain((first,), rest), self._failed))
        alone = GroupTables(count=1, block_size=size, token_bytes=1)
        tables = [
            _Tables(each.count, each.block_size, each.window, each.cap(policy.token_budget))
            for each in (setting.layout.groups if setting.layout else (alone,))
        ]
        groups = (_Tables * len(tables))(*tables)
        self._kept = columns, pull, groups
        self._moment = ctypes.c_char * (16 * (_FIXED + 3 * len(groups)))
        server = loaded.server_new(
            rules,
            len(groups),
            groups,
            pull,
            *(column.ctypes.data for column in columns),
            self._classes.ctypes.data,
        )
        if not server:
            raise MemoryError
        self._server = server
        weakref.finalize(self, loaded.server_free, server)

    @property
    def peak_running(self) -> int:
        """Most requests that ran at once."""
        return self._whole()[0]

    @property
    def peak_allocated(self) -> int:
        """Most slots that were allocated at once."""
        return (self.num_blocks - self._whole()[1]) * self._size

    def take_steps(self, due: int, completed: int | None) -> bool | None:
        """Take a step, and at once those behind it up to `due`, or until so many are completed.

        Returns whether a request was admitted in the last one, which it is if it admits the last
        request; None: there is nothing more to do. Raises BadSize: a wrong stream.
        """
        state = self._state
        completed = _LARGEST if completed is None else completed
        admitted = self._library.server_run(self._server, due, completed, state)
        if self._failed:
            raise self._failed[0]
        self.step, self.completed, self.draining = state[0], state[1], state[2] != 0
        return None if admitted < 0 else admitted != 0

    def snapshot(self) -> Moment:
        """Take down what `counters` makes the counters of this moment of."""
        written = self._moment()
        self._library.server_moment(self._server, written)
        return Moment(self.step, bytes(written))

    def service(self) -> Service:
        """Say what it was like for those who waited."""
        _, _, start, end, tenants, *itl = self._whole()
        watch = Watch(self._slo)
        watch.itl = Histogram.of(self._classes, *itl)
        for at in range(tenants):
            written = _Tally()
            address = self._library.server_tally(self._server, at, written)
            classes = np.ctypeslib.as_array(_Classes.from_address(address)).reshape(3, -1)
            tenant, completed, tokens, good, *noted = _numbers(bytes(written))
            tally = watch.tally(tenant)
            tally.completed, tally.tokens, tally.good = completed, tokens, good
            for n, name in enumerate(("ttft", "tpot", "e2e")):
                setattr(tally, name, Histogram.of(classes[n], *noted[3 * n : 3 * n + 3]))
        return watch.between(start, end)

    def _whole(self) -> list[int]:
        written = _Service()
        self._library.server_service(self._server, written)
        return _numbers(bytes(written))


def _limit(ns: int | None) -> int:
    return -1 if ns is None else min(ns * PS_PER_NS, _LARGEST)


def _filling(columns: Any, source: Iterator[Request], failed: list[BaseException]) -> Any:
    """What puts the next requests into `columns` and returns how many these are."""

    def fill() -> int:
        try:
            batch = list(islice(source, _BATCH))
            if batch:
                prompts, outputs, arrivals, _, tenants = zip(*batch, strict=True)
                for column, values in zip(
                    columns, (prompts, outputs, arrivals, tenants), strict=True
                ):
                    if values[0] is not None:
                        # More tokens than that never fit.
                        column[: len(batch)] = [min(value, _LARGEST) for value in values]
        except BaseException as error:
            failed.append(error)
            return 0
        return len(batch)

    return fill
