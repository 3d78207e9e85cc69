"""Judges on a Ray cluster answer what judges here answer. Ray is a stand-in: it calls at once."""

import sys
from types import SimpleNamespace

import pytest

from bench.check import search as cross_check
from bench.search.lanes import HarnessError
from helpers.check_scenarios import PASSED, Kernel, run
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status
from subjects.process import SubjectDied


class RayError(Exception):
    pass


def stand_in(ended: list[object]) -> SimpleNamespace:
    def actor_of(made: type) -> SimpleNamespace:
        def remote(*arguments: object) -> SimpleNamespace:
            actor = made(*arguments)
            return SimpleNamespace(ask=SimpleNamespace(remote=lambda *a: lambda: actor.ask(*a)))

        return SimpleNamespace(remote=remote)

    return SimpleNamespace(
        remote=lambda **_: actor_of,
        get=lambda later: later(),
        kill=ended.append,
        exceptions=SimpleNamespace(RayError=RayError),
    )


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    ended: list[object] = []
    monkeypatch.setitem(sys.modules, "ray", stand_in(ended))
    return ended


def test_a_campaign_on_a_cluster_finds_what_it_finds_here(ended, monkeypatch) -> None:
    def reply(check: str, problem: AttentionProblem) -> dict:
        if problem.window is not None:
            raise SubjectDied("was killed by SIGSEGV", timed_out=False)
        return PASSED

    kernel = Kernel(reply)
    monkeypatch.setattr(cross_check, "start", kernel.start)
    here = run(problems=8, last_seed=1)
    there = run(problems=8, last_seed=1, ray=True, lanes=2)
    assert here.failures[0].findings == ("the kernel's process was killed by SIGSEGV",)
    assert {f.problem for f in here.failures} == {f.problem for f in there.failures}
    assert there.checks["truth"].get(Status.PASSED.value)
    assert ended


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), RayError("the node is gone")])
def test_what_is_ours_there_is_ours_here(ended, monkeypatch, error) -> None:
    def reply(*_: object) -> dict:
        raise error

    monkeypatch.setattr(cross_check, "start", Kernel(reply).start)
    with pytest.raises(HarnessError, match=str(error)):
        run(problems=2, ray=True)
