"""The allocator contract: what an allocator is asked, what it answers, and what it may decline.

A subject is a *factory*: called as `factory(num_blocks, block_size, *, prefix_caching, window)`, it
returns an empty allocator. What it can do stands in its attribute `capabilities`, an
`AllocatorCapabilities` or a plain mapping of its fields: an adapter that runs in an engine's own
environment imports nothing of ours.

An allocator moves numbers, never keys and values. Whoever drives it plays the engine:

1. `admit`, `append`, `fork`, `free`, `preempt`, `swap_out` and `swap_in`;
2. `take_copies`, and every block copy that it names is carried out;
3. the keys and values of new tokens are written to their slots;
4. `commit` of every sequence that was written: its keys and values are in the cache now.

With the capability `batching` several calls of the first kind go by before the other three; without
it each of them is followed by the rest at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

HOSTILE_CALLS: Final = (
    "free_twice",
    "free_unknown",
    "append_unknown",
    "fork_unknown",
    "fork_onto_live",
    "admit_live",
    "admit_negative",
    "admit_oversized",
)
"""Calls that make no sense. They may raise or do nothing; either way they must change nothing."""

_NOT_OF_A_SYSTEM: Final[dict[str, Any]] = {
    "hostile": frozenset(), "batching": False, "swap": False, "commit": False, "eviction": None,
    "can_admit": False, "finds_every_prefix": False, "sliding_window": False,
}  # fmt: skip
"""Capabilities that say nothing of a system, whatever it declares."""

EvictionOrder = Literal["lru", "leaf", "all"]
"""In which order cached blocks without an owner lose their content when room is needed.

- `lru`: least recently released first; of one sequence's blocks the last one first. No block is
  evicted while another one is free.
- `leaf`: in any order, but never a block before another cached one whose prefix it is part of;
  behind a window no such order is possible, and none is checked.
