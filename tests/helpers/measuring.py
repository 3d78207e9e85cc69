"""The measuring process of `pagedbench throughput` as a thread of this one."""

import json
import threading
from queue import SimpleQueue

import torch

from bench.machine.timing import CpuDevice
from bench.throughput.points import Point
from bench.throughput.worker import Measuring
from reference.attention.problem import AttentionProblem
from subjects.process import SubjectDied

SMALL = Point(
    batch="by hand",
    problem=AttentionProblem.parse("(q1 k40) (q1 k17) (q1 k3) h2 g2 d16 b8 bf16"),
)


class SmallCache(CpuDevice):
    """A CPU whose cache is so small that a few small inputs leave it."""

    def __init__(self) -> None:
        self.cache_bytes = 3 * SMALL.kv_bytes


class InAThread:
    """The measuring process as a thread of this one: kernels are closures, a death is raised."""

    def __init__(self) -> None:
        self._questions: SimpleQueue[str] = SimpleQueue()
        self._answers: SimpleQueue[dict | SubjectDied] = SimpleQueue()
        self.started = 0
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            self.started += 1
            child = Measuring(
                SmallCache(),
                hear=lambda: json.loads(self._questions.get()),
                say=lambda message: self._answers.put(json.loads(json.dumps(message))),
            )
            try:
                with torch.no_grad():
                    while True:
                        child.answer_next()
            except SystemExit as end:
                how = "gave no answer within 0.5 s" if end.code else "ended with code 0"
                self._answers.put(SubjectDied(how, timed_out=bool(end.code)))
            except Exception as error:
                self._answers.put(SubjectDied(f"raised {error}", timed_out=False))

    def ask(self, question, *, limit_s=None):
        self._questions.put(json.dumps(question))
        return self.next_answer()

    def next_answer(self, *, limit_s=None):
        answer = self._answers.get(timeout=60)
        if isinstance(answer, SubjectDied):
            raise answer
        return answer

    def close(self) -> None:
        pass
