"""What-if: one option at a time, held against the base, and honest where nothing helps."""

from dataclasses import fields, replace

import pytest

from bench.waste.changes import pairs, variations, variations_on
from bench.waste.policies import format_policy, parse_policy
from bench.waste.reasons import reason
from bench.waste.record import ClockRecord, WasteRecord, WasteRow
from bench.waste.whatif import WhatIf, compare
from bench.waste.whatif_report import whatif_reading
from bench.workloads.record import served_stream
from bench.workloads.spec import parse_source
from helpers.waste_records import waste_record
from paged.accounting import Counters, Serving, TierUse
from paged.clock import StepTime
from paged.latency import Quantiles, Service
from paged.policy import PagedPolicy

BASE = PagedPolicy()
OPTIONS = tuple(field.name for field in fields(BASE))


def test_a_variation_differs_from_the_base_in_one_option():
    base = replace(BASE, watermark=0.02, max_running=9)
    varied = variations(base, prefixes=False)
    assert {v.group for v in varied} == {
        *("block size", "watermark", "look-ahead", "preemption", "budget", "max-running")
    }
    for variation in varied:
        differing = [
            name for name in OPTIONS if getattr(variation.policy, name) != getattr(base, name)
        ]
        assert len(differing) == 1, variation
        assert variation.policy.max_running == 9 or variation.group == "max-running"
    policies = [variation.policy for variation in varied]
    assert base not in policies
    assert len(set(policies)) == len(policies) == 8 + 4 + 1 + 1 + 2 + 3


def labels(base: PagedPolicy, group: str) -> list[str]:
    return [v.label for v in variations(base, prefixes=True) if v.group == group]


def test_prefix_caching_is_varied_where_prefixes_are_known():
    cached = [v for v in variations(BASE, prefixes=True) if v.group == "prefix caching"]
    assert [v.label for v in cached] == ["lru", "lfu", "fifo"]
    assert all(v.policy.prefix_caching and v.policy.eviction == v.label for v in cached)
    base = replace(BASE, prefix_caching=True, eviction="lfu", tenant_quotas=((0, 5),))
    assert labels(base, "prefix caching") == ["off", "lru", "fifo"]
    assert BASE in [v.policy for v in variations(base, prefixes=True)]


def test_small_blocks_are_tried_only_where_their_number_is_all_that_counts():
    assert "1" in labels(BASE, "block size")
    cached = replace(BASE, prefix_caching=True)
    assert set(labels(cached, "block size")) == {"8", "32", "64", "128", "256"}
    windowed = variations(replace(BASE, sliding_window=64), prefixes=True)
    assert "preemption" not in {v.group for v in windowed}


def row(spec: str, *, completed: int, token: int, preemptions: int = 0, **changes: int) -> WasteRow:
    """100 slots for 10 steps; the rest is free while somebody waits."""
    total = Counters(
        slots=100,
        steps=10,
        token=token,
        free_short=1000 - token,
        completed=completed,
        admitted=completed,
        running_requests=completed,
        preemptions=preemptions,
        **changes,
    )
    loaded, total = total, replace(total, completed=2000, arrived=2000)
    serving = Serving(
        total=total, loaded=loaded, series=(), peak_running=1, peak_requests=1, peak_allocated=100
    )
    return WasteRow.of("s", parse_policy(spec), serving, seconds=0.0)


def record(*rows: WasteRow, base: str | None = "paged:block=16") -> WasteRecord:
    return waste_record(*rows, base=base)


def test_more_completed_requests_win_and_tokens_decide_a_tie():
    found = compare(
        record(
            row("paged:block=16", completed=100, token=500),
            row("paged:block=8", completed=110, token=600),
            row("paged:block=4", completed=110, token=700),
            row("paged:block=64", completed=90, token=900),
        ),
        "s",
    )
    assert [effect.label for effect in found.effects] == ["4", "8", "64"]
    best = found.best
    assert best.label == "4"
    assert best.completed == 1000
    assert best.gain == pytest.approx(0.1)
    assert best.token_share == pytest.approx(0.2)
    assert best.batch == pytest.approx(1)


def test_where_nothing_helps_nothing_is_recommended():
    rows = [
        row("paged:block=16", completed=1000, token=500),
        row("paged:block=8", completed=1005, token=900),
        row("paged:block=64", completed=900, token=400),
    ]
    assert compare(record(*rows), "s").best is None
    rows[1] = row("paged:block=8", completed=1006, token=900)
    assert compare(record(*rows), "s").best.label == "8"


