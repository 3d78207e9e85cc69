"""The machine that runs an engine through time must notice when any part of it is wrong."""

import hashlib

import pytest
import torch
from hypothesis.stateful import run_state_machine_as_test

from helpers.planted import until_found
from paged import attention as torch_attention
from paged import cache as torch_cache
from paged.prefix import PrefixChain
from tests.property.test_through_time import Serving


def no_copy(key_cache, value_cache, pairs):
    """Copy-on-write without the copy."""


def keys_only_copied(key_cache, value_cache, pairs):
    torch_cache.copy_blocks(key_cache, key_cache, pairs)


def write_all_but_the_last(key_cache, value_cache, keys, values, slots):
    torch_cache.write_slots(key_cache, value_cache, keys[:-1], values[:-1], slots[:-1])


def values_of_the_neighbour_written(key_cache, value_cache, keys, values, slots):
    torch_cache.write_slots(key_cache, value_cache, keys, values.roll(1, 0), slots)


def tables_swapped(batch):
    order = torch.arange(len(batch.seq_lens)).roll(1)
    width = batch.block_table.shape[1]
    same = bool((batch.seq_lens == batch.seq_lens[order]).all()) and width
    table = batch.block_table[order] if same else batch.block_table
    torch_attention.paged_attention(batch.replace(block_table=table))


def one_token_short(batch):
    shorter = (batch.seq_lens - 1).clamp(min=1)
    torch_attention.paged_attention(batch.replace(seq_lens=torch.minimum(batch.seq_lens, shorter)))


WRONG_PARTS = {
    "copy_blocks": [no_copy, keys_only_copied],
    "write_slots": [write_all_but_the_last, values_of_the_neighbour_written],
    "attention": [tables_swapped, one_token_short],
}


def hunt(machine):
    run_state_machine_as_test(machine, settings=until_found(400, stateful_step_count=30))


@pytest.mark.parametrize(
    ("part", "wrong"),
    [(part, wrong) for part, functions in WRONG_PARTS.items() for wrong in functions],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_wrong_part_is_noticed(part, wrong):
    broken = type("Broken", (Serving,), {part: staticmethod(wrong)})
    with pytest.raises(AssertionError, match="off by"):
        hunt(broken)


def test_a_block_hash_without_its_parent_is_noticed(monkeypatch):
    # Blocks with equal tokens and different prefixes then look alike.
    monkeypatch.setattr(
        PrefixChain, "_link", lambda self, content: hashlib.blake2b(content).digest()
    )
    with pytest.raises(AssertionError, match="off by"):
        hunt(Serving)
