"""Judges on a Ray cluster: asked from here, each with its kernel on a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.check.children import JudgeProcess
from bench.search.lanes import HarnessError
from subjects.process import SubjectDied

if TYPE_CHECKING:
    from bench.check.search import SearchPlan


class _OnANode:
    """What runs there: a judge, and what came of a question as data."""

    def __init__(self, plan: SearchPlan) -> None:
        self._judge = plan.start()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._judge.ask(question))
        except SubjectDied as death:
            return {"died": death.how, "timed_out": death.timed_out}
        except Exception as error:
            return {"harness": str(error)}

    def close(self) -> None:
        self._judge.close()


class JudgeOnRay(JudgeProcess):
    """A judge on a node of the cluster that this process is connected to."""

    def __init__(self, plan: SearchPlan) -> None:
        super().__init__([])
        import ray

        self._ray: Any = ray
        self._actor = self._ray.remote(num_cpus=1)(_OnANode).remote(plan)

    def ask(self, question: Mapping[str, Any], *, limit_s: float | None = None) -> dict[str, Any]:
        """As of any judge. Raises HarnessError also where the node is gone."""
        try:
            said: dict[str, Any] = self._ray.get(self._actor.ask.remote(dict(question)))
        except self._ray.exceptions.RayError as error:
            raise HarnessError(f"on the Ray cluster: {error}") from None
        if "died" in said:
            raise SubjectDied(str(said["died"]), timed_out=bool(said["timed_out"]))
        return said

    def kill(self) -> None:
        """End it from any thread."""
        self._ray.kill(self._actor)

    def close(self) -> None:
        """End it; its processes end with it."""
        self._ray.kill(self._actor)
