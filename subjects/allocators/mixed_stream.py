"""Streams of requests to serve from a block allocator as fast as it goes.

The standard library only: it runs in the interpreter of whatever is under test.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

SYSTEM_PROMPTS: Final = (64, 128, 256, 512)
"""Tokens of the system prompts that half of the requests begin with."""

LONGEST_PROMPT: Final = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    prompt: Sequence[int]
    """Token ids."""
    num_generated: int
    """Tokens that are generated, one at a time; at least 1."""


@dataclass(frozen=True, slots=True)
class Served:
    """What serving a stream came to."""

    operations: int
    """Admissions, appends and frees that were granted."""
    hit_tokens: int
    """Prompt tokens that were found cached."""
    preemptions: int
    """Sequences that were given up for want of room, and admitted again."""
    cpu_s: float
    """CPU time of the process, seconds."""
    peak_blocks: int = 0
    """Blocks in use at the end of a pass over what runs, at most; 0 where nobody looked."""
    bytecodes: Mapping[str, int] = field(default_factory=dict)
    """Bytecodes by function, as in `subjects.allocators.bytecodes`; empty where nobody counted."""


def mixed_stream(num_requests: int, *, seed: int = 20) -> list[Request]:
    """Prompts of 256 tokens in the median, half behind a system prompt; 64 are generated in the
    mean.
    """
    draw = random.Random(seed)
    systems = [[draw.randrange(50_000) for _ in range(size)] for size in SYSTEM_PROMPTS]
    requests = []
    for _ in range(num_requests):
        prompt = [draw.randrange(50_000) for _ in range(1 + int(draw.lognormvariate(5.545, 0.8)))]
        if draw.random() < 0.5:
            prompt = draw.choice(systems) + prompt
        requests.append(Request(prompt[:LONGEST_PROMPT], 1 + int(draw.expovariate(1 / 64))))
    return requests


def eviction_stream(num_requests: int, *, seed: int = 20) -> list[Request]:
    """One request in 250 begins with the same prompt of 1,024 tokens, the others are tiny.

    What is tiny leaves blocks that nobody can find again. Whether those go first, or what is cached
    does, decides how often the long prompt is found. 16 tokens are generated in the mean.
    """
    draw = random.Random(seed)
    shared = [draw.randrange(50_000) for _ in range(1024)]
    requests = []
    for _ in range(num_requests):
        prompt = [draw.randrange(50_000) for _ in range(draw.randint(2, 11))]
        if draw.random() < 1 / 250:
            prompt = shared + prompt
        requests.append(Request(prompt, 1 + int(draw.expovariate(1 / 16))))
    return requests


STREAMS: Final = {"mixed": mixed_stream, "evictions": eviction_stream}
"""Streams by name."""


def serve(
    allocator: Any,
    requests: Sequence[Request],
    *,
    max_running: int,
    commits: bool,
    batched: bool = False,
    looks: bool = False,
) -> Served:
    """Serve all requests, first come first served.

    The allocator is empty, and all requests are there from the beginning. With `commits`, `commit`
    follows each call that made room, as in an engine; with `batched`, `append_each` gives every
    running sequence its token in one call. With `looks` the blocks in use are counted, which takes
    time.

    Raises ValueError: a request does not fit into the empty pool, or a batch into what is left.
    """
    admit, append, free = allocator.admit, allocator.append, allocator.free
    commit = allocator.commit if commits else None
    waiting = deque((f"r{number}", request) for number, request in enumerate(requests))
    running: dict[str, list[Any]] = {}
    operations = hit_tokens = preemptions = peak = 0
    began = time.process_time()
    while waiting or running:
        while waiting and len(running) < max_running:
            name, request = waiting[0]
            prompt = request.prompt
            hit = admit(name, prompt, num_tokens=len(prompt), salt="")
            if hit is None:
                break
            if commit is not None:
                commit(name)
            hit_tokens += hit
            running[name] = [request.num_generated, request]
            waiting.popleft()
            operations += 1
        if not running:
            raise ValueError(f"{len(waiting[0][1].prompt)} tokens do not fit into the empty pool")
        if looks:
            peak = max(peak, allocator.counts()[2])
        if batched:
            names = list(running)
            if not allocator.append_each(names, [running[name][0] for name in names]):
                raise ValueError(f"no room for a token of each of {len(names)} sequences")
        for name, state in list(running.items()):
            left = state[0]
            if not batched and not append(name, [left]):
                # What was generated is forgotten: the request starts anew when there is room.
                free(name)
                del running[name]
                waiting.appendleft((name, state[1]))
                preemptions += 1
                continue
            if commit is not None:
                commit(name)
            operations += 1
            state[0] = left - 1
            if left == 1:
                del running[name]
                free(name)
                operations += 1
    return Served(operations, hit_tokens, preemptions, time.process_time() - began, peak)
