"""What the children of the commands have in common: how they listen, and how they die.

A child reads questions from standard input and answers on a descriptor of its own, JSON lines both;
see `subjects.process`, which starts and ends it.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, Final, NoReturn

PR_SET_PDEATHSIG: Final = 1
"""Linux: the signal that a process gets when its parent ends."""


def open_answers() -> IO[str]:
    """Where answers go, so that whatever runs here may print; `{}` is said at once."""
    descriptor = int(os.environ.pop("PAGEDBENCH_ANSWERS"))
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword
    answers = os.fdopen(descriptor, "w", buffering=1)
    answers.write("{}\n")
    return answers


def speak_when_dying() -> None:
    """A crash says where it was, and leaves no core file: a search may crash hundreds of times."""
    faulthandler.enable(all_threads=False)
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end_with_parent() -> None:
    """Let this process be killed when the one that started it ends: one that hangs hears nothing.

    On Linux; elsewhere `listen` has to notice.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def listen(*, ending: Callable[[], object] = lambda: None) -> SimpleQueue[str]:
    """Questions as they come. When no more can come this process ends, hung subject or not, after
    `ending`.
    """
    mine = os.fdopen(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a subject that reads standard input must not get the questions
    os.close(nothing)
    questions: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        try:
            for line in mine:
                questions.put(line)
        except OSError:
            _end_without_descriptors()
        ending()
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return questions


def answer_questions(
    answers: IO[str],
    questions: SimpleQueue[str],
    answer: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> NoReturn:
    """Answer each question, with its number, until `listen` ends the process."""
    while True:
        question = json.loads(questions.get())
        number = question.pop("question_number")
        try:
            answers.write(json.dumps({**answer(question), "question_number": number}) + "\n")
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            _end_without_descriptors()


_ending = threading.Lock()


def _end_without_descriptors() -> NoReturn:
    """End, saying why, whichever thread notices first."""
    _ending.acquire()
    with suppress(OSError):
        os.write(2, b"a descriptor was closed that is not the subject's own")
    os._exit(1)
