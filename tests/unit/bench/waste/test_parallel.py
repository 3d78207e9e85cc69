"""A sweep: what comes out does not depend on where it was run, nor in which order."""

import subprocess
import sys
from dataclasses import replace

import pytest

from bench.waste import parallel as sweep
from bench.waste.parallel import Job, JobFailed, RayMissing, default_workers, run_here, run_on_ray
from bench.waste.policies import parse_policy
from bench.workloads.spec import parse_source

POLICIES = ("max/buddy", "oracle/first-fit", "paged", "paged:prefix=lru", "paged:block=64")


def job(policy: str, stream: str = "alpaca-fit:requests=120", **changes) -> Job:
    changes = {"requests": 120, "slots": 4096, "warmup": 12} | changes
    return Job(source=parse_source(stream), policy=parse_policy(policy), **changes)


JOBS = [job(policy) for policy in POLICIES]


def servings(finished) -> dict:
    return {one.index: one.serving for one in finished}


@pytest.fixture(scope="module")
def alone() -> dict:
    return servings(run_here(JOBS, workers=1))


def test_every_job_is_run_once(alone):
    assert sorted(alone) == [0, 1, 2, 3, 4]
    assert {serving.total.completed for serving in alone.values()} == {120}
    assert len({serving.total.steps for serving in alone.values()}) == 4


def test_processes_give_what_one_process_gives(alone):
    assert servings(run_here(JOBS, workers=2)) == alone


@pytest.mark.slow
def test_ray_gives_what_one_process_gives_and_is_shut_down(alone, monkeypatch):
    ray = pytest.importorskip("ray", reason='needs Ray: pip install "pagedbench[ray]"')
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    try:
        assert servings(run_on_ray(JOBS, cpus=1)) == alone
        assert not ray.is_initialized()
    finally:
        ray.shutdown()


def test_without_ray_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayMissing, match=r'pip install "pagedbench\[ray\]"'):
        next(run_on_ray(JOBS))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_cannot_be_run_says_which_and_why(workers):
    wrong = [job("paged"), job("max/buddy", clients=3)]
    with pytest.raises(JobFailed, match=r"max/buddy.* on alpaca-fit: clients = 3"):
        list(run_here(wrong, workers=workers))


def test_what_takes_longest_is_begun_first():
    jobs = [job("max/buddy"), job("paged"), job("paged:prefix=lru"), job("paged", requests=10**6)]
    begun = [one.index for one in run_here(jobs, workers=1)]
    assert begun == [3, 2, 1, 0]


def test_processes_are_for_work_that_is_worth_their_start(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert default_workers(JOBS) == 1
    long = replace(JOBS[2], requests=10**6)
    assert default_workers([long]) == 1
    assert default_workers([long] * 3) == 3
    assert default_workers([long] * 30) == 8


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers = 0: use 1 or more"):
        list(run_here(JOBS, workers=0))


INTERRUPT_ITSELF = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def interrupted() -> int:
    command = [sys.executable, "-S", "-c", INTERRUPT_ITSELF]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_ctrl_c_does_not_reach_processes_that_a_sweep_starts():
    assert interrupted() != 0
    with sweep._deaf_children():
        assert interrupted() == 0
    assert interrupted() != 0
