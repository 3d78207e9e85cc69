"""Mixes keep tenants and their prefixes apart; a system prompt is shared, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.arrivals import arriving
from bench.workloads.conversations import ConversationFit
from bench.workloads.fits import fitted
from bench.workloads.mix import mix
from bench.workloads.prefix import PrefixBlocks
from bench.workloads.source import head, read_all
from bench.workloads.stream import CHUNK_REQUESTS
from bench.workloads.system_prompt import with_system_prompt
from helpers.profiles import examples
from helpers.streams import stream


def counted(first, count, **others):
    """Requests that are told by their prompt's length."""
    return stream(list(range(first, first + count)), **others)


sorted_times = st.lists(st.integers(0, 9), min_size=1, max_size=12).map(sorted)


@examples(100)
@given(st.lists(sorted_times, min_size=2, max_size=4))
def test_a_merge_is_a_stable_sort_by_time(times):
    tenants = [counted(100 * k, len(t), arrival_s=t) for k, t in enumerate(times)]
    merged = read_all(mix(tenants))
    expected = sorted(
        (time, tenant, 100 * tenant + index)
        for tenant, column in enumerate(times)
        for index, time in enumerate(column)
    )
    seen = zip(merged.arrival_s, merged.tenant, merged.prompt_tokens, strict=True)
    assert list(seen) == expected
    assert mix(tenants).num_requests == len(expected)


def test_a_merge_of_many_chunks_is_a_sort_by_time_too():
    sources = [
        fitted("azure-fit", num_requests=3 * CHUNK_REQUESTS, seed=1),
        fitted("azure-code-fit", num_requests=CHUNK_REQUESTS + 5, seed=2),
    ]
    merged = read_all(mix(sources))
    parts = [read_all(source) for source in sources]
    times = np.concatenate([part.arrival_s for part in parts])
    assert merged.arrival_s.tolist() == np.sort(times).tolist()
    for tenant, part in enumerate(parts):
        own = merged.take(np.flatnonzero(merged.tenant == tenant))
        assert own.prompt_tokens.tolist() == part.prompt_tokens.tolist()
        assert own.arrival_s.tolist() == part.arrival_s.tolist()


def test_shares_hold_and_each_tenant_keeps_its_order():
    sources = [counted(0, 60_000), counted(10**6, 60_000), counted(2 * 10**6, 60_000)]
    mixed = read_all(mix(sources, shares=[5, 3, 2], seed=4))
    for tenant, share in enumerate((0.5, 0.3, 0.2)):
        own = mixed.prompt_tokens[mixed.tenant == tenant]
        assert own.tolist() == list(range(tenant * 10**6, tenant * 10**6 + own.size))
        assert own.size / len(mixed) == pytest.approx(share, abs=0.006)
    # The first tenant is spent first.
    assert np.count_nonzero(mixed.tenant == 0) == 60_000


@examples(60)
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    seed=st.integers(0, 50),
)
def test_a_mix_ends_when_a_tenant_has_no_request_for_its_turn(counts, seed):
    sources = [counted(100 * k, count) for k, count in enumerate(counts)]
    endless = [counted(100 * k, 99) for k in range(len(counts))]
    shares = [1.0] * len(counts)
    mixed = read_all(mix(sources, shares=shares, seed=seed))
    turns = read_all(mix(endless, shares=shares, seed=seed)).tenant.tolist()
    left = list(counts)
    expected = 0
    while left[turns[expected]]:
        left[turns[expected]] -= 1
        expected += 1
    assert mixed.tenant.tolist() == turns[:expected]


def test_an_empty_handed_first_turn_is_no_mix_at_all():
    class Spent:
        name, source, num_requests, timed = "spent", "spent", 0, False

        def chunks(self):
            return iter(())

    assert list(mix([Spent(), Spent()], shares=[1, 1]).chunks()) == []


def test_times_are_dropped_by_shares_and_given_to_the_mix():
    mixed = mix([fitted("azure-fit"), fitted("sharegpt-fit")], shares=[1, 1])
    assert not mixed.timed
    assert read_all(head(arriving(mixed, rate_per_s=2.0), 10)).arrival_s is not None


def test_prefix_ids_of_tenants_are_disjoint_and_sharing_within_stays():
    source = ConversationFit(num_requests=300)
    alone = read_all(source).prefix
    mixed = read_all(mix([source, source]))
    ids = []
    for tenant in (0, 1):
        own = mixed.take(np.flatnonzero(mixed.tenant == tenant)).prefix
        ids.append(set(own.ids.tolist()))
        assert own.offsets.tolist() == alone.offsets.tolist()
        numbers = dict(zip(own.ids.tolist(), alone.ids.tolist(), strict=True))
        assert [numbers[block] for block in own.ids.tolist()] == alone.ids.tolist()
    assert ids[0].isdisjoint(ids[1])


def test_prefix_blocks_of_two_sizes_are_cut_to_the_one_that_fits_both():
    fine = stream([40], prefix=PrefixBlocks(ids=[1, 2, 3], offsets=[0, 3], tokens_per_block=16))
    coarse = stream([40], prefix=PrefixBlocks(ids=[1, 2], offsets=[0, 2], tokens_per_block=24))
    none = stream([40])
    mixed = read_all(mix([fine, coarse, none], shares=[1, 1, 1], seed=3))
    assert mixed.prefix.tokens_per_block == 8
    blocks = {int(t): mixed.prefix.of(r).size for r, t in enumerate(mixed.tenant)}
    assert blocks == {k: {0: 5, 1: 5, 2: 0}[k] for k in blocks}
    assert len(blocks) > 1
    assert np.unique(mixed.prefix.ids).size == mixed.prefix.ids.size