def test_without_the_base_there_is_nothing_to_hold_against():
    other = row("paged:block=8", completed=1, token=1)
    assert compare(record(other), "s") is None
    assert compare(record(row("paged:block=16", completed=1, token=1)), "s").best is None
    with pytest.raises(ValueError, match="no base; make it with --whatif"):
        compare(record(other, base=None), "s")


def test_every_variation_is_found_again_in_the_record():
    varied = variations(BASE, prefixes=True)
    rows = [row("paged:block=16", completed=1, token=1)]
    rows += [row(format_policy(v.policy), completed=1, token=1) for v in varied]
    effects = compare(record(*rows), "s").effects
    assert [(e.group, e.label) for e in effects] == [(v.group, v.label) for v in varied]


def timed(spec: str, *, per_s: float, met: float = 1.0, **counted: int) -> WasteRow:
    """A row whose 1,000 requests were completed at this rate, and so many of them well."""
    made = row(spec, completed=1000, token=500, **counted)
    waited = Quantiles(count=1, mean_ns=1, p50_ns=1, p90_ns=1, p99_ns=1, max_ns=1)
    service = Service(
        completed=1000,
        output_tokens=5000,
        makespan_ns=round(1000 / per_s * 1e9),
        good=round(1000 * met),
        ttft=waited,
        tpot=waited,
        itl=waited,
        e2e=waited,
    )
    return made.model_copy(update={"service": service})


def ranked(*rows: WasteRow, rank: str = "requests", error: float = 0.02) -> WhatIf:
    clock = ClockRecord(source="made up", error=error)
    made = waste_record(*rows, base="paged:block=16", clock=clock, rank=rank)
    found = compare(made, "s")
    assert found is not None
    return found


def test_time_ranks_where_there_is_a_clock_and_not_the_steps_it_takes():
    slow = timed("paged:block=8", per_s=9)
    found = ranked(timed("paged:block=16", per_s=10), slow, timed("paged:block=64", per_s=10.5))
    assert found.best is not None
    assert found.best.label == "64"
    assert found.best.gain == pytest.approx(0.05)


def test_what_the_clock_cannot_tell_apart_is_not_recommended():
    rows = timed("paged:block=16", per_s=10), timed("paged:block=8", per_s=10.15)
    assert ranked(*rows).best is None
    assert ranked(*rows, error=0.01).best is not None


def test_goodput_is_another_order_than_requests():
    rows = (
        timed("paged:block=16", per_s=10, met=0.5),
        timed("paged:block=8", per_s=10.5, met=0.4),
        timed("paged:block=64", per_s=10, met=0.9),
    )
    assert ranked(*rows).best.label == "8"
    assert ranked(*rows, rank="goodput").best.label == "64"


def test_what_served_other_requests_is_not_ranked():
    other = timed("paged:block=8", per_s=99)
    other = other.model_copy(update={"total": replace(other.total, refused=3, completed=1997)})
    found = ranked(timed("paged:block=16", per_s=10), other)
    assert [effect.alike for effect in found.effects] == [False]
    assert found.best is None


def test_of_two_orders_of_eviction_the_usual_one_is_recommended():
    """W9: the first in, first out gained 0.3 % over the least recently used."""
    found = ranked(
        timed("paged:block=16", per_s=10),
        timed("paged:block=16,prefix=lru", per_s=12),
        timed("paged:block=16,prefix=fifo", per_s=12.04),
    )
    assert found.best.label == "lru"


def test_quotas_are_equal_shares_where_a_few_tenants_share_a_cache():
    cached = replace(BASE, prefix_caching=True)
    found = {v.group: v for v in variations(cached, prefixes=True, slots=1600, tenants=2)}
    assert found["quotas"].policy.tenant_quotas == ((0, 50), (1, 50))
    for base, tenants in ((BASE, 2), (cached, 1), (cached, 9)):
        varied = variations(base, prefixes=True, slots=1600, tenants=tenants)
        assert "quotas" not in {v.group for v in varied}


SOME = ("block size 32", "block size 64", "prefix caching lru", "watermark 1%")


