"""Calls that are spread: over the cores of this machine, or over a Ray cluster.

What is called, and with what, is sent elsewhere: functions of modules, and data. Results come as
they are done, in any order.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from reference.errors import BadInput
from reference.stack import with_stack_room

GRACE_S: Final = 10.0
"""For what is under way on a cluster when nobody wants the rest."""

T = TypeVar("T")


def in_processes(
    call: Callable[..., T], calls: Sequence[tuple[Any, ...]], *, workers: int
) -> Generator[T]:
    """Make calls in processes, which signals to this one do not reach; end them with the last."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    # Being interrupted is no reason for advice.
    warnings.filterwarnings("ignore", r"\d+ tasks (have been|which were)", UserWarning)
    try:
        with deaf_to(signal.SIGINT, signal.SIGTERM):
            done = Parallel(n_jobs=workers, return_as="generator_unordered")(
                delayed(_made)(call, arguments) for arguments in calls
            )
        with closing(done):
            yield from done
    finally:
        # joblib keeps them for the next call. Here there is none, and whoever reads what the
        # command prints waits until nobody holds its output open.
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=True)


@with_stack_room
def _made(call: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    return call(*arguments)


def on_ray(
    call: Callable[..., T],
    calls: Sequence[tuple[Any, ...]],
    *,
    address: str | None,
    cpus: int | None,
    over: Callable[[], bool] = lambda: False,
) -> Generator[T]:
    """Make calls on the cluster at `address` or RAY_ADDRESS, or on one that is started and ended
    here; once it is `over`, what is not done within `GRACE_S` is left.
    """
    # joblib's own Ray backend hands out its results all at once, at the end; so Ray is asked
    # directly.
    with ray_cluster(address=address, cpus=cpus) as ray:
        remote = ray.remote(num_cpus=1)(call)
        pending = [remote.remote(*arguments) for arguments in calls]
        end = float("inf")
        while pending and time.monotonic() < end:
            done, pending = ray.wait(pending, num_returns=1, timeout=1.0)
            yield from ray.get(done)
            if over():
                end = min(end, time.monotonic() + GRACE_S)


@contextmanager
def ray_cluster(*, address: str | None, cpus: int | None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address` or RAY_ADDRESS, or to one of so many cores that
    is started and ended here.
    """
    try:
        import ray
    except ImportError:
        raise BadInput(
            'Ray is not installed: pip install "pagedbench[ray]", or leave out --ray to use the '
            "cores of this machine"
        ) from None
    # A connection that was there before is not ours to end.
    ours = not ray.is_initialized()
    try:
        if ours:
            address = address or os.environ.get("RAY_ADDRESS")
            starts = address is None
            with deaf_to(signal.SIGINT):  # by SIGTERM Ray ends them
                ray.init(
                    address="local" if starts else address,
                    num_cpus=cpus if starts else None,
                    include_dashboard=False if starts else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        yield ray
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def told_by_file(stop: threading.Event) -> Iterator[Path]:
    """The name of a file that is there once `stop` is set: for calls that are to see it."""
    with tempfile.TemporaryDirectory() as folder:
        over = Path(folder) / "over"

        def pass_on() -> None:
            stop.wait()
            if over.parent.is_dir():
                over.touch()

        threading.Thread(target=pass_on, daemon=True).start()
        yield over


@contextmanager
def stopped_by(over: Path) -> Iterator[threading.Event]:
    """In such a call: an event that is set once the file is there."""
    stop, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not stop.is_set() and not ended.wait(0.2):
            if over.exists():
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield stop
    finally:
        ended.set()


@contextmanager
def deaf_to(*numbers: signal.Signals) -> Iterator[None]:
    """Start processes that signals to the whole job do not reach.

    What Ctrl-C means is for the first process to say. A signal that is blocked stays so in the
    processes that are started meanwhile, from their first moment on; here it comes afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