def test_prefix_blocks_that_are_cut_come_in_smaller_chunks():
    fine = fitted("azure-fit", num_requests=2000)
    sources = [ConversationFit(num_requests=2000), with_system_prompt(fine, 16)]
    for mixed in (mix(sources), mix(sources, shares=[1, 1])):
        chunks = list(mixed.chunks())
        assert {chunk.prefix.tokens_per_block for chunk in chunks} == {16}
        assert max(chunk.prefix.ids.size for chunk in chunks) < 1.2e6
        assert sum(map(len, chunks)) > 3000


def test_a_long_system_prompt_of_odd_length_comes_in_smaller_chunks():
    chunks = list(with_system_prompt(fitted("sharegpt-fit", num_requests=2000), 4001).chunks())
    assert max(chunk.prefix.ids.size for chunk in chunks) <= 2**20
    assert sum(map(len, chunks)) == 2000


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda a, _: mix([a]), "a mix of 1 sources"),
        (lambda a, b: mix([a, b]), "s cannot be merged by time, having none; give shares"),
        (lambda a, b: mix([a, b], shares=[1]), "1 shares of 2 sources"),
        (lambda a, b: mix([a, b], shares=[1, 0]), "share 0; give finite shares above 0"),
        (lambda a, b: mix([a, b], shares=[1, float("nan")]), "share nan"),
        (lambda a, b: mix([a, b], shares=[1, 1], names=["x"]), "1 names of 2 sources"),
        (lambda a, b: mix([a, b], shares=[1, 1], seed=-1), "seed is -1"),
        (lambda a, _: with_system_prompt(a, 0), "a system prompt of 0 tokens"),
        (lambda a, _: with_system_prompt(a, 16, prompts=0), "0 system prompts"),
        (lambda a, _: with_system_prompt(a, 16, seed=-1), "seed is -1"),
    ],
)
def test_bad_mixes_are_refused_with_the_value(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(counted(0, 3), counted(5, 3))


def shared_tokens(prefix, prompts, block_size=1):
    """Tokens that the first two requests share, by their cache keys."""
    first, second = (prefix.keys(r, block_size, prompts[r]).tolist() for r in (0, 1))
    same = [a == b for a, b in zip(first, second, strict=False)]
    assert same == sorted(same, reverse=True)  # a prefix: nothing equal behind what differs
    return block_size * sum(same)


@pytest.mark.parametrize(
    ("tokens", "size", "block_size", "hit"),
    [
        *[(512, 16, 16, 512), (240, 16, 16, 240), (100, 4, 4, 100), (7, 1, 1, 7)],
        # A cache with larger blocks: only those that the prompt fills can be shared.
        *[(240, 16, 32, 224), (240, 16, 128, 128), (240, 16, 256, 0)],
    ],
)
def test_a_system_prompt_is_shared_to_the_token_and_nothing_behind_it(
    tokens, size, block_size, hit
):
    made = read_all(with_system_prompt(stream([550, 560]), tokens))
    assert made.prompt_tokens.tolist() == [tokens + 550, tokens + 560]
    assert made.prefix.tokens_per_block == size
    prompts = made.prompt_tokens.tolist()
    assert shared_tokens(made.prefix, prompts, block_size=block_size) == hit
    assert [made.prefix.of(r).size for r in (0, 1)] == [-(-prompt // size) for prompt in prompts]


def test_requests_own_blocks_differ_across_chunks():
    requests = CHUNK_REQUESTS + 100
    made = read_all(with_system_prompt(stream([20] * requests), 32))
    own = made.prefix.ids.reshape(requests, 4)[:, 2:]
    assert np.unique(own).size == own.size
    system = np.unique(made.prefix.ids.reshape(requests, 4)[:, :2])
    assert system.size == 2
    assert not np.isin(own, system).any()


def test_several_system_prompts_are_drawn_evenly_and_share_nothing():
    made = read_all(with_system_prompt(stream([1] * 9000), 16, prompts=3))
    first, counts = np.unique(made.prefix.ids.reshape(-1, 2)[:, 0], return_counts=True)
    assert first.tolist() == [0, 1, 2]
    assert counts == pytest.approx(3000, abs=200)


def test_prefixes_of_the_source_stay_behind_each_system_prompt_apart():
    blocks = PrefixBlocks(ids=np.tile([7, 9], 400), offsets=range(0, 802, 2), tokens_per_block=512)
    made = read_all(with_system_prompt(stream([1024] * 400, prefix=blocks), 1024, prompts=2))
    assert made.prefix.tokens_per_block == 512
    rows = np.unique(made.prefix.ids.reshape(400, 4), axis=0)
    assert rows.shape == (2, 4)  # all who got the same system prompt share everything
    assert np.unique(rows).size == 8  # and nothing with those who got the other


def test_a_system_prompt_that_ends_within_a_prefix_block_is_refused():
    source = with_system_prompt(ConversationFit(num_requests=5), 500)
    with pytest.raises(ValueError, match="500 tokens before prefix blocks of 512: use a multiple"):
        read_all(source)


def test_ids_too_large_to_be_told_apart_are_refused():
    blocks = PrefixBlocks(ids=[2**62], offsets=[0, 1], tokens_per_block=16)
    source = stream([16], prefix=blocks, arrival_s=[0.0])
    with pytest.raises(ValueError, match=f"prefix id {2**62} for each of 2 tenants"):
        read_all(mix([source, source]))
