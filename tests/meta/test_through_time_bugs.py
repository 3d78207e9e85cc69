"""Whoever runs a system through time must notice when any part of it is wrong."""

import hashlib

import pytest
import torch

from bench.commands.fuzz import SYSTEM_EXAMPLES
from bench.fuzz.campaign import Campaign, run_campaign
from bench.fuzz.record import Subject
from paged import attention as torch_attention
from paged import cache as torch_cache
from paged.prefix import PrefixChain
from paged.system import CAPABILITIES, PagedSystem
from reference.allocator.contract import capabilities_of_factory
from reference.system.contract import CHECKS
from reference.system.driving import run_program
from subjects.allocators.engines import torch_flex_system


class NoCopy(PagedSystem):
    """Copy-on-write without the copy."""

    copy_blocks = staticmethod(lambda keys, values, pairs: None)


class KeysOnlyCopied(PagedSystem):
    copy_blocks = staticmethod(lambda keys, _, pairs: torch_cache.copy_blocks(keys, keys, pairs))


class AllButTheLastWritten(PagedSystem):
    @staticmethod
    def write_slots(key_cache, value_cache, keys, values, slots):
        torch_cache.write_slots(key_cache, value_cache, keys[:-1], values[:-1], slots[:-1])


class NeighboursValuesWritten(PagedSystem):
    @staticmethod
    def write_slots(key_cache, value_cache, keys, values, slots):
        torch_cache.write_slots(key_cache, value_cache, keys, values.roll(1, 0), slots)


class TablesSwapped(PagedSystem):
    @staticmethod
    def attention(batch):
        order = torch.arange(len(batch.seq_lens)).roll(1)
        same = bool((batch.seq_lens == batch.seq_lens[order]).all())
        table = batch.block_table[order] if same else batch.block_table
        torch_attention.paged_attention(batch.replace(block_table=table))


class OneTokenShort(PagedSystem):
    @staticmethod
    def attention(batch):
        lengths = (batch.seq_lens - 1).clamp(min=1)
        torch_attention.paged_attention(batch.replace(seq_lens=lengths))


class RefusesTheLastBlock(PagedSystem):
    def append(self, sequence, tokens):
        return self.allocator.pool.num_free > 1 and super().append(sequence, tokens)


class HoldsABlockBack(PagedSystem):
    def admit(self, sequence, tokens, *, num_tokens, salt):
        if self.allocator.blocks_needed(len(tokens)) == self.allocator.num_blocks:
            return None
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)


class SaysThatAllIsCached(PagedSystem):
    def admit(self, sequence, tokens, *, num_tokens, salt):
        hit = super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)
        return len(tokens) if hit else hit


class OneHeadMissing(PagedSystem):
    def attend(self, sequences, *, queries):
        return super().attend(sequences, queries=queries)[:, 1:]


class EndsTheProcess(PagedSystem):
    def fork(self, parent, child):
        raise SystemExit(3)


class PrefixHashForgets(PagedSystem):
    """Blocks with equal tokens and different prefixes look alike."""


BUGS = {
    NoCopy: "attention",
    KeysOnlyCopied: "attention",
    AllButTheLastWritten: "attention",
    NeighboursValuesWritten: "attention",
    TablesSwapped: "attention",
    OneTokenShort: "attention",
    PrefixHashForgets: "attention",
    RefusesTheLastBlock: "refusal",
    HoldsABlockBack: "capacity",
    SaysThatAllIsCached: "hit",
    OneHeadMissing: "answer",
    EndsTheProcess: "died",
}


def hunt(factory, **options):
    campaign = Campaign(
        allocator=Subject(name="planted"),
        factory=factory,
        capabilities=capabilities_of_factory(factory),
        examples=SYSTEM_EXAMPLES,
        max_findings=1,
        shrink_limit_s=0.0,
        **options,
    )
    (found,) = run_campaign(campaign).found
    return found


def factory_of(system):
    def make(num_blocks, block_size, *, prefix_caching, window):
        return system(num_blocks, block_size, prefix_caching=prefix_caching)

    make.capabilities = CAPABILITIES
    return make


@pytest.mark.parametrize(
    ("system", "check"), BUGS.items(), ids=lambda it: getattr(it, "__name__", it)
)
def test_a_wrong_part_is_noticed(system, check, monkeypatch):
    make = factory_of(system)
    if system is PrefixHashForgets:
        forgets = lambda self, content: hashlib.blake2b(content).digest()  # noqa: E731
        monkeypatch.setattr(PrefixChain, "_link", forgets)
    found = hunt(make)
    assert found.check == check, found.message
    assert run_program(make, found.program).check == check
    monkeypatch.undo()
    assert run_program(factory_of(PagedSystem), found.program) is None


def test_every_check_of_a_system_has_a_bug():
    assert set(BUGS.values()) == CHECKS.keys()


def test_the_mapping_that_torch_leaves_behind_is_found_and_is_all_that_is_wrong():
    class Cleared(torch_flex_system.TorchSystem):
        def free(self, sequence):
            row = self._row[sequence]
            super().free(sequence)
            self._pages.physical_to_logical[row] = -1

    def cleared(num_blocks, block_size, *, prefix_caching, window):
        return Cleared(num_blocks, block_size)

    cleared.capabilities = torch_flex_system.make.capabilities
    found = hunt(torch_flex_system.make, pool={"num_blocks": 4, "block_size": 1}, max_moves=10)
    assert found.check == "attention"
    assert run_program(cleared, found.program) is None