def test_a_pair_is_two_options_and_nothing_that_is_there_alone():
    singles = variations(BASE, prefixes=True)
    some = [v for v in singles if v.words in SOME]
    both = pairs(BASE, some)
    assert [pair.label for pair in both] == [
        "block size 32 + prefix caching lru",
        "block size 32 + watermark 1%",
        "block size 64 + prefix caching lru",
        "block size 64 + watermark 1%",
        "prefix caching lru + watermark 1%",
    ]
    assert both[0].policy == replace(BASE, block_size=32, prefix_caching=True)
    assert not {pair.policy for pair in both} & {single.policy for single in singles}


LRU, WATERMARK = "paged:block=16,prefix=lru", "paged:block=16,watermark=0.01"
BOTH = "paged:block=16,watermark=0.01,prefix=lru"


def test_two_changes_are_recommended_where_they_gain_more_than_one():
    rows = timed("paged:block=16", per_s=10), timed(LRU, per_s=12), timed(WATERMARK, per_s=10.5)
    assert ranked(*rows, timed(BOTH, per_s=12.1)).best.label == "lru"
    found = ranked(*rows, timed(BOTH, per_s=13))
    assert found.best.label == "prefix caching lru + watermark 1%"
    said = whatif_reading(found, waste_record(*rows, base="paged:block=16", runs=9))
    assert "Alone: prefix caching lru +20.0%; watermark 1% +5.0%." in said


def drawn(*per_s: tuple[float, float]) -> list[WasteRow]:
    """Base and watermark on several drawings."""
    return [
        timed(policy, per_s=rate).model_copy(update={"drawing": number})
        for number, rates in enumerate(per_s)
        for policy, rate in zip(("paged:block=16", WATERMARK), rates, strict=True)
    ]


def test_a_gain_that_drawings_do_not_agree_on_is_not_recommended():
    sure = drawn((10, 11), (20, 21.8), (15, 16.6))
    found = ranked(*sure)
    assert found.best is not None
    assert found.best.drawings == 3
    assert found.best.gain == pytest.approx((0.1 + 0.09 + 1.6 / 15) / 3)
    # Student's t of two degrees of freedom times the standard error.
    assert found.best.margin == pytest.approx(4.303 * 0.00839 / 3**0.5, rel=0.01)
    unsure = drawn((10, 11), (10, 9.7), (10, 11.5))
    found = ranked(*unsure)
    assert found.best is None
    said = " ".join(whatif_reading(found, waste_record(*unsure, base="paged:block=16", runs=9)))
    assert "Keep it" in said
    assert "watermark 1%: +7.3% in the mean of 3 drawings, but between" in said


def test_one_drawing_is_not_held_against_many():
    once = timed(LRU, per_s=99)
    found = ranked(*drawn((10, 11), (20, 21.8), (15, 16.6)), once)
    assert found.best.label == "1%"


def test_the_reason_names_what_fell_and_not_what_stayed():
    again = {"recomputed_tokens": 900, "computed_tokens": 1900, "generated_tokens": 100}
    once = {"recomputed_tokens": 0, "computed_tokens": 1000, "generated_tokens": 100}
    base = timed("paged:block=16", per_s=10, preemptions=40, **again)
    swap = timed("paged:preempt=swap", per_s=12, preemptions=40, **once)
    calm = timed("paged:watermark=0.05", per_s=12, preemptions=3, **once)
    time = StepTime(step_ns=1000, prefill_ns_per_token=1000)
    assert reason(swap, base, time) == "prompt tokens computed again fall from 900 to 0"
    assert reason(calm, base, time).startswith("preemptions fall from 40 to 3, and prompt tokens")


def test_what_steps_wait_for_a_tier_is_a_reason_of_its_own():
    host = {
        "tiers": (TierUse(name="host", loaded_tokens=0, stored_tokens=0, load_ns=0, store_ns=0),)
    }
    late, soon = (
        timed("paged:prefix=lru", per_s=10, tier_ns=waited).model_copy(update=host)
        for waited in (10**9, 10**6)
    )
    time = StepTime(step_ns=1000, prefill_ns_per_token=1000)
    assert reason(soon, late, time).startswith("steps wait less for the tiers: ")


def test_quotas_are_not_tried_on_streams_that_are_long():
    source = parse_source("alpaca-fit:system=64+azure-fit:share=0.5", requests=20)
    stream = served_stream(source, label="s")
    base = replace(BASE, prefix_caching=True)

    def groups(requests: int) -> set[str]:
        asked = stream.model_copy(update={"requests": requests})
        return {each.group for each in variations_on(asked, base, slots=1600)}

    assert groups(5000) - groups(5001) == {"quotas"}
