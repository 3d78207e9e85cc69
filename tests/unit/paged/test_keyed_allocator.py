"""The allocator for those who know keys instead of tokens, chunks, windows, and its counters."""

import numpy as np
import pytest

from paged.allocator import PagedAllocator
from paged.errors import BadSize, OutOfBlocks, UnknownSequence
from paged.eviction import FIFO, LFU, LRU
from paged.prefix import KeyedPrompt


def caching(num_blocks: int = 16, block_size: int = 4, **options: object) -> PagedAllocator:
    return PagedAllocator(num_blocks, block_size, prefix_caching=True, **options)


def counts(allocator: PagedAllocator) -> tuple[int, int, int]:
    return allocator.num_free, allocator.num_cached_idle, allocator.num_used


# Keys


def test_length_alone_shares_nothing_and_keeps_nothing() -> None:
    allocator = caching()
    for name in "ab":
        assert allocator.admit(name, KeyedPrompt(8)) == 0
    allocator.free("a")
    assert counts(allocator) == (14, 0, 2)


def test_blocks_behind_the_last_key_are_not_kept() -> None:
    allocator = caching()
    allocator.admit("a", KeyedPrompt(12, (1, 2)))
    allocator.extend("a", 8)
    allocator.free("a")
    assert counts(allocator) == (14, 2, 0)


def test_keys_do_nothing_without_prefix_caching() -> None:
    allocator = PagedAllocator(16, 4)
    prompt = KeyedPrompt(9, (1, 2))
    for name in "ab":
        assert allocator.admit(name, prompt) == 0
    assert allocator.cached_tokens(prompt) == 0
    assert counts(allocator) == (10, 0, 6)


def test_keys_of_an_array_will_do() -> None:
    allocator = caching()
    allocator.admit("a", KeyedPrompt(9, np.array([1, 2])))
    assert allocator.admit("b", KeyedPrompt(9, (1, 2))) == 8


def test_keys_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BadSize, match="3 keys for 11 tokens in blocks of 4: give at most 2"):
        caching().admit("a", KeyedPrompt(11, (1, 2, 3)))
    with pytest.raises(BadSize, match="let the keys of tenants differ"):
        caching().admit("a", KeyedPrompt(4, (1,)), salt=b"s")


@pytest.mark.parametrize(("num_tokens", "tenant"), [(-1, 0), (1.5, 0), (True, 0), (1, -1)])
def test_keyed_prompt_out_of_range_is_refused(num_tokens: int, tenant: int) -> None:
    with pytest.raises(BadSize, match=r"(num_tokens|tenant) = "):
        KeyedPrompt(num_tokens, (), tenant)


# Growth by numbers of tokens


def test_prompt_in_chunks_publishes_each_block_when_it_is_full() -> None:
    allocator = caching()
    prompt = KeyedPrompt(13, (1, 2, 3))
    allocator.admit("a", prompt, num_tokens=3)
    found = []
    for _ in range(5):
        allocator.extend("a", 2)
        found.append((allocator.num_tokens("a"), allocator.cached_tokens(prompt)))
    assert found == [(5, 4), (7, 4), (9, 8), (11, 8), (13, 12)]
    allocator.extend("a", 20)
    assert allocator.num_blocks_of("a") == 9
    allocator.free("a")
    assert counts(allocator) == (13, 3, 0)


def test_token_ids_in_chunks_are_appended() -> None:
    allocator = caching()
    tokens = list(range(13))
    assert allocator.admit("a", tokens, num_tokens=6) == 0
    assert allocator.cached_tokens(tokens) == 4
    allocator.append("a", tokens[6:])
    assert allocator.cached_tokens(tokens) == 12
    assert allocator.admit("b", tokens, num_tokens=1) == 12
    assert allocator.num_tokens("b") == 13


def test_chunk_that_ends_before_what_was_looked_up_publishes_what_it_holds() -> None:
    allocator = caching()
    allocator.admit("a", [1] * 8)
    allocator.admit("b", [1] * 4 + [2] * 12, num_tokens=9)
    allocator.append("b", [2] * 7)
    assert allocator.cached_tokens([1] * 4 + [2] * 13) == 16


