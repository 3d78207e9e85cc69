"""The one door to the simulators: what it passes on, and that it reads streams as it goes."""

import gc
import tracemalloc
from dataclasses import replace

import pytest

from bench.waste.contiguous import ContiguousPolicy, serve_contiguous
from bench.waste.policies import Policy
from bench.waste.simulate import lengths_of, num_requests, requests_of, simulate
from bench.workloads.fits import fitted
from bench.workloads.mix import mix
from bench.workloads.need import contiguous_need, paged_need
from bench.workloads.prefix import PrefixBlocks
from bench.workloads.source import StreamSource, read_all, repeat, saturated
from bench.workloads.system_prompt import with_system_prompt
from helpers.streams import stream as stream_of
from paged.clock import StepTime
from paged.policy import PagedPolicy
from paged.scheduler import serve

ORACLE = ContiguousPolicy(reservation="oracle", arena="buddy", max_model_len=2048)
SLOTS = 15_728


class Uncounted:
    """A stream whose length is not known before it is read."""

    def __init__(self, of: StreamSource) -> None:
        self.of = of
        self.name, self.source, self.timed = of.name, of.source, of.timed
        self.num_requests = None

    def chunks(self):
        return self.of.chunks()


def test_each_policy_goes_to_its_simulator() -> None:
    source = fitted("sharegpt-fit", num_requests=300)
    reserved = simulate(source, ORACLE, slots=SLOTS)
    assert reserved == serve_contiguous(lengths_of(source), ORACLE, slots=SLOTS, warmup=30)
    for policy in (PagedPolicy(), PagedPolicy(look_ahead=4)):
        moved = serve(requests_of(source), policy, slots=SLOTS, warmup=30)
        assert simulate(source, policy, slots=SLOTS) == moved


def test_the_warm_up_is_a_tenth_where_nothing_is_said_also_if_the_length_is_unknown() -> None:
    source = fitted("alpaca-fit", num_requests=400)
    unknown = Uncounted(source)
    assert num_requests(unknown) == 400
    policy = PagedPolicy()
    expected = simulate(source, policy, slots=SLOTS, warmup=40)
    assert simulate(source, policy, slots=SLOTS) == expected
    assert simulate(unknown, policy, slots=SLOTS) == expected
    assert simulate(source, policy, slots=SLOTS, warmup=0) != expected


def test_arrivals_are_nanoseconds_and_steps_take_what_was_said() -> None:
    stream = stream_of([1, 1], [2, 1], arrival_s=[0, 1.5])
    assert [at for _, _, at in lengths_of(stream)] == [0, 1_500_000_000]
    for policy in (PagedPolicy(), PagedPolicy(look_ahead=1), ORACLE):
        apart = simulate(stream, policy, slots=SLOTS, warmup=0)
        assert (apart.total.steps, apart.peak_requests) == (3, 1)
        long_steps = StepTime(step_ns=1_500_000_000, prefill_ns_per_token=0)
        together = simulate(stream, policy, slots=SLOTS, warmup=0, time=long_steps)
        assert (together.total.steps, together.peak_requests) == (2, 2)


def test_a_closed_loop_is_for_paging() -> None:
    source = fitted("alpaca-fit", num_requests=50)
    assert simulate(source, PagedPolicy(), slots=SLOTS, clients=3).peak_requests == 3
    with pytest.raises(ValueError, match="clients = 3"):
        simulate(source, ORACLE, slots=SLOTS, clients=3)


@pytest.mark.parametrize("block_size", [4, 16, 32])
def test_a_shared_system_prompt_is_computed_once(block_size: int) -> None:
    source = with_system_prompt(fitted("alpaca-fit", num_requests=200), 64)
    policy = PagedPolicy(block_size=block_size, prefix_caching=True)
    total = simulate(source, policy, slots=200_000).total
    # All but the first find the system prompt; all 200 fit at once, so it is never evicted.
    assert total.hit_tokens == 199 * 64
    assert total.queried_tokens == total.prompt_tokens
    assert total.token < total.logical_token
    without = simulate(source, replace(policy, prefix_caching=False), slots=200_000).total
    assert without.computed_tokens - total.computed_tokens == total.hit_tokens


