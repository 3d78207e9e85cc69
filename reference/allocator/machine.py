"""The state machine that any allocator can be run through, with every check after every call.

`AllocatorMachine` plays the engine of `reference.allocator.contract`: it makes a program's calls,
carries out copies, writes each token's prefix into the shadow cache, and looks at the allocator
from outside: at its answers, its tables and its counts. It knows nothing of how it works inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from reference.allocator.contract import (
    HOSTILE_CALLS,
    Allocator,
    AllocatorCapabilities,
    AllocatorDied,
    AllocatorFactory,
    AllocatorRaised,
    Counts,
    capabilities_of_factory,
)
from reference.allocator.programs import Pool, Program, Step
from reference.allocator.shadow import ShadowCache, prefix_hashes

CHECKS: Final[Mapping[str, str]] = {
    "content": "Each live sequence, read through its own table, sees its own prefixes.",
    "table": "One slot a token, inside the pool, in whole blocks, no block twice in a table.",
    "ownership": "A block is written only by its sole owner, and never while it is kept as cached.",
    "copies": "Copies lead from blocks with content to blocks in use, in any order.",
    "conservation": "Free, idle and used blocks add up to the pool; used ones are those in tables.",
    "refusal": "Nothing is refused while the blocks that are free or idle would do.",
    "promise": "`can_admit` says what `admit` then does.",
    "trace": "What was refused, or made no sense, changed nothing.",
    "hit": "Hits are whole blocks of a true prefix, leave a token to compute, and are not missed.",
    "eviction": "Cached blocks are evicted in the declared order, and none without need.",
    "window": "What the next query sees is there, and what no query will see is given up.",
    "swap": "Blocks go to host blocks of their own, and come back with what they held.",
    "reset": "After a reset nothing is cached.",
    "drain": "When every sequence is gone no block is used.",
    "capacity": "The empty pool holds one sequence that fills it.",
    "answer": "Legal calls are answered as the contract says, and raise nothing.",
    "died": "The allocator's process neither crashes nor hangs.",
}
"""Every check by name, and what must hold."""

NEEDS: Final[Mapping[str, str]] = {
    "copies": "fork",
    "promise": "can_admit",
    "hit": "prefix_caching",
    "eviction": "eviction",
    "window": "sliding_window",
    "swap": "swap",
    "reset": "reset",
}
"""Checks that are not run without a capability."""

MAX_RUNNING: Final = 5
"""Sequences that run at once. With more, small pools are full and most calls are refused."""

NOBODY: Final = "nobody"
"""A name that no sequence ever has."""

_ORIGIN: Final = 1 << 20
"""Tokens of a program are smaller. What keys and values depend on besides tokens, the salt and the
weights, is added on top of them in the shadow."""

T = TypeVar("T")


class CheckFailed(Exception):
    """What an allocator got wrong.

    Attributes
    ----------
    check
        A member of `CHECKS`.
    message
        What was seen.
    """

    def __init__(self, check: str, message: str) -> None:
        super().__init__(check, message)
        self.check = check
        self.message = message

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass(slots=True)
class Life:
    """A live sequence as the engine sees it."""

    tokens: list[int]
    """Tokens that there is room for."""
    rest: list[int]
    """Tokens of the prompt that there is no room for yet."""
    salt: str
    """Of its admission."""
    origin: int
    """What its keys and values depend on besides its tokens."""
    written: int
    """Leading tokens whose keys and values are in the cache."""
    hashes: NDArray[np.uint64] = field(init=False)
    """Of the prefixes of `tokens`, uint64 [num_tokens]."""

    def __post_init__(self) -> None:
        self.rehash()

    def seen_by_shadow(self) -> list[int]:
        """The tokens, with what else decides keys and values mixed in."""
        return [token + self.origin * _ORIGIN for token in self.tokens]

    def rehash(self) -> None:
        """Bring `hashes` up to date with `tokens`."""
        self.hashes = prefix_hashes(self.seen_by_shadow())

    def extended(self, more: list[int]) -> None:
        """Take up more tokens: the next ones of the prompt, then new ones."""
        self.tokens += more
        self.rest = self.rest[len(more) :]
        self.rehash()


@dataclass(frozen=True, slots=True)
class View:
    """The table of one sequence as the allocator shows it."""

    slots: NDArray[np.int64]
    """Slot of each token position, int64 [num_tokens]; -1 where it was given up."""
    blocks: tuple[int, ...]
    """Block of each logical block; -1 where it was given up."""
    first: int
    """First position that was not given up."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What can be seen of an allocator between two calls."""

    counts: Counts
    views: dict[str, View]
    idle: frozenset[int] | None


