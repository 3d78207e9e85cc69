"""Wrong kernels judged by the bytes that they move, against the closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from triton import next_power_of_2

from helpers.mutants import CacheCall, Findings, Harness, Kernels
from helpers.traffic import AttentionBytes, launched_bytes, needed_bytes
from helpers.watched import WatchedOperations
from kernels.interpreter.memory import MemoryReport, attention_roles, watch_memory
from kernels.launch import Tiles, choose_launch
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem, torch_dtype


def counted_bytes(by: Harness) -> Harness:
    """The same examples, judged by the bytes that are moved."""
    judge = of_attention if by.operation == "attention" else of_operation
    return replace(
        by,
        says=f"bytes of {by.says}",
        judge=lambda planted, example: judge(planted, by, example),
        far=False,
        backwards=False,
    )


def moved(memory: MemoryReport, *, distinct: bool = False) -> AttentionBytes:
    """What was counted of the four tensors that the closed forms speak of."""
    kind, counted = "_distinct" if distinct else "", memory.traffic
    return AttentionBytes(
        query=getattr(counted["query"], "loaded" + kind),
        keys=getattr(counted["key_cache"], "loaded" + kind),
        values=getattr(counted["value_cache"], "loaded" + kind),
        out=getattr(counted["out"], "stored" + kind),
    )


def of_attention(planted: Kernels, by: Harness, problem: AttentionProblem) -> Findings:
    batch = place(make_inputs(problem)).batch
    if not problem.num_tokens:
        return []
    tiles = None
    if by.tiles is not None:
        rows = max(by.tiles[1], next_power_of_2(batch.group_size))
        tiles = Tiles(block_n=by.tiles[0], block_m=rows)
    with watch_memory(attention_roles(batch)) as memory:
        planted.attention(num_splits=by.splits, tiles=by.tiles, margins=False)(batch)
    launch = choose_launch(batch, num_splits=by.splits, tiles=tiles)
    pairs = {
        "moved": (moved(memory), launched_bytes(batch, launch)),
        "moved at least once": (moved(memory, distinct=True), needed_bytes(batch)),
    }
    return [
        f"{what}: {got}, the closed form is {form}"
        for what, (got, form) in pairs.items()
        if got != form
    ]


def of_operation(planted: Kernels, by: Harness, call: CacheCall) -> Findings:
    watched = WatchedOperations(planted)
    call.run(by.operation, watched, call.pool(call.storage()))
    return of_watched(watched, by.operation, call)


def of_watched(watched: WatchedOperations, operation: str, call: CacheCall) -> Findings:
    """Bytes of a cache operation that has been watched."""
    slot = call.heads * call.head_dim * call.cache_dtype.itemsize
    new = call.heads * call.head_dim * torch_dtype(call.dtype).itemsize
    if operation == "copy":
        size = len(call.pairs) * call.block_size * slot
        loaded = stored = dict.fromkeys(("key_cache", "value_cache"), size)
    else:
        tokens = sum(number >= 0 for number in call.slots)
        loaded = dict.fromkeys(("new keys", "new values"), tokens * new)
        stored = dict.fromkeys(("key_cache", "value_cache"), tokens * slot)
    forms = [(name, "loaded", form) for name, form in loaded.items()]
    forms += [(name, kind, n) for name, n in stored.items() for kind in _STORED]
    return [
        f"{kind} of {name}: {watched.bytes_of(name, kind)} bytes, the closed form is {form}"
        for name, kind, form in forms
        if watched.bytes_of(name, kind) != form
    ]


_STORED: Final = ("stored", "stored_distinct")
