"""The state machine that any allocator can be run through, with every check after every call.

`AllocatorMachine` plays the engine of `reference.allocator.contract`: it makes a program's calls,
carries out copies and writes each token's prefix into the shadow cache. What can be seen of the
allocator in between is judged by `reference.allocator.sight`. Neither knows how it works inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reference.allocator.contract import (
    HOSTILE_CALLS,
    Allocator,
    AllocatorCapabilities,
    AllocatorDied,
    AllocatorFactory,
    capabilities_of_factory,
)
from reference.allocator.programs import Pool, Program, Step
from reference.allocator.shadow import Life, ShadowCache
from reference.allocator.sight import (
    CheckFailed,
    Observer,
    Sight,
    as_pairs,
    ask,
    said,
    truth,
)
from reference.stack import with_stack_room

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

MAX_RUNNING: Final = 24
"""Sequences that run at once, at most: more than a count of four bits can tell."""

NOBODY: Final = "nobody"
"""A name that no sequence ever has."""


class AllocatorMachine:
    """Runs steps against an allocator, and checks it after each call.

    `run` and `finish` raise `CheckFailed` where the allocator got something wrong; the machine is
    then of no use. What the allocator declares is asked of the factory unless it is given.
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
        """Preempted sequences."""
        self.swapped: dict[str, Life] = {}
        self.steps: list[Step] = []
        """What was run."""
        self.calls: Counter[str] = Counter()
        """How often each call was made."""
        self.ending = False
        """Whether the program is over, and everything is being freed."""
        self.on_step: Callable[[AllocatorMachine], None] = lambda _: None
        """Called with the machine after each step."""
        self.shadow = ShadowCache(pool.num_blocks, pool.block_size)
        self._host: dict[str, dict[int, NDArray[np.uint64]]] = {}
        self._unsettled: list[str] = []
        self._copies_due = False
        self._freed: str | None = None
        self._weights = 0
        self._origins: dict[tuple[str, int], int] = {}
        self._allocator: Allocator = ask(
            lambda: factory(
                pool.num_blocks,
                pool.block_size,
                prefix_caching=pool.prefix_caching,
                window=pool.window,
            )
        )
        self._watch()

    def _watch(self) -> None:
        """Look at the allocator for the first time."""
        self._observer = Observer(
            self._allocator, self.pool, self.can, self.lives, self.shadow, self._origins
        )

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
            most = 1 if self.can.single_appends else len(step.tokens)
            given = self.can.empty_calls or bool(step.tokens)
            return name in self.lives and given and len(step.tokens) <= most
        if call == "fork":
            fresh = step.parent in self.lives and not (name in self.lives or name in self.swapped)
            # Where a prompt that is not filled yet has its room, both would fill the same blocks.
            whole = fresh and not (self.can.reserves_prompt and self.lives[step.parent].rest)
            return self.can.fork and whole and len(self.lives) < MAX_RUNNING
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
        frees = [Step("free", name) for name in [*self.lives, *self.swapped]]
        for step in frees:
            self._free(step)
            self._settle()
        # What follows needs no sequence. It is of the program, or what it shows could not be told.
        self.ending = False
        self.steps += frees
        room = max(self.pool.num_blocks - self.can.spare_blocks, 0) * self.pool.block_size
        whole = Step("admit", "whole-pool", tokens=tuple(range(1000, 1000 + room)))
        for step in (Step("reset"), whole, Step("settle"), Step("free", "whole-pool")):
            self.run(step)
        self._settle()
        self.ending = True

    @property
    def sight(self) -> Sight:
        """What was last seen of the allocator."""
        return self._observer.seen

    @property
    def evictions(self) -> int:
        """Cached blocks that were seen to lose their content so far."""
        return self._observer.evictions

    def state(self) -> int:
        """A hash of what can be seen, with blocks renamed in the order in which they occur."""
        names: dict[int, int] = {}
        tables = tuple(
            (len(self.lives[name].tokens), *(names.setdefault(b, len(names)) for b in view.blocks))
            for name, view in self.sight.views.items()
        )
        return hash((self.sight.counts, tables, len(self.waiting), len(self.swapped)))

    # The calls

    def _admit(self, step: Step) -> None:
        name, tokens = step.sequence, list(step.tokens)
        asked = len(tokens) if step.num_tokens is None else step.num_tokens
        before = self.sight
        promised = None
        if self.can.can_admit:
            answer = ask(
                lambda: self._allocator.can_admit(tokens, num_tokens=asked, salt=step.salt)
            )
            promised = truth(answer, "can_admit")
            self._observer.nothing_changed(before, "can_admit")
        origin = self._origins.setdefault((step.salt, self._weights), len(self._origins))
        life = Life(tokens, [], step.salt, origin, 0)
        expected = self._observer.cached.longest(life, before.idle)
        self.calls["admit"] += 1
        hit = ask(lambda: self._allocator.admit(name, tokens, num_tokens=asked, salt=step.salt))
        needed = self.pool.blocks_for(len(tokens))
        if promised is not None and promised != (hit is not None):
            raise CheckFailed(
                "promise",
                f"can_admit said {promised}, admit {'refused' if hit is None else 'admitted'}",
            )
        if hit is None:
            self._refused(before, f"{len(tokens)} tokens", needed)
            return
        self._observer.check_hit(hit, len(tokens))
        if self.can.finds_every_prefix and hit < expected:
            raise CheckFailed(
                "hit",
                f"{hit} tokens found cached, although {expected} are that were not evicted",
            )
        self._takes(before, needed - hit // self.pool.block_size)
        room = max(asked, min(hit + 1, len(tokens)))
        life.put_off(room)
        life.written = hit
        self.waiting.pop(name, None)
        self.lives[name] = life
        self._unsettled.append(name)
        self._look_again(name)
        self._observer.check_source(before, name, hit // self.pool.block_size)

    def _append(self, step: Step) -> None:
        life = self.lives[step.sequence]
        before = self.sight
        more = list(step.tokens)
        # What is left of the prompt comes first, whatever the program says.
        more[: len(life.rest)] = life.rest[: len(more)]
        self.calls["append"] += 1
        granted = ask(lambda: self._allocator.append(step.sequence, more))
        length = len(life.tokens)
        room = length + (len(life.rest) if self.can.reserves_prompt else 0)
        needed = max(self.pool.blocks_for(length + len(more)) - self.pool.blocks_for(room), 0)
        if more and length % self.pool.block_size:
            last = before.views[step.sequence].blocks[length // self.pool.block_size]
            needed += sum(last in view.blocks for view in before.views.values()) > 1
        if not truth(granted, "append"):
            self._refused(before, f"{len(more)} more tokens", needed)
            return
        self._takes(before, needed)
        life.extended(more)
        self._unsettled.append(step.sequence)
        self._copies_due = self.can.fork
        self._look_again(step.sequence)

    def _fork(self, step: Step) -> None:
        parent = self.lives[step.parent]
        if parent.written < len(parent.tokens):
            self._settle()
        before = self.sight
        self.calls["fork"] += 1
        granted = ask(lambda: self._allocator.fork(step.parent, step.sequence))
        # An allocator may copy the partly filled block at once, and one that shares nothing all.
        most = 1 if self.pool.prefix_caching else self.pool.blocks_for(len(parent.tokens))
        if not truth(granted, "fork"):
            self._refused(before, "a fork", most)
            return
        self._takes(before, most)
        self.lives[step.sequence] = Life(
            list(parent.tokens),
            list(parent.rest),
            parent.salt,
            parent.origin,
            parent.written,
            parent.published,
        )
        self._copies_due = True
        self._unsettled.append(step.sequence)
        self._look_again(step.sequence)

    def _free(self, step: Step) -> None:
        name = step.sequence
        self._written_before_it_goes(name)
        self.calls["free"] += 1
        ask(lambda: self._allocator.free(name))
        self._gone(name)
        self.swapped.pop(name, None)
        self._host.pop(name, None)
        self._freed = name

    def _preempt(self, step: Step) -> None:
        name = step.sequence
        self._written_before_it_goes(name)
        self.calls["preempt"] += 1
        if self.can.preempt:
            ask(lambda: self._allocator.preempt(name))
            self._observer.cached.give_up(self.lives[name])
        else:
            ask(lambda: self._allocator.free(name))
        self.waiting[name] = self.lives[name]
        self._gone(name)

    def _reset(self, step: Step) -> None:
        self.calls["reset"] += 1
        before = self.sight
        done = ask(self._allocator.reset)
        if not truth(done, "reset"):
            if not self.lives:
                raise CheckFailed("reset", "refused, although there is no sequence")
            self._observer.nothing_changed(before, "a reset that was refused")
            return
        self._weights += 1
        self._observer.forget_idle()
        if self.sight.counts.idle:
            raise CheckFailed("reset", f"after a reset {said(self.sight.counts)}")
        self._check()

    def _swap_out(self, step: Step) -> None:
        name = step.sequence
        self._settle()
        self.calls["swap_out"] += 1
        before = self.sight
        pairs = ask(lambda: self._allocator.swap_out(name))
        if pairs is None:
            self._observer.nothing_changed(before, "a swap that was refused")
            return
        pairs = as_pairs(pairs, "swap_out")
        held = [block for block in before.views[name].blocks if block >= 0]
        if sorted(block for block, _ in pairs) != sorted(held):
            raise CheckFailed("swap", f"blocks {held} to be swapped out, and it names {pairs}")
        in_use = {host for hosts in self._host.values() for host in hosts}
        hosts = [host for _, host in pairs]
        if len(set(hosts)) < len(hosts) or in_use & set(hosts):
            raise CheckFailed("swap", f"host blocks {hosts}: one is taken, or named twice")
        blocks = self.shadow.prefixes.reshape(self.pool.num_blocks, self.pool.block_size)
        self._host[name] = {host: blocks[block].copy() for block, host in pairs}
        self.swapped[name] = self.lives[name]
        self._observer.cached.give_up(self.lives[name])
        self._gone(name)

    def _swap_in(self, step: Step) -> None:
        name = step.sequence
        life = self.swapped[name]
        before = self.sight
        self.calls["swap_in"] += 1
        pairs = ask(lambda: self._allocator.swap_in(name))
        needed = len(self._host[name])
        if pairs is None:
            self._refused(before, f"{len(life.tokens)} swapped tokens", needed)
            return
        pairs = as_pairs(pairs, "swap_in")
        self._takes(before, needed)
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
        before = self.sight
        self.calls[step.call] += 1
        try:
            calls[step.call]()
        except AllocatorDied as death:
            raise CheckFailed("died", str(death)) from None
        except SystemExit as error:
            raise CheckFailed("died", f"ended the process with code {error.code}") from None
        except Exception:
            pass  # to refuse it is right, in whatever words
        self._observer.nothing_changed(before, step.call)
        self._check()

    def _settle(self, step: Step | None = None) -> None:
        """Carry out the copies, then the writes, then commit: the end of an engine's step."""
        if step is not None and step.call == "settle":
            self.calls["settle"] += 1
        if not self._unsettled and not self._copies_due:
            return
        if self.can.fork and self._copies_due:
            self._carry_out(as_pairs(ask(self._allocator.take_copies), "take_copies"))
            self._observer.look_again(None)
        self._copies_due = False
        names = [name for name in dict.fromkeys(self._unsettled) if name in self.lives]
        for name in names:
            self._write(name)
        self._unsettled.clear()
        if self.can.commit:
            for name in names:
                ask(lambda name=name: self._allocator.commit(name))  # type: ignore[misc]
                self._observer.look_again(name, committed=True)
        for name in names:
            life = self.lives[name]
            # What runs on after a reset rests on the old weights.
            now = self._origins.get((life.salt, self._weights))
            self._observer.published(life, to_be_found=now == life.origin)
        self._observer.cached.step_ends()
        self._check()

    # Their parts

    def _look_again(self, name: str) -> None:
        """Look after a call on a sequence, and check what is seen."""
        self._observer.look_again(name)
        self._check()

    def _check(self) -> None:
        self._observer.check_counts(copies_due=self._copies_due, ending=self.ending)
        if not self._unsettled and not self._copies_due:
            # Between a call and the writes that it calls for, the cache lags behind.
            self._observer.check_content()

    def _gone(self, name: str) -> None:
        self.lives.pop(name, None)
        self._unsettled = [other for other in self._unsettled if other != name]
        self._copies_due = self.can.fork
        self._look_again(name)

    def _written_before_it_goes(self, name: str) -> None:
        """Settle if full blocks of a sequence may have been published before they were written."""
        life = self.lives.get(name)
        if life is None or self.can.abort_before_write or not self.pool.prefix_caching:
            return
        size = self.pool.block_size
        if life.written // size < len(life.tokens) // size:
            self._settle()

    def _refused(self, before: Sight, what: str, needed: int) -> None:
        available = before.counts.free + before.counts.idle
        if needed + self.can.spare_blocks <= available:
            whole = needed + self.can.spare_blocks == self.pool.num_blocks and not self.lives
            raise CheckFailed(
                "capacity" if whole else "refusal",
                f"{what} refused: they take at most {needed} blocks, and there are "
                f"{said(before.counts)}",
            )
        self._observer.nothing_changed(before, "what was refused")

    def _takes(self, before: Sight, needed: int) -> None:
        """So many blocks were taken; which were evicted for it is known where idle ones are."""
        if before.idle is None and needed + self.can.spare_blocks > before.counts.free:
            self._observer.cached.forget()

    def _carry_out(self, copies: list[tuple[int, int]]) -> None:
        sources = {source for source, _ in copies}
        destinations = [destination for _, destination in copies]
        if len(set(destinations)) < len(destinations) or sources & set(destinations):
            raise CheckFailed("copies", f"{copies}: their order would matter")
        held = {block for view in self.sight.views.values() for block in view.blocks}
        held |= self.sight.idle or set()
        for source, destination in copies:
            for block in (source, destination):
                if not 0 <= block < self.pool.num_blocks:
                    raise CheckFailed("copies", f"{copies}: there is no block {block}")
            if destination not in held and not (self.sight.counts.idle and self.sight.idle is None):
                raise CheckFailed("copies", f"{copies}: nobody holds block {destination}")
        # Any order has to do, since a kernel copies all of them at once: take the other one.
        for source, destination in reversed(copies):
            self.shadow.copy(source, destination)
        self.calls["copy"] += len(copies)

    def _write(self, name: str) -> None:
        life, view = self.lives[name], self.sight.views[name]
        start = life.written
        if start == len(life.tokens):
            return
        slots = view.slots[start : len(life.tokens)]
        if view.first > start:
            raise CheckFailed(
                "window", f"{name}: the positions before {view.first} are to be written, and gone"
            )
        size = self.pool.block_size
        mine = set(view.blocks[start // size : self.pool.blocks_for(len(life.tokens))])
        if self.sight.idle and mine & self.sight.idle:
            block = min(mine & self.sight.idle)
            raise CheckFailed("ownership", f"{name} writes to block {block}, which is kept as idle")
        for other, seen in self.sight.views.items():
            if other != name and not mine.isdisjoint(seen.blocks):
                self._observer.check_shared_write(name, slots, life.hashes[start:], other)
        self.shadow.write(slots, life.seen_by_shadow(), start=start, hashes=life.hashes)
        life.written = len(life.tokens)


Machine = type[AllocatorMachine]
"""What drives an allocator, or what is built on it."""


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
    machine: Machine = AllocatorMachine,
) -> Finding | None:
    """Run a program, and return what it shows, if anything. What makes no sense is left out.

    `machine` drives it: of a system, `reference.system.SystemMachine`.
    """

    def run(made: AllocatorMachine) -> None:
        for step in program.steps:
            made.run(step)
        made.finish()

    return find_fault(factory, program.pool, run, capabilities=capabilities, machine=machine)


@with_stack_room
def find_fault(
    factory: AllocatorFactory,
    pool: Pool,
    run: Callable[[AllocatorMachine], None],
    *,
    capabilities: AllocatorCapabilities | None = None,
    machine: Machine = AllocatorMachine,
) -> Finding | None:
    """Make a machine, let `run` run it, and return what the allocator got wrong, if anything."""
    made = None
    try:
        made = machine(factory, pool, capabilities=capabilities)
        run(made)
    except CheckFailed as failed:
        steps = tuple(made.steps) if made is not None else ()
        ending = made is not None and made.ending
        return Finding(failed.check, failed.message, Program(pool, steps), ending)
    return None