def test_room_for_more_than_the_prompt_is_refused() -> None:
    for allocator in (caching(), PagedAllocator(16, 4)):
        with pytest.raises(BadSize, match="num_tokens = 6: give an integer, 0 to 5"):
            allocator.admit("a", KeyedPrompt(5), num_tokens=6)
        assert allocator.num_used == 0


def test_unknown_tokens_end_the_publishing_of_token_ids() -> None:
    allocator = caching()
    allocator.admit("a", [1] * 4)
    allocator.extend("a", 4)
    allocator.append("a", [1] * 8)
    assert allocator.cached_tokens([1] * 20) == 4


def test_extension_of_a_shared_block_copies_it() -> None:
    allocator = PagedAllocator(16, 4)
    allocator.admit("a", KeyedPrompt(6))
    allocator.fork("a", "b")
    allocator.extend("b", 3)
    ((source, copy),) = allocator.take_copies()
    assert allocator.block_table(["a", "b"])[:, 1].tolist() == [source, copy]
    assert allocator.num_tokens("b") == 9
    assert allocator.num_copies == 1
    allocator.extend("a", 1)
    assert allocator.take_copies() == []
    assert allocator.num_copies == 1


def test_fork_in_the_middle_of_a_prompt_goes_on_by_itself() -> None:
    allocator = caching()
    prompt = KeyedPrompt(13, (1, 2, 3))
    allocator.admit("a", prompt, num_tokens=6)
    allocator.fork("a", "b")
    allocator.free("a")
    allocator.extend("b", 7)
    assert allocator.cached_tokens(prompt) == 12


def test_extension_by_nothing_or_by_what_is_no_number_changes_nothing() -> None:
    allocator = PagedAllocator(2, 4)
    allocator.admit("a", KeyedPrompt(4))
    allocator.extend("a", 0)
    for wrong in (-1, 1.5, True, "1"):
        with pytest.raises(BadSize, match="num_tokens = "):
            allocator.extend("a", wrong)
    assert allocator.num_tokens("a") == 4
    allocator.extend("a", np.int64(1))
    assert allocator.num_tokens("a") == 5


def test_unknown_sequence_is_neither_extended_nor_released_nor_measured() -> None:
    allocator = PagedAllocator(2, 4)
    for call in (
        lambda: allocator.extend("a", 1),
        lambda: allocator.release_before("a", 0),
        lambda: allocator.num_blocks_of("a"),
    ):
        with pytest.raises(UnknownSequence, match="'a'"):
            call()


# Windows


def test_released_blocks_are_free_and_the_others_keep_their_places() -> None:
    allocator = PagedAllocator(8, 4)
    allocator.admit("a", KeyedPrompt(14))
    before = allocator.block_table(["a"])[0].tolist()
    allocator.release_before("a", 9)
    assert allocator.block_table(["a"])[0].tolist() == [-1, -1, *before[2:]]
    assert allocator.block_table(["a"], fill=99)[0].tolist() == [99, 99, *before[2:]]
    assert allocator.num_blocks_of("a") == 2
    assert counts(allocator) == (6, 0, 2)
    allocator.release_before("a", 9)
    allocator.release_before("a", 3)
    assert counts(allocator) == (6, 0, 2)
    allocator.extend("a", 3)
    assert allocator.slots("a", start=8).size == 9
    with pytest.raises(BadSize, match="start = 0: the blocks before position 8 were released"):
        allocator.slots("a")
    allocator.free("a")
    assert counts(allocator) == (8, 0, 0)


def test_released_prefix_can_still_be_hit() -> None:
    allocator = caching()
    prompt = KeyedPrompt(13, (1, 2, 3))
    allocator.admit("a", prompt)
    allocator.release_before("a", 12)
    assert counts(allocator) == (12, 3, 1)
    assert allocator.admit("b", prompt) == 12


# Counters


