"""A stream of requests through a pool: the one door to every simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, repeat, starmap

import numpy as np
from numpy.typing import NDArray

from bench.waste.contiguous import ContiguousPolicy, serve_contiguous
from bench.waste.policies import Policy
from bench.workloads.source import StreamSource
from bench.workloads.stream import RequestStream
from paged.accounting import Serving
from paged.arrivals import Request
from paged.clock import StepTime
from paged.compiled import can_serve
from paged.counted import Setting
from paged.counting import serve_by_counts
from paged.grouped import GroupedScheduler
from paged.latency import Slo
from paged.layout import Layout
from paged.policy import PagedPolicy
from paged.scheduler import serve
from paged.tiers import Tier, TieredServer

WARMUP_SHARE = 0.1
"""Share of the requests whose completion ends the warm-up, where nothing else is asked for."""

_NS_PER_S = 1_000_000_000


def simulate(
    source: StreamSource,
    policy: Policy,
    *,
    slots: int,
    warmup: int | None = None,
    time: StepTime | None = None,
    clients: int | None = None,
    slo: Slo | None = None,
    tiers: Sequence[Tier] = (),
    layout: Layout | None = None,
) -> Serving:
    """Serve a stream from a pool and account for every slot.

    Paging is simulated by counts where counts decide it, and block by block elsewhere: the figures
    are the same. `warmup` of None is a tenth of the stream's requests; `slo` is what is good;
    `tiers` are behind the pool, for policies that `takes_tiers`; `layout` gives each group of
    layers tables of its own, for those that `takes_groups`, in a pool of so many bytes.
    """
    if warmup is None:
        warmup = int(WARMUP_SHARE * num_requests(source))
    if isinstance(policy, ContiguousPolicy):
        if clients is not None:
            raise ValueError(f"clients = {clients}: a closed loop is for paged policies; leave out")
        return serve_contiguous(
            lengths_of(source), policy, slots=slots, warmup=warmup, time=time or StepTime(), slo=slo
        )
    key_block_size = policy.block_size if policy.prefix_caching else None
    server: Callable[..., Serving] = serve_by_counts if policy.by_counts else serve
    if tiers:
        server = partial(serve_by_counts, kind=partial(TieredServer, tiers=tiers))
    if layout is not None:
        setting = Setting(policy=policy, slots=slots, time=time or StepTime(), layout=layout)
        moved = partial(serve, kind=partial(GroupedScheduler, layout=layout))
        counted = partial(serve_by_counts, layout=layout)
        server = counted if can_serve(setting) else moved
    read = _counted if policy.by_counts else requests_of
    requests = read(source, key_block_size=key_block_size)
    return server(requests, policy, slots=slots, warmup=warmup, time=time, clients=clients, slo=slo)


def takes_tiers(policy: Policy) -> bool:
    """Whether it has something to keep in a tier, and is simulated with one."""
    return (
        isinstance(policy, PagedPolicy)
        and policy.by_counts
        and (policy.prefix_caching or policy.preemption == "swap")
    )


def without_tiers(policy: Policy) -> Policy:
    """The policy where there is no tier: who is preempted has nowhere to be copied to."""
    assert isinstance(policy, PagedPolicy)
    return replace(policy, preemption="recompute")


def num_requests(source: StreamSource) -> int:
    """Count the requests of a stream; where they are not known, by a pass over it."""
    if source.num_requests is not None:
        return source.num_requests
    return sum(len(part) for part in source.chunks())


def requests_of(source: StreamSource, *, key_block_size: int | None = None) -> Iterator[Request]:
    """Yield the requests of a stream, with keys for blocks of `key_block_size` tokens or none."""
    if key_block_size is None:
        return chain.from_iterable(map(_keyless, source.chunks()))
    return chain.from_iterable(_with_keys(part, key_block_size) for part in source.chunks())


def _counted(source: StreamSource, *, key_block_size: int | None) -> Iterator[Request]:
    """Requests with their keys as arrays of small numbers, which are counted many at once."""
    if key_block_size is None:
        yield from chain.from_iterable(map(_keyless, source.chunks()))
        return
    numbers: dict[int, int] = {}
    for part in source.chunks():
        prefix = None if part.prefix is None else part.prefix.renumbered(numbers)
        keys: NDArray[np.integer] = np.empty(0, np.int64)
        for at, ((prompt, output, arrival_ns), tenant) in enumerate(
            zip(_lengths(part), _tenants(part), strict=False)
        ):
            if prefix is not None:
                keys = prefix.keys(at, key_block_size, prompt)
                # As narrow as they may be, since thousands may wait.
                keys = keys.astype(np.min_scalar_type(keys.max(initial=0)))
            yield Request(prompt, output, arrival_ns, keys, tenant)  # type: ignore[arg-type]


def lengths_of(source: StreamSource) -> Iterator[tuple[int, int, int | None]]:
    """Yield prompt tokens, output tokens and arrival in nanoseconds of each request, in parts."""
    return chain.from_iterable(_lengths(part) for part in source.chunks())


def _lengths(part: RequestStream) -> Iterator[tuple[int, int, int | None]]:
    arrivals: Iterable[int | None] = repeat(None)
    if part.arrival_s is not None:
        arrivals = np.rint(part.arrival_s * _NS_PER_S).astype(np.int64).tolist()
    return zip(part.prompt_tokens.tolist(), part.output_tokens.tolist(), arrivals, strict=False)


def _tenants(part: RequestStream) -> Iterable[int]:
    return repeat(0) if part.tenant is None else part.tenant.tolist()


def _keyless(part: RequestStream) -> Iterator[Request]:
    if part.tenant is None:
        return starmap(Request, _lengths(part))
    lengths = zip(_lengths(part), _tenants(part), strict=False)
    return (Request(*each, tenant=tenant) for each, tenant in lengths)


def _with_keys(part: RequestStream, block_size: int) -> Iterator[Request]:
    prefix = part.prefix
    lengths = enumerate(_lengths(part))
    for (at, (prompt, output, arrival_ns)), tenant in zip(lengths, _tenants(part), strict=False):
        keys = () if prefix is None else tuple(prefix.keys(at, block_size, prompt).tolist())
        yield Request(prompt, output, arrival_ns, keys, tenant)
