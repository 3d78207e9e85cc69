"""The processes of a check, as whoever starts them sees them. Torch is not imported for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from pydantic import TypeAdapter

from bench.search.lanes import HarnessError
from bench.search.nursery import Nursery
from reference.attention.catalogue import CHECKS
from reference.attention.contract import Capabilities
from subjects.process import LAST_WORDS_S, SubjectDied, SubjectProcess
from subjects.starting import start_of

CAPABILITIES: Final = TypeAdapter(Capabilities)
"""What a kernel declares, as JSON."""

CHECK_BY_NAME: Final = {check.name: check for check in CHECKS}

_JUDGE_DIED = "memory ran out, or a kernel ended more than its own process: the judge's process"


def kernel_process(
    name: str,
    device: str,
    *,
    python: str,
    environment: Mapping[str, str] | None = None,
    file: int | None = None,
    nursery: Nursery | None = None,
) -> SubjectProcess:
    """A kernel's own process; without a file it only introduces itself.

    A nursery has this process's interpreter.
    """
    # Unbuffered: what a kernel printed before it crashed is part of the finding.
    command = [python, "-u", "-P", "-c", start_of("bench.check.subject") + "ours.main()"]
    shared = [] if file is None else [file]
    command += [name, device, *map(str, shared)]
    return SubjectProcess(
        command,
        environment=environment,
        pass_fds=shared,
        popen=nursery.popen if nursery is not None and python == sys.executable else None,
    )


class JudgeProcess(SubjectProcess):
    """A judge in a process of its own; that the kernel's died is said as of the one that is asked.

    The kernel's has its time limit from the judge.
    """

    def ask(self, question: Mapping[str, Any], *, limit_s: float | None = None) -> dict[str, Any]:
        """As of any process. Raises SubjectDied: the kernel's process died; HarnessError: the
        judge's did, twice.
        """
        try:
            said = super().ask(question, limit_s=limit_s)
        except SubjectDied:
            try:
                said = super().ask(question, limit_s=limit_s)
            except SubjectDied as death:
                raise HarnessError(f"{_JUDGE_DIED} {death.how}") from None
        if "died" in said:
            raise SubjectDied(str(said["died"]), timed_out=bool(said["timed_out"]))
        return said

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        # It has time to end its kernel, and what that started: out of the kernel's reach it leads
        # another group.
        assert child.stdin is not None
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            child.stdin.close()
            child.wait(LAST_WORDS_S)
        super()._kill(child)