class AllocatorMachine:
    """Runs steps against an allocator, and checks it after each call.

    Parameters
    ----------
    factory
        Makes the allocator.
    pool
        What it is asked for.
    capabilities
        What it declares; asked of the factory if not given.

    Attributes
    ----------
    lives, waiting, swapped
        Sequences by name: live, preempted, swapped out.
    steps
        What was run.
    calls
        How often each call was made.
    ending
        Whether the program is over, and everything is being freed.
    on_step
        Called with the machine after each step.

    Raises
    ------
    CheckFailed
        By `run` and `finish`: the allocator got something wrong. The machine is then of no use.
    """

    def __init__(
        self,
        factory: AllocatorFactory,
        pool: Pool,
        *,
        capabilities: AllocatorCapabilities | None = None,
    ) -> None:
        self.pool = pool
        self.can = capabilities or capabilities_of_factory(factory)
        self.lives: dict[str, Life] = {}
        self.waiting: dict[str, Life] = {}
        self.swapped: dict[str, Life] = {}
        self.steps: list[Step] = []
        self.calls: Counter[str] = Counter()
        self.ending = False
        self.on_step: Callable[[AllocatorMachine], None] = lambda _: None
        self.shadow = ShadowCache(pool.num_blocks, pool.block_size)
        self._host: dict[str, dict[int, NDArray[np.uint64]]] = {}
        self._unsettled: list[str] = []
        self._copies_due = False
        self._freed: str | None = None
        self._weights = 0
        self._origins: dict[tuple[str, int], int] = {}
        # Prefixes in whole blocks that were committed, and blocks asked for so far: as long as
        # these fit into the pool there was no reason to evict anything.
        self._known: set[int] = set()
        self._demand = 0
        # When each idle block was released, and which prefix each full block's prefix goes on from.
        self._released: dict[int, int] = {}
        self._clock = 0
        self._parents: dict[int, int] = {}
        self._views: dict[str, View] = {}
        self._watch_idle = self.can.eviction is not None and pool.prefix_caching
        self._allocator: Allocator = self._ask(
            lambda: factory(
                pool.num_blocks,
                pool.block_size,
                prefix_caching=pool.prefix_caching,
                window=pool.window,
            )
        )
        self._sight = self._look()
        if self._sight.counts != (pool.num_blocks, 0, 0):
            raise CheckFailed("conservation", f"an empty pool shows {_said(self._sight.counts)}")

    # What is asked of it from outside

    def can_run(self, step: Step) -> bool:
        """Whether a step makes sense now: it may not in a program from which others were cut."""
        call, name = step.call, step.sequence
        if call in HOSTILE_CALLS:
            return call in self.can.hostile and {
                "free_twice": self._freed is not None and self._freed not in self.lives,
                "fork_unknown": self.can.fork,
                "fork_onto_live": self.can.fork
                and name != step.parent
                and {name, step.parent} <= self.lives.keys(),
                "admit_live": name in self.lives,
                "admit_oversized": self.can.chunked_prefill,
                "admit_negative": self.can.chunked_prefill,
            }.get(call, True)
        if call == "admit":
            fresh = name not in self.lives and name not in self.swapped
            part = step.num_tokens is None or 0 <= step.num_tokens <= len(step.tokens)
            given = self.can.empty_calls or bool(step.tokens)
            return fresh and part and given and len(self.lives) < MAX_RUNNING
        if call == "append":
            return name in self.lives and (self.can.empty_calls or bool(step.tokens))
        if call == "fork":
            fresh = step.parent in self.lives and not (name in self.lives or name in self.swapped)
            return self.can.fork and fresh and len(self.lives) < MAX_RUNNING
        if call == "settle":
            return bool(self._unsettled) or self._copies_due
        if call == "reset":
            return self.can.reset and (self.can.reset_while_running or not self.lives)
        if call == "swap_out":
            return self.can.swap and name in self.lives
        if call == "swap_in":
            return self.can.swap and name in self.swapped and len(self.lives) < MAX_RUNNING
        return name in self.lives

    def run(self, step: Step) -> None:
        """Make a step's calls. A step that makes no sense now is left out."""
        if not self.can_run(step):
            return
        self.steps.append(step)
        if step.call in HOSTILE_CALLS:
            self._make_no_sense(step)
        else:
            getattr(self, f"_{step.call}")(step)
            if not self.pool.batching:
                self._settle(step)
        self.on_step(self)

    def finish(self) -> None:
        """End everything, and see whether the pool is whole: settle, free, reset, fill it once."""
        self.ending = True
        self._settle()
        for name in [*self.lives, *self.swapped]:
            self._free(Step("free", name))
            self._settle()
        if self.can.reset:
            self._reset(Step("reset"))
        tokens = list(range(1000, 1000 + self.pool.num_slots))
        spare = self.can.spare_blocks * self.pool.block_size
        tokens = tokens[: max(len(tokens) - spare, 0)]
        self._admit(Step("admit", "whole-pool", tokens=tuple(tokens)))
        self._settle()
        self._free(Step("free", "whole-pool"))
        self._settle()

    def state(self) -> int:
        """A hash of what can be seen, with blocks renamed in the order in which they occur."""
        names: dict[int, int] = {}
        tables = tuple(
            (len(self.lives[name].tokens), *(names.setdefault(b, len(names)) for b in view.blocks))
            for name, view in self._sight.views.items()
        )
        return hash((self._sight.counts, tables, len(self.waiting), len(self.swapped)))

    # The calls

    def _admit(self, step: Step) -> None:
        name, tokens = step.sequence, list(step.tokens)
        asked = len(tokens) if step.num_tokens is None else step.num_tokens
        before = self._sight
        promised = None
        if self.can.can_admit:
            said = self._ask(
                lambda: self._allocator.can_admit(tokens, num_tokens=asked, salt=step.salt)
            )
            promised = self._truth(said, "can_admit")
            self._nothing_changed(before, "can_admit")
        origin = self._origins.setdefault((step.salt, self._weights), len(self._origins))
        life = Life(tokens, [], step.salt, origin, 0)
        expected = self._longest_known(life)
        self._count("admit")
        hit = self._ask(
            lambda: self._allocator.admit(name, tokens, num_tokens=asked, salt=step.salt)
        )
        needed = self.pool.blocks_for(len(tokens))
        if promised is not None and promised != (hit is not None):
            raise CheckFailed(
                "promise",
                f"can_admit said {promised}, admit {'refused' if hit is None else 'admitted'}",
            )
        if hit is None:
            self._refused(before, f"{len(tokens)} tokens", needed)
            return
        self._check_hit(hit, len(tokens))
        if self._demand <= self.pool.num_blocks and hit < expected:
            raise CheckFailed(
                "hit",
                f"{hit} tokens found cached, although {expected} are and nothing had to be evicted",
            )
        self._demand += needed
        room = max(asked, min(hit + 1, len(tokens)))
        life.rest = tokens[room:]
        life.tokens = tokens[:room]
        life.written = hit
        life.rehash()
        self.waiting.pop(name, None)
        self.lives[name] = life
        self._unsettled.append(name)
        self._look_again(name)

    def _append(self, step: Step) -> None:
        life = self.lives[step.sequence]
        before = self._sight
        more = list(step.tokens)
        # What is left of the prompt comes first, whatever the program says.
        more[: len(life.rest)] = life.rest[: len(more)]
        self._count("append")
        granted = self._ask(lambda: self._allocator.append(step.sequence, more))
        length = len(life.tokens)
        needed = self.pool.blocks_for(length + len(more)) - self.pool.blocks_for(length)
        if more and length % self.pool.block_size:
            last = before.views[step.sequence].blocks[-1]
            needed += sum(last in view.blocks for view in before.views.values()) > 1
        if not self._truth(granted, "append"):
            self._refused(before, f"{len(more)} more tokens", needed)
            return
        self._demand += needed
        life.extended(more)
        self._unsettled.append(step.sequence)
        self._copies_due = self.can.fork
        self._look_again(step.sequence)

    def _fork(self, step: Step) -> None:
        parent = self.lives[step.parent]
        if parent.written < len(parent.tokens):
            self._settle()
        before = self._sight
        self._count("fork")
        granted = self._ask(lambda: self._allocator.fork(step.parent, step.sequence))
        # An allocator may copy the partly filled block at once, and one that shares nothing all.
        most = 1 if self.pool.prefix_caching else self.pool.blocks_for(len(parent.tokens))
        if not self._truth(granted, "fork"):
            self._refused(before, "a fork", most)
            return
        self._demand += most
        self.lives[step.sequence] = Life(
            list(parent.tokens), list(parent.rest), parent.salt, parent.origin, parent.written
        )
        self._copies_due = True
        self._unsettled.append(step.sequence)
        self._look_again(step.sequence)

    def _free(self, step: Step) -> None:
        name = step.sequence
        self._written_before_it_goes(name)
        self._count("free")
        self._ask(lambda: self._allocator.free(name))
        self._gone(name)
        self.swapped.pop(name, None)
        self._host.pop(name, None)
        self._freed = name

    def _preempt(self, step: Step) -> None:
        name = step.sequence
        self._written_before_it_goes(name)
        self._count("preempt")
        if self.can.preempt:
            self._ask(lambda: self._allocator.preempt(name))
            self._known.difference_update(self.lives[name].hashes.tolist())
        else:
            self._ask(lambda: self._allocator.free(name))
        self.waiting[name] = self.lives[name]
        self._gone(name)

    def _reset(self, step: Step) -> None:
        self._count("reset")
        before = self._sight
        done = self._ask(self._allocator.reset)
        if not self._truth(done, "reset"):
            if not self.lives:
                raise CheckFailed("reset", "refused, although there is no sequence")
            self._nothing_changed(before, "a reset that was refused")
            return
        self._weights += 1
        self._known.clear()
        self._released.clear()
        self._sight = self._look()
        if self._sight.counts.idle:
            raise CheckFailed("reset", f"after a reset {_said(self._sight.counts)}")
        self._check()

    def _swap_out(self, step: Step) -> None:
        name = step.sequence
        self._settle()
        self._count("swap_out")
        before = self._sight
        pairs = self._ask(lambda: self._allocator.swap_out(name))
        if pairs is None:
            self._nothing_changed(before, "a swap that was refused")
            return
        pairs = _taken("swap_out", pairs, _pairs)
        held = [block for block in before.views[name].blocks if block >= 0]
        if sorted(block for block, _ in pairs) != sorted(held):
            raise CheckFailed("swap", f"blocks {held} to be swapped out, and it names {pairs}")
        taken = {host for hosts in self._host.values() for host in hosts}
        hosts = [host for _, host in pairs]
        if len(set(hosts)) < len(hosts) or taken & set(hosts):
            raise CheckFailed("swap", f"host blocks {hosts}: one is taken, or named twice")
        blocks = self.shadow.prefixes.reshape(self.pool.num_blocks, self.pool.block_size)
        self._host[name] = {host: blocks[block].copy() for block, host in pairs}
        self.swapped[name] = self.lives[name]
        self._gone(name)

    def _swap_in(self, step: Step) -> None:
        name = step.sequence
        life = self.swapped[name]
        before = self._sight
        self._count("swap_in")
        pairs = self._ask(lambda: self._allocator.swap_in(name))
        needed = len(self._host[name])
        if pairs is None:
            self._refused(before, f"{len(life.tokens)} swapped tokens", needed)
            return
        pairs = _taken("swap_in", pairs, _pairs)
        self._demand += needed
        stored = self._host.pop(name)
        blocks = self.shadow.prefixes.reshape(self.pool.num_blocks, self.pool.block_size)
        for host, block in pairs:
            if host not in stored or not 0 <= block < self.pool.num_blocks:
                raise CheckFailed("swap", f"host block {host} to block {block}: there is none such")
            blocks[block] = stored[host]
        self.lives[name] = self.swapped.pop(name)
        self._look_again(name)

    def _make_no_sense(self, step: Step) -> None:
        allocator, name = self._allocator, step.sequence
        tokens = list(step.tokens)
        calls: dict[str, Callable[[], object]] = {
            "free_twice": lambda: allocator.free(str(self._freed)),
            "free_unknown": lambda: allocator.free(NOBODY),
            "append_unknown": lambda: allocator.append(NOBODY, [0]),
            "fork_unknown": lambda: allocator.fork(NOBODY, f"child of {NOBODY}"),
            "fork_onto_live": lambda: allocator.fork(step.parent, name),
            "admit_live": lambda: allocator.admit(name, tokens, num_tokens=len(tokens), salt=""),
            "admit_negative": lambda: allocator.admit(name, tokens, num_tokens=-1, salt=""),
            "admit_oversized": lambda: allocator.admit(
                name, tokens, num_tokens=len(tokens) + 2**31, salt=""
            ),
        }
        before = self._sight
        self._count(step.call)
        try:
            calls[step.call]()
        except AllocatorDied as death:
            raise CheckFailed("died", str(death)) from None
        except Exception:
            pass  # to refuse it is right, in whatever words
        self._nothing_changed(before, step.call)
        self._check()

    def _settle(self, step: Step | None = None) -> None:
        """Carry out the copies, then the writes, then commit: the end of an engine's step."""
        if step is not None and step.call == "settle":
            self._count("settle")
        if not self._unsettled and not self._copies_due:
            return
        if self.can.fork and self._copies_due:
            self._carry_out(_taken("take_copies", self._ask(self._allocator.take_copies), _pairs))
            self._look_again(None, check=False)
        self._copies_due = False
        names = [name for name in dict.fromkeys(self._unsettled) if name in self.lives]
        for name in names:
            self._write(name)
        self._unsettled.clear()
        if self.can.commit:
            for name in names:
                self._ask(lambda name=name: self._allocator.commit(name))  # type: ignore[misc]
                self._look_again(name, check=False, committed=True)
        for name in names:
            self._publish(self.lives[name])
        self._check()

    # Their parts

    def _count(self, call: str) -> None:
        self.calls[call] += 1

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except AllocatorDied as death:
            raise CheckFailed("died", str(death)) from None
        except AllocatorRaised as error:
            raise CheckFailed("answer", f"raised {error}") from None
        except Exception as error:
            raise CheckFailed("answer", f"raised {type(error).__name__}: {error}") from error

    @staticmethod
    def _truth(answer: object, call: str) -> bool:
        if not isinstance(answer, bool | np.bool_):
            raise CheckFailed("answer", f"{call} returned {answer!r}, neither True nor False")
        return bool(answer)

    def _gone(self, name: str) -> None:
        before = self._sight
        self.lives.pop(name, None)
        self._unsettled = [other for other in self._unsettled if other != name]
        self._copies_due = self.can.fork
        self._look_again(name, released=before.views.get(name))

    def _written_before_it_goes(self, name: str) -> None:
        """Settle if what a sequence was given may have been published before it was written.

        Only full blocks are: tokens behind the last of them may be dropped.
        """
        life = self.lives.get(name)
        if life is None or self.can.abort_before_write or not self.pool.prefix_caching:
            return
        size = self.pool.block_size
        if life.written // size < len(life.tokens) // size:
            self._settle()

    def _refused(self, before: Sight, what: str, needed: int) -> None:
        available = before.counts.free + before.counts.idle
        if needed + self.can.spare_blocks <= available:
            # At the end the only thing that is asked for is to fill the empty pool.
            raise CheckFailed(
                "capacity" if self.ending else "refusal",
                f"{what} refused: they take at most {needed} blocks, and there are "
                f"{_said(before.counts)}",
            )
        self._nothing_changed(before, "what was refused")

    def _check_hit(self, hit: object, length: int) -> None:
        if isinstance(hit, bool) or not isinstance(hit, int | np.integer):
            raise CheckFailed("answer", f"admit returned {hit!r}, neither a number nor None")
        if hit and not self.pool.prefix_caching:
            raise CheckFailed("hit", f"{hit} tokens found cached without prefix caching")
        if not 0 <= hit <= max(length - 1, 0):
            raise CheckFailed("hit", f"{hit} of {length} tokens found cached: one has to be left")
        if hit % self.pool.block_size:
            raise CheckFailed("hit", f"{hit} tokens found cached: that is not whole blocks")

    def _longest_known(self, life: Life) -> int:
        """Tokens of the longest prefix in whole blocks that was committed; 0 if not promised."""
        if not (self.can.finds_every_prefix and self.pool.prefix_caching) or self.pool.window:
            return 0
        size = self.pool.block_size
        known = 0
        while known + size < len(life.tokens) and int(life.hashes[known + size - 1]) in self._known:
            known += size
        return known

    def _publish(self, life: Life) -> None:
        """Remember what a committed sequence lets others find."""
        ends = life.hashes[self.pool.block_size - 1 :: self.pool.block_size].tolist()
        for at, end in enumerate(ends):
            self._parents[end] = ends[at - 1] if at else 0
        if self._origins.get((life.salt, self._weights)) == life.origin:
            self._known.update(ends)

    def _carry_out(self, copies: list[tuple[int, int]]) -> None:
        sources = {source for source, _ in copies}
        destinations = [destination for _, destination in copies]
        if len(set(destinations)) < len(destinations) or sources & set(destinations):
            raise CheckFailed("copies", f"{copies}: their order would matter")
        held = {block for view in self._sight.views.values() for block in view.blocks}
        held |= self._sight.idle or set()
        for source, destination in copies:
            for block in (source, destination):
                if not 0 <= block < self.pool.num_blocks:
                    raise CheckFailed("copies", f"{copies}: there is no block {block}")
            if destination not in held and not (self._sight.counts.idle and not self._watch_idle):
                raise CheckFailed("copies", f"{copies}: nobody holds block {destination}")
        # Any order has to do, since a kernel copies all of them at once: take the other one.
        for source, destination in reversed(copies):
            self.shadow.copy(source, destination)
        self.calls["copy"] += len(copies)

    def _write(self, name: str) -> None:
        life, view = self.lives[name], self._sight.views[name]
        start = life.written
        if start == len(life.tokens):
            return
        slots = view.slots[start:]
        if view.first > start:
            raise CheckFailed(
                "window", f"{name}: the positions before {view.first} are to be written, and gone"
            )
        mine = set(view.blocks[start // self.pool.block_size :])
        if self._sight.idle and mine & self._sight.idle:
            block = min(mine & self._sight.idle)
            raise CheckFailed("ownership", f"{name} writes to block {block}, which is kept as idle")
        for other, seen in self._sight.views.items():
            if other != name and not mine.isdisjoint(seen.blocks):
                self._check_shared_write(name, slots, life.hashes[start:], other)
        self.shadow.write(slots, life.seen_by_shadow(), start=start)
        life.written = len(life.tokens)

    def _check_shared_write(
        self, name: str, slots: NDArray[np.int64], hashes: NDArray[np.uint64], other: str
    ) -> None:
        """A write into a block of another sequence: right only if that one waits for just this."""
        seen = self._sight.views[other]
        expected = dict(zip(seen.slots.tolist(), self.lives[other].hashes.tolist(), strict=True))
        shared = set(seen.blocks)
        for slot, written in zip(slots.tolist(), hashes.tolist(), strict=True):
            block = slot // self.pool.block_size
            if block in shared and expected.get(slot) != written:
                raise CheckFailed(
                    "ownership",
                    f"{name} writes to slot {slot} of block {block}, which {other} holds too",
                )

    # Looking

    def _look(self) -> Sight:
        counts = _taken(
            "counts", self._ask(self._allocator.counts), lambda said: Counts(*map(index, said))
        )
        views = {name: self._view(name, life) for name, life in self.lives.items()}
        idle = None
        if self._watch_idle:
            idle = _taken("idle_blocks", self._ask(self._allocator.idle_blocks), frozenset)
        return Sight(counts, views, idle)

    def _view(self, name: str, life: Life) -> View:
        slots = _taken("slots", self._ask(lambda: self._allocator.slots(name)), _int64)
        before = self._views.get(name)
        if before is not None and np.array_equal(before.slots, slots):
            return before
        view = self._checked_view(name, slots, len(life.tokens))
        self._views[name] = view
        return view

    def _checked_view(self, name: str, slots: NDArray[np.int64], length: int) -> View:
        size = self.pool.block_size
        if slots.shape != (length,):
            raise CheckFailed("table", f"{name} has {length} tokens and {slots.size} slots")
        gone = np.flatnonzero(slots >= 0)
        first = int(gone[0]) if gone.size else length
        if first and (self.pool.window is None or (first % size and first < length)):
            raise CheckFailed("table", f"{name}: no slot for the positions before {first}")
        kept = slots[first:]
        if kept.size == 0:
            return View(slots, (-1,) * self.pool.blocks_for(length), first)
        heads = kept[::size]
        expected = (heads[:, None] + np.arange(size)).reshape(-1)[: kept.size]
        if (heads % size).any() or not np.array_equal(kept, expected):
            at = int(
                np.flatnonzero(
                    (kept != expected) | (expected % size != np.arange(kept.size) % size)
                )[0]
            )
            raise CheckFailed(
                "table",
                f"{name}: position {first + at} is in slot {kept[at]}; positions of a block lie "
                f"side by side, position p at offset p % {size}",
            )
        blocks = (heads // size).tolist()
        if min(blocks) < 0 or max(blocks) >= self.pool.num_blocks:
            raise CheckFailed("table", f"{name} holds blocks {blocks}, not all of the pool's")
        if len(set(blocks)) < len(blocks):
            raise CheckFailed("table", f"{name} holds blocks {blocks}: one of them twice")
        return View(slots, (*(-1,) * (first // size), *blocks), first)

    def _look_again(
        self,
        name: str | None,
        *,
        check: bool = True,
        released: View | None = None,
        committed: bool = False,
    ) -> None:
        """Look after a call that changed something, and judge what became of the idle blocks."""
        before = self._sight
        if name is not None:
            self._views.pop(name, None)
        self._sight = after = self._look()
        if self._watch_idle:
            self._judge_eviction(before, after, name, released, committed=committed)
        if check:
            self._check()

    def _judge_eviction(
        self,
        before: Sight,
        after: Sight,
        name: str | None,
        released: View | None,
        *,
        committed: bool,
    ) -> None:
        assert before.idle is not None
        assert after.idle is not None
        given_up = released
        if given_up is None and name is not None:
            given_up = before.views.get(name)
        # The tail is released first: a block is of use only as long as all those before it are.
        order = list(reversed(given_up.blocks)) if given_up is not None else []
        fresh = after.idle - before.idle
        self._clock += 1
        for block in fresh:
            self._released[block] = self._clock + (order.index(block) if block in order else 0)
        self._clock += len(order)
        lost = before.idle - after.idle
        if not lost:
            return
        revived: set[int] = set()
        if committed and name in after.views:
            # Nothing needs room here; a table may be rewritten to blocks that were idle.
            revived = set(after.views[name].blocks)
        elif name in self.lives and name not in before.views:
            hits = self.lives[name].written // self.pool.block_size
            revived = set(after.views[name].blocks[:hits])
        evicted = lost - revived
        if evicted:
            self._judge_order(evicted, before.idle & after.idle, after)

    def _judge_order(self, evicted: frozenset[int], stay: frozenset[int], after: Sight) -> None:
        if self.can.eviction == "all" and stay:
            raise CheckFailed("eviction", f"{_listed(evicted)} evicted, and {_listed(stay)} not")
        if self.can.eviction == "lru":
            if after.counts.free:
                raise CheckFailed(
                    "eviction",
                    f"{_listed(evicted)} evicted, although {after.counts.free} blocks are free",
                )
            for block in evicted:
                earlier = [o for o in stay if self._released[o] < self._released[block]]
                if earlier:
                    raise CheckFailed(
                        "eviction",
                        f"block {block} evicted, although {_listed(earlier)} went idle earlier",
                    )
        if self.can.eviction == "leaf" and self.pool.window is None:
            size = self.pool.block_size
            ends = self.shadow.prefixes[size - 1 :: size].tolist()
            cached = {ends[block] for block in stay}
            # What a sequence has written: its other blocks still show what was evicted from them.
            for life in self.lives.values():
                cached.update(life.hashes[: life.written][size - 1 :: size].tolist())
            for block in stay:
                parent = self._parents.get(ends[block], 0)
                if parent and parent not in cached:
                    raise CheckFailed(
                        "eviction",
                        f"{_listed(evicted)} evicted, although block {block} goes on from there",
                    )

    def _nothing_changed(self, before: Sight, what: str) -> None:
        after = self._look()
        if after.counts != before.counts:
            raise CheckFailed(
                "trace", f"{what}: there were {_said(before.counts)}, now {_said(after.counts)}"
            )
        if after.idle != before.idle:
            raise CheckFailed("trace", f"{what}: other blocks are idle now")
        for name, view in before.views.items():
            if after.views[name] is not view:
                raise CheckFailed(
                    "trace",
                    f"{what}: {name} held blocks {list(view.blocks)}, "
                    f"now {list(after.views[name].blocks)}",
                )

    def _check(self) -> None:
        self._check_counts()
        if self._unsettled or self._copies_due:
            return  # between a call and the writes that it calls for, the cache lags behind
        for name, life in self.lives.items():
            view = self._sight.views[name]
            if view.first:
                self._check_window(name, life, view)
            if not np.array_equal(
                self.shadow.prefixes[view.slots[view.first :]], life.hashes[view.first :]
            ):
                finding = self.shadow.check(
                    view.slots[view.first :], life.seen_by_shadow(), start=view.first
                )
                raise CheckFailed("content", f"{name}, {finding}")
            if self.pool.window is not None:
                self._check_kept(name, life, view)

    def _check_counts(self) -> None:
        counts = self._sight.counts
        if min(counts) < 0 or sum(counts) != self.pool.num_blocks:
            raise CheckFailed(
                "conservation", f"{_said(counts)}: the pool has {self.pool.num_blocks}"
            )
        held = {block for view in self._sight.views.values() for block in view.blocks}
        held.discard(-1)
        if not self._copies_due and counts.used != len(held):
            raise CheckFailed(
                "drain" if self.ending and not self.lives else "conservation",
                f"{_said(counts)}, and tables hold {_listed(held)}",
            )
        if not self.pool.prefix_caching and counts.idle:
            raise CheckFailed("conservation", f"{_said(counts)} without prefix caching")
        idle = self._sight.idle
        if idle is not None:
            if len(idle) != counts.idle:
                raise CheckFailed("conservation", f"{_said(counts)}, and idle are {_listed(idle)}")
            if idle & held:
                raise CheckFailed("conservation", f"{_listed(idle & held)} idle, and in tables")

    def _check_window(self, name: str, life: Life, view: View) -> None:
        assert self.pool.window is not None
        # The next query is at the position behind the last, and sees `window` tokens, itself among
        # them.
        needed = len(life.tokens) - self.pool.window + 1
        if view.first > max(needed, 0):
            raise CheckFailed(
                "window",
                f"{name} has {len(life.tokens)} tokens; the next query sees those from "
                f"{max(needed, 0)} on, and those before {view.first} were given up",
            )

    def _check_kept(self, name: str, life: Life, view: View) -> None:
        assert self.pool.window is not None
        needed = max(len(life.tokens) - self.pool.window + 1, 0)
        surplus = needed // self.pool.block_size - view.first // self.pool.block_size
        if surplus > self.can.window_slack:
            raise CheckFailed(
                "window",
                f"{name} holds {surplus} blocks of tokens before {needed}, which no query sees",
            )


@dataclass(frozen=True, slots=True)
class Finding:
    """What a program shows."""

    check: str
    """A member of `CHECKS`."""
    message: str
    """What was seen."""
    program: Program
    """The calls that show it, the last one being the one that did; or none that did, if it showed
    at the end, when everything was freed."""
    at_the_end: bool
    """Whether it did."""

    def __str__(self) -> str:
        where = "in the last step" if self.program.steps else "when it was made"
        where = "when everything was freed" if self.at_the_end else where
        return f"{self.check}, {where}: {self.message}"


def run_program(
    factory: AllocatorFactory,
    program: Program,
    *,
    capabilities: AllocatorCapabilities | None = None,
) -> Finding | None:
    """Run a program, and return what it shows, if anything.

    Steps that make no sense where they stand, and those that the allocator does not support, are
    left out.
    """

    def run(machine: AllocatorMachine) -> None:
        for step in program.steps:
            machine.run(step)
        machine.finish()

    return find_fault(factory, program.pool, run, capabilities=capabilities)


def find_fault(
    factory: AllocatorFactory,
    pool: Pool,
    run: Callable[[AllocatorMachine], None],
    *,
    capabilities: AllocatorCapabilities | None = None,
) -> Finding | None:
    """Make a machine, let `run` run it, and return what the allocator got wrong, if anything."""
    machine = None
    try:
        machine = AllocatorMachine(factory, pool, capabilities=capabilities)
        run(machine)
    except CheckFailed as failed:
        steps = tuple(machine.steps) if machine is not None else ()
        ending = machine is not None and machine.ending
        return Finding(failed.check, failed.message, Program(pool, steps), ending)
    return None


def _taken(call: str, answer: Any, take: Callable[[Any], T]) -> T:
    """Take over what a call returned, unless it is of another shape."""
    try:
        return take(answer)
    except (TypeError, ValueError, OverflowError):
        raise CheckFailed("answer", f"{call} returned {answer!r}, of another shape") from None


def _int64(answer: Any) -> NDArray[np.int64]:
    return np.asarray(answer, np.int64)


def _pairs(answer: Any) -> list[tuple[int, int]]:
    return [(index(source), index(destination)) for source, destination in answer]


def _said(counts: Counts) -> str:
    return f"{counts.free} free, {counts.idle} idle and {counts.used} used blocks"


def _listed(blocks: Iterable[int]) -> str:
    shown = sorted(blocks)
    if not shown:
        return "none"
    return f"block{'' if len(shown) == 1 else 's'} {', '.join(map(str, shown))}"
