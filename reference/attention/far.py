"""Far pages: block ids and offsets of more than 16 and 32 bits, in memory that nobody pays for.

A large pool is an address range: the system backs only what is touched. Before it lies as much
again, so that an offset that wraps in 32 bits leads to a wrong number and not out of the process.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import resource
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from reference.attention.problem import AttentionProblem
from reference.attention.size import BEYOND

LEAD: Final = BEYOND
"""Elements before whatever is far."""

_STATUS: Final = Path("/proc/self/status")

_NORESERVE: Final = 0x4000
"""Linux: what is not touched is not counted."""


_FILES: dict[int, int] = {}
"""Files that far memory lies in, by its address."""

COPIES: Final = 2 * 2**30
"""Bytes that a kernel may ask for in a call on a far pool: room for scratch, none for the pool."""


class NoRoom(Exception):
    """No such range of addresses is lent here; the message says how large it was to be."""


@contextmanager
def no_room_for_copies() -> Iterator[None]:
    """Within this context memory for a copy of a far pool is refused, instead of the machine's
    last bytes being used up.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    status = _STATUS.read_text() if _STATUS.exists() else ""
    used = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    if used is None:  # not Linux
        yield
        return
    limit = 1024 * int(used[1]) + COPIES
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def lacked_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was refused."""
    said = str(error).lower()
    words = ("allocate memory", "bad_alloc", "memoryerror")
    return isinstance(error, MemoryError) or any(word in said for word in words)


def far_ids(problem: AttentionProblem, count: int, rng: torch.Generator) -> Tensor:
    """So many blocks of the problem's pool, no two the same, beyond the reach of 16 bits and of
    32-bit offsets where the pool is.
    """
    assert problem.pool is not None
    elements = problem.block_size * problem.num_kv_heads * problem.stored_sizes[0]
    low = max(2**16, BEYOND // elements + 1)
    if problem.pool - low < 4 * count + 8:
        low = 0
    if problem.pool - low < 4 * count + 8:
        return torch.randperm(problem.pool, generator=rng)[:count]
    drawn = torch.randint(low, problem.pool, (2 * count + 8,), generator=rng)
    # The last one is used always: where a bound is one too small, it shows.
    ids = torch.cat([torch.tensor([problem.pool - 1]), drawn]).unique()
    ids = ids[torch.randperm(len(ids), generator=rng)]
    last = ids == problem.pool - 1
    ids = torch.cat([ids[last], ids[~last]])[:count]
    return ids[torch.randperm(len(ids), generator=rng)]


def cut_ids(used: Tensor, num_blocks: int) -> Tensor:
    """The blocks that are used, their neighbours, and where ids of 7, 8, 15 and 16 bits lead."""
    cut = [used & (2**bits - 1) for bits in (7, 8, 15, 16)]
    beside = [(used + off).clamp(0, num_blocks - 1) for off in (-1, 1)]
    ids = torch.cat([used, *beside, *cut]).unique()
    numbers: Tensor = ids[ids < num_blocks]
    return numbers


def cut_offsets(used: Tensor, stride: int) -> list[int]:
    """Elements from the pool's first to where an offset of 31 or 32 bits leads."""
    offsets = [block * stride for block in used.tolist()]
    cut = {offset % BEYOND for offset in offsets}
    cut |= {offset % (2 * BEYOND) for offset in offsets}
    cut |= {(offset + BEYOND) % (2 * BEYOND) - BEYOND for offset in offsets}
    return sorted(cut - set(offsets))


def far_rows(shape: tuple[int, ...], rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of at least three rows that lie so far apart that the last is out of 32 bits."""
    width = 1
    for size in shape[1:]:
        width *= size
    stride = max(-(-BEYOND // (rows - 1) // 16) * 16 + 16, width)
    whole = untouched((shape[0] * stride,), dtype, device)
    inner = whole[:width].view(shape[1:]).stride()
    rows_apart: Tensor = whole.as_strided(shape, (stride, *inner), whole.storage_offset())
    return rows_apart


def untouched(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that holds zeros and costs what is touched of it, behind `LEAD` elements.

    Raises NoRoom: no such memory is to be had.
    """
    count = 1
    for size in shape:
        count *= size
    needed = (LEAD + count) * dtype.itemsize
    return room_for(needed, device).view(dtype)[LEAD:].view(shape)


def room_for(size: int, device: torch.device) -> Tensor:
    """So many bytes, [size] uint8, that cost what is touched of them. Raises NoRoom."""
    if device.type != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        if size > free // 3:
            raise NoRoom(f"{size / 1e9:,.0f} GB, and the GPU has {free / 1e9:,.0f} GB free")
        return torch.empty(size, dtype=torch.uint8, device=device)
    file = None
    try:
        if _in_files:
            file = memory_file()
            os.ftruncate(file, size)
            memory = mmap.mmap(file, size)
        else:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
            memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, ValueError, OverflowError) as error:
        if file is not None:
            os.close(file)
        raise NoRoom(f"{size / 1e9:,.0f} GB of addresses are not to be had: {error}") from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(
            mmap.MADV_NOHUGEPAGE
        )  # a page of 2 MiB is zeroed for each block that is used
    room: Tensor = torch.frombuffer(memory, dtype=torch.uint8)
    if file is not None:
        _FILES[room.data_ptr()] = file
        weakref.finalize(memory, _forget, room.data_ptr())
    return room


_in_files = False


def keep_in_files() -> None:
    """From now on far memory lies in files, so that `touched` can tell what it holds."""
    global _in_files  # noqa: PLW0603 - of the process
    _in_files = True


def memory_file() -> int:
    """A new file in memory, which ends with its last descriptor. On Linux nobody who has it can
    make it smaller, which would kill whoever else reads it.
    """
    if hasattr(os, "memfd_create"):
        shared = os.memfd_create("pagedbench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return shared
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def touched(address: int, size: int) -> list[tuple[int, int]] | None:
    """Where anything lies in far memory, (first byte, bytes) each; None of memory that is near."""
    file = _FILES.get(address)
    if file is None:
        return None
    parts, end = [], 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:
            break  # nothing more
        end = os.lseek(file, start, os.SEEK_HOLE)
        parts.append((start, end - start))
    return parts


def _forget(address: int) -> None:
    os.close(_FILES.pop(address))
