"""Many simulations: what comes out does not depend on where, nor in which order, they were run."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.machine import spread
from bench.waste.parallel import Job, default_workers, run_jobs
from bench.waste.record import WasteRow
from helpers.waste_records import job
from reference.errors import BadInput

POLICIES = ("max/buddy", "oracle/first-fit", "paged", "paged:prefix=lru", "paged:block=64")
JOBS = [job(policy, "alpaca-fit:requests=120", slots=4096, warmup=12) for policy in POLICIES]


def rows(jobs: list[Job] = JOBS, **where: object) -> dict[int, WasteRow]:
    done = run_jobs(jobs, **where)  # type: ignore[arg-type]
    return {index: row.model_copy(update={"seconds": 0.0}) for index, row in done}


@pytest.fixture(scope="module")
def alone() -> dict[int, WasteRow]:
    return rows(workers=1)


def test_every_job_is_run_once(alone: dict[int, WasteRow]) -> None:
    assert sorted(alone) == [0, 1, 2, 3, 4]
    assert {row.total.completed for row in alone.values()} == {120}
    assert len({row.total.steps for row in alone.values()}) == 4


def test_processes_give_what_one_process_gives_and_end(alone: dict[int, WasteRow]) -> None:
    assert rows(workers=2) == alone
    assert not workers_left()
    done = run_jobs([replace(JOBS[3], requests=10**6), *JOBS], workers=2)
    next(done)
    done.close()  # nobody wants the rest
    assert not workers_left()


def workers_left() -> str:
    command = ["ps", "-o", "args=", "--ppid", str(os.getpid())]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return "\n".join(line for line in said.splitlines() if "popen_loky" in line)


@pytest.mark.slow
def test_ray_gives_what_one_process_gives_and_is_shut_down(
    alone: dict[int, WasteRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason='needs Ray: pip install "pagedbench[ray]"')
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    try:
        assert rows(ray=True, workers=1) == alone
        assert not ray.is_initialized()
    finally:
        ray.shutdown()


def test_without_ray_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r'pip install "pagedbench\[ray\]"'):
        next(run_jobs(JOBS, ray=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_cannot_be_run_says_which_and_why(workers: int) -> None:
    wrong = [JOBS[2], replace(JOBS[0], clients=3)]
    with pytest.raises(BadInput, match=r"max/buddy.* on alpaca-fit: clients = 3"):
        rows(wrong, workers=workers)


def test_what_takes_longest_is_begun_first() -> None:
    jobs = [JOBS[0], JOBS[2], JOBS[3], replace(JOBS[2], requests=10**6)]
    assert list(rows(jobs, workers=1)) == [3, 2, 1, 0]


def test_processes_are_for_work_that_is_worth_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert default_workers(JOBS) == 1
    long = replace(JOBS[2], requests=10**6)
    assert default_workers([long]) == 1
    assert default_workers([long] * 3) == 3
    assert default_workers([long] * 30) == 8


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers = 0: use 1 or more"):
        rows(workers=0)


INTERRUPT_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def interrupted() -> int:
    command = [sys.executable, "-S", "-c", INTERRUPT_ITSELF]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_ctrl_c_does_not_reach_processes_that_are_started() -> None:
    assert interrupted() != 0
    with spread.deaf_to(signal.SIGINT):
        assert interrupted() == 0
    assert interrupted() != 0
