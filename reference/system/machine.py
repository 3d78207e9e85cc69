"""Drives a system through the programs of allocators, and compares its attention after each step.

Each sequence has a contiguous twin, which knows nothing of blocks: keys and values depend on the
whole prefix of a token, so that a stale mapping, a reused slot, a block hash without its parent and
a copy that was not made all give another answer.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference.allocator.machine import AllocatorMachine
from reference.allocator.programs import Step
from reference.allocator.shadow import Life, prefix_hashes
from reference.allocator.sight import CheckFailed, ask, taken, truth
from reference.attention.inputs import Inputs
from reference.attention.problem import AttentionProblem, Request
from reference.attention.tolerance import worst_excess
from reference.attention.truth import attend
from reference.system.contract import HEAD_DIM, NUM_KV_HEADS, NUM_Q_HEADS, System


class SystemMachine(AllocatorMachine):
    """Runs steps against a system. What is not to be seen of it is not asked."""

    _allocator: System  # type: ignore[assignment]

    def _watch(self) -> None:
        self._seen_by: dict[str, Tensor] = {}

    @property
    def evictions(self) -> int:
        """Nobody sees any."""
        return 0

    def state(self) -> int:
        """A hash of what is known: the lengths of all sequences."""
        lengths = [sorted(len(life.tokens) for life in each.values()) for each in self._all()]
        return hash(str(lengths))

    def run(self, step: Step) -> None:
        """Make a step's calls, and compare. A step that makes no sense now is left out."""
        made = len(self.steps)
        super().run(step)
        if len(self.steps) > made:
            self._compare()

    def _all(self) -> tuple[dict[str, Life], dict[str, Life]]:
        return self.lives, self.waiting

    def _admit(self, step: Step) -> None:
        name, tokens = step.sequence, list(step.tokens)
        asked = len(tokens) if step.num_tokens is None else step.num_tokens
        self.calls["admit"] += 1
        hit = ask(lambda: self._allocator.admit(name, tokens, num_tokens=asked, salt=step.salt))
        if hit is None:
            self._no_room(f"{len(tokens)} tokens", len(tokens))
            return
        hit = taken("admit", hit, int, "the number of tokens that are cached, or None")
        if not 0 <= hit <= max(len(tokens) - 1, 0) or hit % self.pool.block_size:
            raise CheckFailed("hit", f"{hit} of {len(tokens)} tokens are said to be cached")
        origin = self._origins.setdefault((step.salt, self._weights), len(self._origins))
        room = max(asked, min(hit + 1, len(tokens)))
        self.lives[name] = Life(tokens[:room], tokens[room:], step.salt, origin, hit)
        self.waiting.pop(name, None)
        self._write(name)

    def _append(self, step: Step) -> None:
        life = self.lives[step.sequence]
        more = list(step.tokens)
        more[: len(life.rest)] = life.rest[: len(more)]
        self.calls["append"] += 1
        granted = ask(lambda: self._allocator.append(step.sequence, more))
        if not truth(granted, "append"):
            self._no_room(f"{len(more)} more tokens", len(more) + self.pool.block_size)
            return
        life.extended(more)
        self._write(step.sequence)

    def _fork(self, step: Step) -> None:
        parent = self.lives[step.parent]
        self.calls["fork"] += 1
        if not truth(ask(lambda: self._allocator.fork(step.parent, step.sequence)), "fork"):
            self._no_room("a fork", len(parent.tokens))
            return
        self.lives[step.sequence] = Life(
            [*parent.tokens], [*parent.rest], parent.salt, parent.origin, parent.written
        )

    def _free(self, step: Step) -> None:
        self.calls[step.call] += 1
        ask(lambda: self._allocator.free(step.sequence))
        life = self.lives.pop(step.sequence)
        if step.call == "preempt":
            self.waiting[step.sequence] = life

    _preempt = _free

    def _reset(self, step: Step) -> None:
        self.calls["reset"] += 1
        if truth(ask(self._allocator.reset), "reset"):
            self._weights += 1

    def _settle(self, step: Step | None = None) -> None:
        """Nothing waits."""

    def _no_room(self, what: str, num_tokens: int) -> None:
        """Judge a refusal, as if nothing were shared."""
        held = sum(self.pool.blocks_for(len(life.tokens)) for life in self.lives.values())
        needed = self.pool.blocks_for(num_tokens) + self.can.spare_blocks
        if held + needed <= self.pool.num_blocks:
            raise CheckFailed(
                "refusal" if self.lives else "capacity",
                f"{what} refused: they take at most {needed} blocks, and the sequences hold at "
                f"most {held} of {self.pool.num_blocks}",
            )

    def _write(self, name: str) -> None:
        life = self.lives[name]
        start = life.written
        if start == len(life.tokens) or name == "whole-pool":
            return
        keys, values = contents(life.hashes[start:])
        ask(
            lambda: self._allocator.write(
                name, start=start, keys=keys.tolist(), values=values.tolist()
            )
        )
        life.written = len(life.tokens)

    def _compare(self) -> None:
        lives = {name: life for name, life in self.lives.items() if life.written}
        if not lives:
            return
        problem = AttentionProblem(
            requests=tuple(Request(1, life.written) for life in lives.values()),
            num_kv_heads=NUM_KV_HEADS,
            group_size=NUM_Q_HEADS // NUM_KV_HEADS,
            head_dim=HEAD_DIM,
            dtype="fp32",
        )
        hashes = np.concatenate([life.hashes[: life.written] for life in lives.values()])
        keys, values = contents(hashes)
        lasts = np.array([life.hashes[life.written - 1] for life in lives.values()])
        query = numbers(lasts, NUM_Q_HEADS, kind=2)
        answer = ask(lambda: self._allocator.attend([*lives], queries=query.tolist()), "attend")
        shape = tuple(query.shape)
        out = taken("attend", answer, lambda rows: _of_shape(rows, shape), f"{shape} numbers")
        excess = worst_excess(
            problem, attend(Inputs(problem, query, keys, values, None, None)), out, None
        )
        if excess is not None:
            name = [*lives][excess.token]
            raise CheckFailed("attention", f"{name}, of {lives[name].written} tokens: {excess}")


def contents(hashes: NDArray[np.uint64]) -> tuple[Tensor, Tensor]:
    """Keys and values of tokens whose prefixes have these hashes, [tokens, heads, dim] float32."""
    return numbers(hashes, NUM_KV_HEADS, kind=0), numbers(hashes, NUM_KV_HEADS, kind=1)


def numbers(hashes: NDArray[np.uint64], heads: int, *, kind: int) -> Tensor:
    """[hashes, heads, HEAD_DIM] float32 between -2 and 2, which the hashes and the kind decide."""
    count = heads * HEAD_DIM
    places = np.arange(kind * 1000, kind * 1000 + count, dtype=np.int64)
    salts = prefix_hashes(places)
    mixed = (hashes[:, None] ^ salts[None, :]) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    share = (mixed >> np.uint64(40)).astype(np.float32) / 2**24
    return torch.from_numpy(4 * share - 2).view(-1, heads, HEAD_DIM)


def _of_shape(rows: object, shape: tuple[int, ...]) -> Tensor:
    out = torch.as_tensor(rows, dtype=torch.float32)
    if tuple(out.shape) != shape:
        raise ValueError
    return out
