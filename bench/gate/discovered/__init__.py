"""What asv discovers, made from the catalogue of `bench.gate.suite`: a class for each group.

A series is known across commits by class, method and key, as in
`Allocator.time_call('allocator/hit')`: renaming a key starts a new series. So does another
`version`, which every class states: raise it where the same names come to measure something else.
Left to itself asv takes a hash of the source, which a comment changes and a helper does not. asv
takes less for better, so every counter that is followed here is a cost: misses, not hits.

asv runs each entry in a process forked from one that has imported this package, once a round, the
rounds of one entry far apart in time, and calls `setup` before every sample. A call leaves
everything as it found it, so what is set up is built once per process and kept.

The environment holds torch, triton and numpy only. Nothing here may import anything else, nor
triton or CUDA before it is known that there is a GPU: a forked process cannot use a CUDA context
that its parent opened. The interpreted kernels are left out: they need TRITON_INTERPRET, with which
no compiled one can be timed in the same environment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import torch

from bench.gate.observing import function_calls
from bench.gate.suite import SUITE, Prepared

LEFT_OUT: Final = ("kernels",)
SERVERS: Final = ("/max", "/pow2", "/oracle", "/paged:")
CACHES: Final = ("/conversations", "/replay")

FOLLOWED: Final[dict[str, dict[str, tuple[str, tuple[str, ...]]]]] = {
    "allocator": {
        "calls": ("calls", ("/churn[caching", "/hit", "/evict", "/fork")),
        "peak_blocks": ("blocks", ("/stream", "/beam")),
        "copies": ("blocks", ("/beam",)),
        "missed_tokens": ("tokens", ("/common-prefix",)),
    },
    "memory": {
        "wasted_slot_steps": ("slot-steps", ("/",)),
        "allocated_slot_steps": ("slot-steps", ("/",)),
    },
    "waste": {
        "wasted_slot_steps": ("slot-steps", SERVERS),
        "steps": ("steps", SERVERS),
        "preemptions": ("preemptions", ("/paged:",)),
        "recomputed_tokens": ("tokens", ("/paged:",)),
        "missed_tokens": ("tokens", CACHES),
        "ghost_hits": ("blocks", CACHES),
    },
}
"""Counters that are followed, by group, the part of a key before the slash: their unit, and parts
of the keys that have them."""


@lru_cache(maxsize=1)
def _prepared(key: str) -> Prepared:
    """Set up in this process, and called once: counters are of a call."""
    found = [each for each in SUITE if each.key == key]
    if not found:
        raise NotImplementedError(f"this commit has no {key}")
    if found[0].device == "cuda":
        if not torch.cuda.is_available():
            raise NotImplementedError("needs a CUDA device")
        from kernels.interpreter import interpreting

        if interpreting():
            raise NotImplementedError("needs compiled kernels: unset TRITON_INTERPRET")
    prepared = found[0].prepare()
    prepared.call()
    return prepared


class Group:
    """What all groups have in common; asv makes one of each for each of its methods."""

    version = "1"
    param_names = ("benchmark",)
    rounds = 2
    repeat = (5, 50, 0.3)
    warmup_time = 0.1

    def setup(self, key: str) -> None:
        """Take what this process has built; raises NotImplementedError, asv's n/a."""
        self.call = _prepared(key).call


def _time(keys: Sequence[str], *, on_a_gpu: bool) -> Callable[[Any, str], None]:
    def time_call(self: Group, key: str) -> None:
        self.call()
        if on_a_gpu:
            torch.cuda.synchronize()

    # asv reads attributes of functions, of which mypy knows none.
    time_call.params = (keys,)  # type: ignore[attr-defined]
    return time_call


def _track(name: str, unit: str, keys: Sequence[str]) -> Callable[[Any, str], int]:
    def track(self: Group, key: str) -> int:
        """An exact counter of one call."""
        if name == "calls":
            return function_calls(self.call)
        return _prepared(key).counters()[name].value

    # As above: for asv.
    track.unit, track.params = unit, (keys,)  # type: ignore[attr-defined]
    return track


def _group(group: str) -> type:
    benchmarks = [each for each in SUITE if each.key.startswith(f"{group}/")]
    members: dict[str, Any] = {
        "__doc__": f"The benchmarks of the catalogue whose keys begin with {group}/.",
        "__module__": __name__,
    }
    if timed := [each.key for each in benchmarks if each.timed]:
        members["time_call"] = _time(timed, on_a_gpu=group == "gpu")
    for name, (unit, parts) in FOLLOWED.get(group, {}).items():
        keys = [each.key for each in benchmarks if any(part in each.key for part in parts)]
        members[f"track_{name}"] = _track(name, unit, keys)
    return type(group.capitalize(), (Group,), members)


GROUPS: Final = dict.fromkeys(
    group for each in SUITE if (group := each.key.partition("/")[0]) not in LEFT_OUT
)
globals().update({group.capitalize(): _group(group) for group in GROUPS})