def test_prefix_blocks_and_tenants_reach_the_cache() -> None:
    stream = stream_of(
        [9, 9, 9],
        prefix=PrefixBlocks(
            ids=[1, 2, 3, 1, 2, 4, 9, 8, 7], offsets=[0, 3, 6, 9], tokens_per_block=4
        ),
        tenant=[0, 1, 0],
        tenant_names=("a", "b"),
    )
    requests = list(requests_of(stream, key_block_size=4))
    assert [request.tenant for request in requests] == [0, 1, 0]
    assert [len(request.keys) for request in requests] == [2, 2, 2]
    assert requests[0].keys == requests[1].keys != requests[2].keys


def test_quotas_protect_one_tenant_of_a_mix_from_the_other() -> None:
    chat = with_system_prompt(fitted("alpaca-fit", num_requests=150), 512, prompts=4)
    scan = with_system_prompt(fitted("alpaca-fit", num_requests=150), 512, prompts=150, seed=5)
    source = mix([chat, scan], shares=[0.5, 0.5])
    policy = PagedPolicy(prefix_caching=True, max_running=1)
    slots = 6 * 512
    free_for_all = simulate(source, policy, slots=slots).total.hit_tokens
    quota = replace(policy, tenant_quotas=((1, 32),))
    protected = simulate(source, quota, slots=slots).total.hit_tokens
    assert protected > 1.5 * free_for_all


def peak_bytes(policy: Policy, times: int) -> int:
    source = repeat(fitted("alpaca-fit", num_requests=500), times)
    # Python keeps freed tuples for the next ones, those of earlier tests too, and a collection
    # drops them: 140 kB more or less, unless each run begins without any.
    gc.collect()
    tracemalloc.start()
    try:
        simulate(source, policy, slots=SLOTS)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "policy",
    [PagedPolicy(), PagedPolicy(prefix_caching=True, eviction="lfu"), ORACLE],
    ids=["counts", "prefix", "oracle"],
)
def test_memory_does_not_grow_with_the_stream(policy: Policy) -> None:
    # Both runs are longer than the series of moments. To keep a request takes 100 bytes and more.
    peak_bytes(policy, 1)
    more_requests = (16 - 8) * 500
    assert peak_bytes(policy, 16) - peak_bytes(policy, 8) < 30 * more_requests


@pytest.mark.parametrize("block_size", [1, 16, 48])
@pytest.mark.parametrize("name", ["sharegpt-fit", "azure-fit"])
def test_what_requests_hold_is_what_arithmetic_says_whatever_the_order_of_events(
    name: str, block_size: int
) -> None:
    """`workloads.need` sums over the requests alone; preemption only moves their steps apart."""
    stream = read_all(saturated(fitted(name, num_requests=400)))
    longest = 16_384
    # A server writes a token a step after it was generated.
    written = replace(stream, prompt_tokens=stream.prompt_tokens - 1)
    need = paged_need(written, block_size=block_size)
    for policy in (
        PagedPolicy(block_size=block_size),
        PagedPolicy(block_size=block_size, watermark=0.1, preemption="swap"),
        PagedPolicy(block_size=block_size, look_ahead=5),
    ):
        total = simulate(stream, policy, slots=20_000).total
        assert total.completed == len(stream)
        assert (total.token, total.allocated) == (need.token, need.allocated)
        assert total.running == need.request_steps
    reserved = contiguous_need(stream, max_model_len=longest)
    maximal = ContiguousPolicy(reservation="max", arena="first-fit", max_model_len=longest)
    total = simulate(stream, maximal, slots=40_000).total
    expected = (reserved.token, reserved.reserve, reserved.internal)
    assert (total.token, total.reserve, total.internal) == expected