- `all`: all of them at once.
"""


class Counts(NamedTuple):
    """Blocks by state. Every block of the pool is in exactly one of the three."""

    free: int
    """Without an owner, and without content worth keeping."""
    idle: int
    """Without an owner; the content is kept for sequences with the same prefix."""
    used: int
    """In the table of at least one sequence, or source of a copy that is due."""


class Allocator(Protocol):
    """What a factory returns. Methods of a capability that is not declared need not exist.

    Sequences are named by strings; tokens are integers. *Refused* means that there is no room now:
    a refusal changes nothing, and it is none while the blocks that are free or idle would do.
    """

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """Make room for a new sequence, under a name that is not in use.

        A sequence that was preempted comes back under its own. `tokens` is the whole prompt;
        `num_tokens` says how many of its leading ones there is to be room for, and in any case for
        those that are cached and one more. The rest comes by `append`. Without `chunked_prefill`
        always all. Sequences share cached prefixes only with sequences of the same `salt`, which is
        always empty without the capability.

        Returns the leading tokens whose keys and values are in the cache already; None if refused.
        """

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """Make room for more tokens, of the prompt while there are. Returns False if refused."""

    def free(self, sequence: str) -> None:
        """Give up a sequence."""

    def slots(self, sequence: str) -> Sequence[int]:
        """Slot of each token position that there is room for; -1 where a window has passed.

        A slot is `block * block_size + offset`, and position `p` has the offset `p % block_size`.
        """

    def counts(self) -> tuple[int, int, int]:
        """Blocks that are free, idle and used; see `Counts`."""

    def commit(self, sequence: str) -> None:
        """Learn that keys and values of all tokens that there is room for are in the cache.

        With `commit`. Content may be published for reuse here, blocks behind a window be given up,
        and the table be rewritten to other blocks with the same content.
        """

    def take_copies(self) -> Sequence[tuple[int, int]]:
        """Block copies (source, destination) that are due, and consider them done. With `fork`.

        They may be carried out in any order, so no block is source and destination at once.
        """

    def fork(self, parent: str, child: str) -> bool:
        """Start `child` with the tokens of `parent`. With `fork`. Returns False if refused."""

    def preempt(self, sequence: str) -> None:
        """Give up a sequence that will be admitted again. With `preempt`, else `free` is asked."""

    def can_admit(self, tokens: Sequence[int], *, num_tokens: int, salt: str) -> bool:
        """Whether `admit` would find room now. With `can_admit`."""

    def idle_blocks(self) -> Sequence[int]:
        """The blocks that `counts` counts as idle, in any order. With `eviction`."""

    def reset(self) -> bool:
        """Forget every cached prefix, as after a change of weights. With `reset`.

        Sequences stay, and nothing of theirs is shared from now on. Returns False if refused: some
        engines can only do this while no sequence is there.
        """

    def swap_out(self, sequence: str) -> Sequence[tuple[int, int]] | None:
        """Give up the blocks of a sequence, to be copied to the host first. With `swap`.

        Returns (block, host block) pairs, or None if refused.
        """

    def swap_in(self, sequence: str) -> Sequence[tuple[int, int]] | None:
        """Make room again for a sequence that was swapped out. With `swap`.

        Returns (host block, block) pairs to be copied, or None if refused.
        """


AllocatorFactory = Callable[..., Allocator]
"""`factory(num_blocks, block_size, *, prefix_caching: bool, window: int | None)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorCapabilities:
    """What an allocator can do. What it cannot is not asked of it, and shown as not run."""

    prefix_caching: bool = True
    sliding_window: bool = False
    """Whether the factory takes `prefix_caching=True`, and a `window`: a number of tokens, that of
    the query included, of which each query sees so many."""
    window_with_caching: bool = False
    """Whether it takes both together."""
    salt: bool = False
    fork: bool = False
    swap: bool = False
    chunked_prefill: bool = False
    commit: bool = False
    preempt: bool = False
    can_admit: bool = False
    reset: bool = False
    """As in `Allocator`."""
    reset_while_running: bool = True
    """Whether `reset` is asked for while sequences are there."""
    empty_calls: bool = True
    """Whether it is asked to admit a prompt without tokens, and to append none."""
    batching: bool = False
    """Several calls may go by before copies, writes and commits are carried out."""
    abort_before_write: bool = False
    """A sequence may be freed before its tokens were written: nothing of it was published."""
    single_appends: bool = False
    """Whether `append` takes one token a call."""
    reserves_prompt: bool = False
    """Whether `admit` makes room for the whole prompt, whatever `num_tokens` says: `slots` has one
    for each of its tokens from then on, and the appends that go on with the prompt take no room."""
    append_each: bool = False
    """Whether it has a method of this name: `append` of one token to each of many sequences in one
    call, as an engine decodes. It is for races only."""
    finds_every_prefix: bool = False
    """`admit` finds the longest prefix in whole blocks that was committed and is not evicted. Which
    blocks are, `idle_blocks` tells; without it nothing is asked of what may have been evicted."""
    eviction: EvictionOrder | None = None
    """The order of eviction, and with it `idle_blocks`. None: the allocator's own business."""
    hostile: frozenset[str] = frozenset(HOSTILE_CALLS)
    """Members of `HOSTILE_CALLS` that can be expressed at all; all of them by default."""
    block_sizes: frozenset[int] | None = None
    """Sizes that work, tokens; None for any from 1 to 8 and 16."""
    min_blocks: int = 1
    """Smallest pool that works, blocks."""
    spare_blocks: int = 0
    """A sequence may be refused although it would fit, if fewer than so many blocks would be left.
    """
    window_slack: int = 0
    """Blocks that may be held behind the window, at most."""
    system: bool = False
    """Whether it is a `reference.system.contract.System`: it holds keys and values, and computes
    attention. It is then asked for neither tables nor counts, nor what makes no sense."""

    def __post_init__(self) -> None:
        for declared in dataclasses.fields(self):
            value = _plain(getattr(self, declared.name))
            if isinstance(declared.default, bool):
                value = _of_type(declared.name, value, bool, "True or False")
            elif isinstance(declared.default, int):
                value = _of_type(declared.name, value, int, "a whole number")
            object.__setattr__(self, declared.name, value)
        sizes = _members("block_sizes", self.block_sizes, int, "whole numbers of 1 or more")
        if self.block_sizes is not None and min(sizes, default=0) < 1:
            raise ValueError(
                f"capability block_sizes: {sorted(sizes)}; name sizes of 1 token or more, or None"
            )
        object.__setattr__(self, "block_sizes", sizes if self.block_sizes is not None else None)
        object.__setattr__(
            self, "hostile", _members("hostile", self.hostile, str, "names of calls")
        )
        for name in self.hostile - set(HOSTILE_CALLS):
            raise ValueError(
                f"capability hostile: {name!r} is unknown; use {', '.join(HOSTILE_CALLS)}"
            )
        if self.eviction not in (None, "lru", "leaf", "all"):
            raise ValueError(f"capability eviction: {self.eviction!r}; use lru, leaf, all or None")
        for name, none in _NOT_OF_A_SYSTEM.items():
            if self.system:
                object.__setattr__(self, name, none)
        for name in ("min_blocks", "spare_blocks", "window_slack"):
            if getattr(self, name) < (name == "min_blocks"):
                raise ValueError(f"capability {name}: {getattr(self, name)} is too small")

    def as_json(self) -> dict[str, Any]:
        """Plain values; sets become sorted lists."""
        return {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> AllocatorCapabilities:
        """The inverse of `as_json`. Raises ValueError: a field is unknown, or out of range."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in set(fields) - known:
            raise ValueError(f"capability {name!r} is unknown; use {', '.join(sorted(known))}")
        return cls(**fields)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _of_type(name: str, value: Any, kind: type, words: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"capability {name}: {value!r}; give {words}")
    return value


def _members(name: str, value: Any, kind: type, words: str) -> frozenset[Any]:
    if not isinstance(value, list | tuple | set | frozenset | None):
        raise ValueError(f"capability {name}: {value!r}; give a list of {words}")
    return frozenset(
        _of_type(name, _plain(each), kind, f"a list of {words}") for each in value or ()
    )


Factory = TypeVar("Factory", bound=Callable[..., object])


def declares_allocator(capabilities: AllocatorCapabilities) -> Callable[[Factory], Factory]:
    """Decorate a factory with what its allocators can do.

    >>> @declares_allocator(AllocatorCapabilities(prefix_caching=False, fork=True))
    ... def my_pool(num_blocks, block_size, *, prefix_caching, window): ...
    """

    def mark(factory: Factory) -> Factory:
        factory.capabilities = capabilities  # type: ignore[attr-defined]
        return factory

    return mark


def capabilities_of_factory(factory: Callable[..., object]) -> AllocatorCapabilities:
    """What a factory declares; without a declaration the defaults, which ask for prefix caching.

    Raises TypeError: the declaration is neither a mapping nor an `AllocatorCapabilities`.
    ValueError: it has unknown fields or values.
    """
    declared = getattr(factory, "capabilities", None)
    if declared is None:
        return AllocatorCapabilities()
    if isinstance(declared, AllocatorCapabilities):
        return declared
    if isinstance(declared, Mapping):
        return AllocatorCapabilities.from_mapping(declared)
    raise TypeError(
        f"{factory!r}.capabilities is {declared!r}; it must be a mapping or an "
        f"AllocatorCapabilities"
    )


class AllocatorRaised(Exception):
    """What a call raised in another process; the message has the type, the words and the place."""


class AllocatorDied(Exception):
    """The process of an allocator crashed or hung: raised by whoever drives it from another one."""

    def __init__(self, how: str, *, timed_out: bool) -> None:
        super().__init__(how)
        self.timed_out = timed_out
