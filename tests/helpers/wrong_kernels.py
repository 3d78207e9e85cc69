"""Small kernels for the main job: one is right, one is narrow, each of the others is wrong one way.

All are paged attention in torch and a few lines. Most do wrong only where a context is longer than
`SHORT`, so that there is something to shrink: the smallest problem that shows it has `SHORT` + 1
tokens. Name them on the command line as `tests/helpers/wrong_kernels.py:NAME`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from paged.attention import paged_attention
from reference.attention.contract import Capabilities, PagedBatch, declares

SHORT = 40
PATH = Path(__file__).resolve()
NARROW = Capabilities(
    dtypes=frozenset({"bf16"}),
    kv_dtypes=frozenset(),
    head_dims=frozenset({32}),
    block_sizes=frozenset({16}),
    variants=frozenset(),
)


def named(kernel: str) -> str:
    """The name of one of these kernels on the command line, from any folder."""
    return f"{PATH}:{kernel}"


def right(batch: PagedBatch) -> None:
    paged_attention(batch)


def scaled(batch: PagedBatch) -> None:
    """One per cent too much."""
    paged_attention(batch)
    if batch.max_seq_len > SHORT:
        batch.out.mul_(1.01)


def window_off_by_one(batch: PagedBatch) -> None:
    window = None if batch.window is None else batch.window + 1
    paged_attention(batch.replace(window=window))


def writes_nothing(batch: PagedBatch) -> None:
    pass


def writes_cache(batch: PagedBatch) -> None:
    """The answer is right; a slot that it may only read is not what it was."""
    paged_attention(batch)
    if batch.max_seq_len > SHORT:
        block = int(batch.block_table[int(batch.seq_lens.argmax()), 0])
        batch.key_cache.view(torch.uint8)[block, 0, 0, 0] ^= 1


def raises(batch: PagedBatch) -> None:
    if batch.max_seq_len > SHORT:
        raise ValueError(f"no tile for [b] {batch.max_seq_len} tokens")
    paged_attention(batch)


@declares(NARROW)
def segfaults(batch: PagedBatch) -> None:
    if batch.max_seq_len > SHORT:
        sys.stdout.write("about to crash\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    paged_attention(batch)


@declares(NARROW)
def closes_descriptors(batch: PagedBatch) -> None:
    if batch.max_seq_len > SHORT:
        os.closerange(3, 64)
    paged_attention(batch)


@declares(NARROW)
def ends_its_group(batch: PagedBatch) -> None:
    if batch.max_seq_len > SHORT:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    paged_attention(batch)


@declares(NARROW)
def leaves_a_child(batch: PagedBatch) -> None:
    left = Path(os.environ["LEFT"])
    left.with_suffix(".new").write_text(str(subprocess.Popen(["sleep", "3600"]).pid))
    left.with_suffix(".new").rename(left)
    time.sleep(3600)


@declares(NARROW)
def hangs(batch: PagedBatch) -> None:
    if batch.max_seq_len > SHORT:
        time.sleep(3600)
    paged_attention(batch)


def hangs_after_a_while(batch: PagedBatch) -> None:
    """Right for some calls; then makes the file that HANGS names, and never returns."""
    hangs_after_a_while.calls += 1
    if hangs_after_a_while.calls > 12:
        Path(os.environ["HANGS"]).touch()
        time.sleep(3600)
    paged_attention(batch)


hangs_after_a_while.calls = 0


def fails_by_chance(batch: PagedBatch) -> None:
    """Wrong in its tenth call, whatever is asked."""
    fails_by_chance.calls += 1
    paged_attention(batch)
    if fails_by_chance.calls == 10:
        batch.out.zero_()


fails_by_chance.calls = 0


def prints(batch: PagedBatch) -> None:
    """Right, and noisy on both streams; reads standard input too."""
    sys.stdout.write('{"status": "failed"}\n')
    sys.stderr.write("x" * 10_000)
    assert sys.stdin.read() == ""
    paged_attention(batch)


@declares(NARROW)
def narrow(batch: PagedBatch) -> None:
    """Right, and raises if it is asked for anything that it does not declare."""
    asked = (batch.query.dtype, batch.key_cache.dtype, *batch.key_cache.shape[1::2])
    assert asked == (torch.bfloat16, torch.bfloat16, 16, 32), asked
    assert batch.causal
    assert batch.max_query_len <= 1
    assert (batch.window, batch.softcap, batch.alibi_slopes, batch.sinks) == (None,) * 4
    paged_attention(batch)


@declares({"dtypes": {"bf16"}})
def declares_a_dict(batch: PagedBatch) -> None:
    raise AssertionError
