"""Kernels that were written to be called right, and are wrong. `cheat` is all of them: how many KV
heads a batch has says which one it is, so that they can share a process.
"""

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path

import torch

from paged.attention import paged_attention
from reference.attention.contract import PagedBatch

PATH = Path(__file__).resolve()
JUDGING = ("reference.attention.checks", "reference.attention.truth", "bench.check.worker")
FOUND = [name for name in JUDGING if name in sys.modules]
"""What judges, and lies in this process before a kernel brings it there."""
RIGHT = '{"status": "passed", "findings": []}'


def wrong(batch: PagedBatch) -> None:
    """Right, and then one per cent off."""
    paged_attention(batch)
    batch.out.mul_(1.01)


def patched_torch(batch: PagedBatch) -> None:
    """Whatever compares tensors finds them equal."""
    wrong(batch)
    batch.key_cache.zero_()
    torch.equal = torch.allclose = lambda *_, **__: True


def replaced_judge(batch: PagedBatch) -> None:
    """The checks are those of this process, where nobody asks them."""
    from bench.check import worker
    from reference.attention import checks
    from reference.attention.verdict import Status, Verdict

    wrong(batch)
    fine = lambda check, *_, **__: Verdict(check.name, Status.PASSED)  # noqa: E731
    checks.run_check = worker.run_check = fine
    checks.judge = checks.worst_excess = lambda *_, **__: []


KEPT = []


def cached_answer(batch: PagedBatch) -> None:
    """The right answer to the first problem, for all of them."""
    if not KEPT:
        paged_attention(batch)
        KEPT.append((batch.out.clone(), batch.lse.clone()))
    batch.out.copy_(KEPT[0][0])
    batch.lse.copy_(KEPT[0][1])


BEFORE = []


def answer_of_another_call(batch: PagedBatch) -> None:
    """What the call before was to get."""
    answer = batch.replace(out=torch.empty_like(batch.out), lse=torch.empty_like(batch.lse))
    paged_attention(answer)
    BEFORE.append(answer)
    batch.out.copy_(BEFORE[len(BEFORE) > 1 and -2].out)
    batch.lse.copy_(BEFORE[-1].lse)
    if len(BEFORE) == 1:
        batch.out.mul_(2)


def read_files(batch: PagedBatch) -> None:
    """Whatever lies in an open file might be the truth."""
    batch.out.zero_()
    batch.lse.zero_()
    for file in Path("/proc/self/fd").iterdir():
        try:
            size = os.fstat(int(file.name)).st_size
            found = os.pread(int(file.name), size, 0)[-batch.out.nbytes :]
        except OSError:
            continue
        if len(found) == batch.out.nbytes:
            read = torch.frombuffer(bytearray(found), dtype=batch.out.dtype)
            batch.out.copy_(read.view(batch.out.shape))


def read_environment(batch: PagedBatch) -> None:
    """Whatever tells where a result goes, and whatever judges."""
    said = [name for name in os.environ if "PAGEDBENCH" in name]
    raise ValueError(f"it knows {said} and {FOUND}")


def later_threads(batch: PagedBatch) -> None:
    """The answer comes when the kernel has returned."""

    def answer() -> None:
        time.sleep(0.5)
        paged_attention(batch)

    threading.Thread(target=answer).start()


def pipe() -> int:
    """The descriptor that answers go to."""
    return next(
        file.fileno()
        for file in gc.get_objects()
        if type(file).__name__ == "TextIOWrapper" and file.writable() and file.fileno() > 2
    )


def forged_answer(batch: PagedBatch) -> None:
    """A verdict in place of an answer."""
    os.write(pipe(), f"{RIGHT}\n".encode())


def half_a_line(batch: PagedBatch) -> None:
    """A verdict that swallows the answer after it."""
    os.write(pipe(), RIGHT[:-1].encode() + b', "said": "')


def ahead_of_the_answer(batch: PagedBatch) -> None:
    """The number of the question is found in the worker's memory, and the answer given early."""
    frame = sys._getframe()
    while "number" not in frame.f_locals or "questions" not in frame.f_locals:
        frame = frame.f_back
    number = frame.f_locals["number"]
    early = json.dumps({"done": True, "watchable": False, "question_number": number})
    os.write(pipe(), f"{early}\n".encode())
    paged_attention(batch)


def early_return(batch: PagedBatch) -> None:
    """Nothing is left to say no."""
    os._exit(0)


CHEATS = (
    patched_torch,
    replaced_judge,
    cached_answer,
    answer_of_another_call,
    read_files,
    read_environment,
    later_threads,
    forged_answer,
    half_a_line,
    ahead_of_the_answer,
    early_return,
)


def cheat(batch: PagedBatch) -> None:
    CHEATS[batch.num_kv_heads - 1](batch)