def test_evictions_and_ghosts_are_counted() -> None:
    allocator = caching(4)
    old = KeyedPrompt(13, (1, 2, 3))
    allocator.admit("a", old)
    allocator.free("a")
    allocator.admit("b", KeyedPrompt(12, (4, 5, 6)))
    assert (allocator.num_evictions, allocator.num_ghost_hits) == (2, 0)
    allocator.free("b")
    # The head is left, the two behind it are ghosts.
    assert allocator.admit("c", old) == 4
    assert allocator.num_ghost_hits == 2
    assert allocator.num_evictions == 5


def test_refused_admission_meets_no_ghosts() -> None:
    allocator = caching(4)
    old = KeyedPrompt(13, (1, 2, 3))
    allocator.admit("a", old)
    allocator.free("a")
    allocator.admit("b", KeyedPrompt(16))
    with pytest.raises(OutOfBlocks):
        allocator.admit("c", old)
    assert (allocator.num_evictions, allocator.num_ghost_hits) == (3, 0)


def test_reset_is_no_eviction_and_leaves_no_ghosts() -> None:
    allocator = caching(4)
    prompt = KeyedPrompt(13, (1, 2, 3))
    allocator.admit("a", prompt)
    allocator.free("a")
    allocator.reset_prefix_cache()
    allocator.admit("b", prompt)
    assert (allocator.num_evictions, allocator.num_ghost_hits) == (0, 0)


def test_copy_that_was_dropped_is_not_counted() -> None:
    allocator = PagedAllocator(8, 4)
    allocator.admit("a", KeyedPrompt(6))
    allocator.fork("a", "b")
    allocator.extend("b", 1)
    allocator.free("b")
    assert allocator.take_copies() == []
    assert allocator.num_copies == 0


# Orders


@pytest.mark.parametrize("make", [LRU, FIFO, LFU])
def test_tail_of_an_admission_goes_before_its_head(make: type[LRU | FIFO | LFU]) -> None:
    allocator = caching(4, eviction=make())
    allocator.admit("a", KeyedPrompt(13, (1, 2, 3)))
    allocator.free("a")
    allocator.admit("b", KeyedPrompt(8))
    assert allocator.cached_tokens(KeyedPrompt(13, (1, 2, 3))) == 8


@pytest.mark.parametrize(("make", "kept"), [(LRU, "old"), (FIFO, "new"), (LFU, "old")])
def test_prefix_that_was_hit_again(make: type[LRU | FIFO | LFU], kept: str) -> None:
    prompts = {"old": KeyedPrompt(5, (1,)), "new": KeyedPrompt(5, (2,))}
    allocator = caching(3, eviction=make())
    for name in ("old", "new", "old"):
        allocator.admit(name, prompts[name])
        allocator.free(name)
    allocator.admit("room", KeyedPrompt(8))
    assert [name for name in prompts if allocator.cached_tokens(prompts[name])] == [kept]


def test_tenant_of_token_ids_can_be_named() -> None:
    allocator = caching(8, eviction=LRU(quotas={5: 1}))
    allocator.admit("a", list(range(9)), tenant=5)
    allocator.free("a")
    assert allocator.num_cached_idle == 1
    assert allocator.num_evictions == 1


def test_growth_of_a_tenant_counts_for_its_quota() -> None:
    allocator = caching(4, eviction=LRU(quotas={1: 2}))
    allocator.admit("a", KeyedPrompt(9, (1, 2)))
    allocator.free("a")
    allocator.admit("b", KeyedPrompt(8, (3, 4), tenant=1), num_tokens=4)
    allocator.extend("b", 4)
    # The one block that was missing came from the other tenant: this one had nothing idle.
    assert allocator.cached_tokens(KeyedPrompt(9, (1, 2))) == 8
    allocator.free("b")
    allocator.admit("c", KeyedPrompt(4, (5,), tenant=1))
    assert allocator.cached_tokens(KeyedPrompt(9, (1, 2))) == 8
    assert allocator.cached_tokens(KeyedPrompt(9, (3, 4))) == 4
