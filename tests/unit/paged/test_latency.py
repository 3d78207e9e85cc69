"""Times in classes: exact where they are added up, near where they are percentiles, and bounded."""

import random

import numpy as np
import pytest

from paged.errors import BadSize
from paged.latency import MOST_TENANTS, OTHERS, Histogram, Slo, Watch


def test_a_percentile_is_off_by_a_256th_at_most() -> None:
    draw = random.Random(0)
    times = [int(draw.lognormvariate(20, 3)) for _ in range(5000)]
    histogram = Histogram()
    for time in times:
        histogram.add(time)
    times.sort()
    for share in (0.001, 0.5, 0.9, 0.99, 1.0):
        exact = times[max(0, round(share * len(times)) - 1)] / 1000
        assert abs(histogram.quantile_ns(share) - exact) <= 1 + exact / 256
    found = histogram.quantiles()
    assert found is not None
    assert found.mean_ns == sum(times) // 5000 // 1000
    assert found.max_ns == times[-1] // 1000


@pytest.mark.parametrize("more", [0, 1, 37, 10**7, 10**11])
def test_a_run_is_its_times_one_by_one(more: int) -> None:
    one, each = Histogram(), Histogram()
    one.add_run(10**9, more, 700, 3)
    for step in range(700):
        each.add(10**9 + step * more, 3)
    assert one.quantiles() == each.quantiles()
    assert [one.quantile_ns(share / 50) for share in range(51)] == [
        each.quantile_ns(share / 50) for share in range(51)
    ]


def test_a_million_times_take_a_few_thousand_classes() -> None:
    histogram = Histogram()
    draw = random.Random(1)
    for _ in range(20_000):
        histogram.add(int(draw.lognormvariate(25, 2)))
    assert len(histogram._counts) < 8_000


def test_a_preempted_request_waits_for_its_next_token_and_has_one_first() -> None:
    watch = Watch(Slo(ttft_ns=10, tpot_ns=5, e2e_ns=100))
    watch.begin(0, 2, 7_000)  # in picoseconds: 5 ns after its arrival
    watch.go_on(3_000, 1)
    watch.give_way(0, 10_000)
    watch.give_way(0, 99_000)  # again, before it got another token
    watch.begin(0, 2, 30_000)
    watch.end(0, 30_000, 3)
    service = watch.service()
    assert service.ttft is not None
    assert service.ttft.max_ns == 5
    assert service.itl is not None
    assert (service.itl.count, service.itl.max_ns) == (2, 20)
    assert service.tpot is not None
    assert service.tpot.max_ns == (30 - 7) // 2
    assert service.e2e is not None
    assert service.e2e.max_ns == service.makespan_ns == 28
    assert service.good == 0  # 11 ns a token


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(), 1),
        (Slo(ttft_ns=5, tpot_ns=4, e2e_ns=13), 1),
        (Slo(ttft_ns=4), 0),
        (Slo(tpot_ns=3), 0),
        (Slo(e2e_ns=12), 0),
    ],
)
def test_good_is_what_meets_every_limit(slo: Slo, good: int) -> None:
    watch = Watch(slo)
    watch.begin(0, 0, 5_000)
    watch.end(0, 13_000, 3)
    assert watch.service().good == good


def test_a_limit_is_above_nothing() -> None:
    with pytest.raises(BadSize, match="tpot_ns = 0"):
        Slo(tpot_ns=0)


def test_times_that_are_added_at_once_go_into_the_classes_of_single_ones() -> None:
    random = np.random.default_rng(0)
    times = [int(2**power) for power in random.uniform(0, 61.9, 900)]
    times += [511, 512, 513, 1023, 1024, 2**53 - 1, 2**53, 2**54 - 1, 2**61 + 1, 2**62]
    one, many = Histogram(), Histogram()
    for ps in times:
        one.add(ps)
        many.add_later(ps)
    for share in np.linspace(0, 1, 101):
        assert many.quantile_ns(share) == one.quantile_ns(share)
    assert many.quantiles() == one.quantiles()


def test_tenants_are_watched_apart_and_add_up() -> None:
    watch = Watch(Slo(tpot_ns=5))
    for number, (tenant, tpot) in enumerate([(3, 4), (0, 6), (3, 8)]):
        watch.look_up(tenant, 100, 10 * tenant)
        watch.begin(number, 0, 1000 * (number + 1), tenant)
        watch.end(number, 1000 * (number + 1) + 1000 * tpot, 2)
    service = watch.service()
    zero, three = service.tenants
    assert (zero.tenant, zero.completed, zero.good, zero.hit_tokens) == (0, 1, 0, 0)
    assert (three.tenant, three.completed, three.good, three.hit_tokens) == (3, 2, 1, 60)
    assert three.queried_tokens == 200
    assert three.ttft is not None
    assert three.tpot is not None
    assert zero.e2e is not None
    assert (three.ttft.max_ns, three.tpot.mean_ns, zero.e2e.max_ns) == (3, 6, 8)
    assert service.ttft is not None
    assert (service.completed, service.good, service.ttft.count) == (3, 1, 3)


def test_one_tenant_is_not_told_apart_and_many_are_bounded() -> None:
    watch = Watch()
    watch.begin(0, None, 1, 7)
    watch.end(0, 2, 1)
    assert watch.service().tenants == ()
    for number in range(1, 3 * MOST_TENANTS):
        watch.begin(number, None, 1, 100 + number)
        watch.end(number, 2, 1)
    found = watch.service().tenants
    assert len(found) == MOST_TENANTS + 1
    assert found[0].tenant == OTHERS
    assert sum(each.completed for each in found) == 3 * MOST_TENANTS
