"""What misleads tools that look at a server's metrics, one test each."""

from dataclasses import replace

import numpy as np
import pytest

from bench.diagnose import run
from bench.diagnose.findings import FINDINGS
from bench.diagnose.inference import fitted
from bench.diagnose.observed import Fact, FreeMap, Observed, merge
from bench.diagnose.record import Candidate
from bench.diagnose.report import lines, span
from bench.diagnose.run import diagnose
from bench.diagnose.statistics import Stat, statistics
from bench.diagnose.window import windows
from helpers.seen import START, counter, events, gauge, histogram, server


def stats(observed: Observed):
    (window,) = windows(observed)
    return statistics(window)


def test_a_healthy_server_is_healthy():
    assert diagnose(server()).verdict == "healthy"


def test_a_full_pool_without_preemption_is_no_pressure():
    seen = server(usage=gauge("usage", np.full(40, 0.94)))
    assert diagnose(seen).verdict == "healthy"


def test_the_same_pool_with_preemptions_is_too_small():
    seen = server(
        usage=gauge("usage", np.full(40, 0.97)),
        waiting=gauge("waiting", np.full(40, 9.0)),
        preemptions=counter("preemptions", np.full(40, 1.5)),
    )
    found = diagnose(seen)
    assert [cause.mode for cause in found.causes] == ["pool_too_small"]
    assert found.causes[0].evidence[0].finding == "preempting"


def test_a_hit_rate_is_that_of_the_window_not_of_a_lifetime():
    hits = np.r_[1e6, np.full(39, 0.0)]
    queries = np.r_[1e6, np.full(39, 500.0)]
    seen = server(
        prefix_hits=counter("prefix_hits", hits), prefix_queries=counter("prefix_queries", queries)
    )
    assert stats(seen)["hit_rate"].value == 0


def test_a_hit_rate_that_falls_is_a_change_of_the_prompts():
    hits = np.r_[np.full(20, 450.0), np.zeros(20)]
    found = diagnose(server(prefix_hits=counter("prefix_hits", hits)))
    assert [cause.mode for cause in found.causes] == ["template_change"]
    assert found.causes[0].since_s == pytest.approx(START + 20)


def test_counters_that_begin_anew_lose_nothing_and_say_so():
    values = np.r_[np.arange(100, 120), np.arange(1, 21)].astype(float)
    finished = replace(counter("finished", np.ones(40)), values=values)
    (window,) = windows(server(finished=finished))
    assert window.gained("finished") == 19 + 20
    assert window.resets_s == [START + 20]
    assert statistics(window)["restarts"].value == 1


def test_a_scrape_without_an_answer_is_no_restart():
    found = diagnose(replace(server(), failed_s=np.array([START + 9.5])))
    assert found.verdict == "healthy"
    assert [each.says for each in found.timeline] == ["no answer to a scrape"]
    assert "what happened while 1 scrape had no answer" in found.unseen


def test_a_server_that_is_gone_at_the_end_is_not_called_healthy():
    found = diagnose(replace(server(), failed_s=START + 40 + np.arange(5.0)))
    assert found.verdict == "cannot tell"
    assert "the last 5 scrapes failed" in found.says


def test_a_cache_that_is_never_asked_is_not_called_healthy():
    never = np.zeros(40)
    seen = server(
        prefix_hits=counter("prefix_hits", never), prefix_queries=counter("prefix_queries", never)
    )
    assert diagnose(seen).verdict != "healthy"


def test_a_series_that_appears_late_has_gained_all_of_it():
    late = replace(
        counter("http", [3.0, 2.0], labels=(("status", "4xx"),)),
        times_s=START + np.array([20.0, 21.0]),
    )
    (window,) = windows(server(http=late))
    assert window.gained("http", status="4xx") == 5


def test_what_is_absent_is_unknown_and_never_zero():
    seen = server(preemptions=None, usage=None, prefix_queries=None, prefix_hits=None)
    assert not stats(seen).keys() & {"preemptions_per_request", "usage_top", "hit_rate"}


def test_what_is_absent_is_named():
    found = diagnose(server(preemptions=None, waiting=gauge("waiting", np.full(40, 9.0))))
    assert "preemptions: no such series was given" in found.unseen


def test_nothing_about_the_cache_is_no_healthy_cache():
    names = ("preemptions", "usage", "prefix_queries", "prefix_hits")
    found = diagnose(server(**dict.fromkeys(names)))
    assert found.verdict == "cannot tell"
    assert "about the cache" in found.says


def test_a_server_that_nobody_asked_is_not_called_healthy():
    found = diagnose(server(busy=0))
    assert found.verdict == "cannot tell"
    assert "nobody asked" in found.says


@pytest.mark.parametrize(("n", "says"), [(0, "no sample"), (2, "2 samples")])
def test_too_little_is_said_to_be_what_it_is(n, says):
    assert says in diagnose(server(n) if n else Observed()).says


@pytest.mark.parametrize(
    ("finding", "value", "says"),
    [
        ("preempting", 0.0, "no request is preempted"),
        ("preempting", 0.003, "0.003 preemptions for each request"),
        ("arrivals_up", 1.0, "requests arrive no more often than before"),
        ("hits_fell", 1.3, "the hit rate does not fall"),
        ("hits_fell", 0.04, "the hit rate falls to 4 % of what it was"),
        ("restarted", 1.0, "counters begin anew once"),
        ("queue", 0.004, "requests wait in under 1 % of the samples"),
    ],
)
def test_figures_are_said_as_a_person_would(finding, value, says):
    figure = Stat(value, value, value, "", 0.0, 0.0)
    assert FINDINGS[finding].sentence(figure) == says


def test_what_cannot_be_seen_is_not_ruled_out():
    """No metric has a label for tenants."""
    capped = server(
        waiting=gauge("waiting", np.full(40, 9.0)), running=gauge("running", np.full(40, 8.0))
    )
    fit = fitted()
    (examined,) = run.examine(capped, fit)
    ruled = [each.mode for each in run._not_this("max_num_seqs_cap", {}, examined, fit)]
    assert "head_of_line" in ruled
    assert "noisy_tenant" not in ruled


def test_a_pool_whose_size_is_not_known_has_no_share_of_it():
    seen = replace(server(), config={})
    assert "longest_prompt" not in stats(seen)


def test_engines_are_told_apart_never_summed():
    one = server(engine="0")
    two = server(
        engine="1",
        usage=gauge("usage", np.full(40, 0.98), engine="1"),
        waiting=gauge("waiting", np.full(40, 9.0), engine="1"),
        preemptions=counter("preemptions", np.full(40, 1.5), engine="1"),
    )
    found = diagnose(merge([one, two]))
    assert found.figures["0"]["usage_top"].value == pytest.approx(0.3)
    assert found.figures["1"]["usage_top"].value == pytest.approx(0.98)
    pool = next(cause for cause in found.causes if cause.mode == "pool_too_small")
    assert pool.engines == ["1"]
    assert any(line.endswith("engine 1") for line in lines(found))
    assert [cause.engines for cause in found.causes if cause.mode == "hot_replica"] in ([], [["1"]])


def test_a_few_seconds_are_said_to_be_few():
    assert any("than the 5 s" in each for each in diagnose(server(6)).unseen)
    assert not any("longer than" in each for each in diagnose(server(60)).unseen)


def test_one_scrape_says_nothing_of_now():
    found = diagnose(server(1))
    assert found.verdict == "cannot tell"
    assert "counter" in found.says


def test_idle_ends_do_not_dilute():
    seen = server(200, busy=40)
    (window,) = windows(seen)
    assert window.seconds <= 40
    assert stats(seen)["usage_mean"].value == pytest.approx(0.3, rel=0.05)


def test_a_quantile_is_known_no_better_than_its_bucket():
    found = stats(server(prompt_length=histogram("prompt_length", np.ones(40), 400.0)))
    figure = found["longest_prompt"]
    assert (figure.low, figure.high) == (100 / 16000, 1000 / 16000)


def test_scrapes_that_are_coarser_than_a_burst_are_said_to_be():
    found = diagnose(
        replace(server(), sources=(_source(interval_s=15.0),)),
    )
    assert any("15 s" in each for each in found.unseen)


def _source(interval_s):
    from bench.diagnose.observed import Source

    return Source("metrics.prom", "scrapes", START, START + 600, 40, interval_s)


def test_requests_dropped_at_the_end_of_a_test_did_not_give_up():
    began = np.r_[np.full(30, 2.0), np.zeros(10)]
    finished = np.r_[np.full(30, 1.0), np.zeros(10)]
    held = np.r_[np.arange(30.0), np.full(9, 30.0), 0]
    seen = server(
        ttft_s=histogram("ttft_s", began, 0.05),
        finished=counter("finished", finished),
        running=gauge("running", held),
    )
    assert stats(seen)["lost_share"].value < 0.1


def test_clients_that_give_up_show_in_the_balance_alone():
    seen = server(
        60,
        ttft_s=histogram("ttft_s", np.full(60, 3.0), 0.05),
        finished=counter("finished", np.full(60, 0.3)),
        waiting=gauge("waiting", np.full(60, 6.0)),
    )
    assert stats(seen)["lost_share"].value > 0.7
    assert diagnose(seen).causes[0].mode == "client_aborts"


def test_a_slower_engine_is_the_cause_of_the_queue_that_follows():
    slow = np.r_[np.full(20, 0.02), np.full(20, 0.12)]
    steps = np.full(40, 50.0)
    made = histogram("itl_s", steps, 0.02)
    latency = replace(made, sums=np.cumsum(steps * slow))
    seen = server(
        itl_s=latency,
        ttft_s=histogram("ttft_s", np.r_[np.full(22, 2.0), np.ones(18)], 0.05),
        waiting=gauge("waiting", np.r_[np.zeros(22), np.arange(18.0)]),
        running=gauge("running", np.r_[np.full(20, 4.0), 12.0 + np.arange(20) % 4]),
        usage=gauge("usage", np.r_[np.full(20, 0.3), np.full(20, 0.9)]),
    )
    found = diagnose(seen)
    assert found.causes[0].mode == "engine_slowed"
    assert found.causes[0].since_s == pytest.approx(START + 20)


def test_fewer_accepted_drafts_are_no_slower_engine():
    """With speculative decoding the time of a token has in it how many a step gives."""
    each = np.r_[np.full(20, 0.01), np.full(20, 0.03)]
    made = histogram("itl_s", np.full(40, 50.0), 0.02)
    seen = server(
        itl_s=replace(made, sums=np.cumsum(50.0 * each)),
        drafts=counter("drafts", np.full(40, 20.0)),
        accepted=counter("accepted_tokens", 20 * np.r_[np.full(20, 2.0), np.zeros(20)]),
    )
    assert stats(seen)["slowdown"].value == pytest.approx(1)


def test_who_waits_and_never_began_is_in_no_histogram():
    found = diagnose(server(waiting=gauge("waiting", np.full(40, 30.0))))
    assert any("in no histogram" in each for each in found.unseen)


def test_what_is_computed_again_shows_in_the_events_alone():
    rows = [
        (float(t), kind, 7 + b, 6 + b if b else 0, 0, 0)
        for t in range(12)
        for kind in (0, 1)
        for b in range(4)
    ]
    seen = stats(replace(server(), events=events(rows)))
    assert seen["stored_again"].value == pytest.approx(44 / 48)


def test_growth_is_the_cause_and_preemption_its_consequence():
    arrived = np.r_[np.full(20, 1.0), np.full(20, 6.0)]
    seen = server(
        ttft_s=histogram("ttft_s", arrived, 0.05),
        finished=counter("finished", arrived),
        running=gauge("running", np.r_[np.full(20, 4.0), 12.0 + np.arange(20) % 4]),
        usage=gauge("usage", np.r_[np.full(20, 0.4), np.full(20, 0.99)]),
        waiting=gauge("waiting", np.r_[np.zeros(21), np.full(19, 5.0)]),
        preemptions=counter("preemptions", np.r_[np.zeros(21), np.full(19, 3.0)]),
    )
    found = diagnose(seen)
    assert found.causes[0].mode == "load_growth"
    assert any("preempted" in each for each in found.consequences)
    assert not any("the cache has room" in each for each in found.consequences)


def test_tokens_of_no_latency_do_not_divide():
    """With max_tokens = 1 there is no inter-token latency."""
    seen = server(itl_s=histogram("itl_s", np.full(40, 50.0), 0.0))
    assert "prefill_steps" not in stats(seen)


def test_step_tokens_are_no_evidence_of_the_budget():
    """A prompt is counted whole in the step that ends it: 1,500 with a budget of 64."""
    seen = server(
        step_tokens=histogram("step_tokens", np.full(40, 20.0), 1500.0),
        prefill_s=histogram("prefill_s", np.ones(40), 0.5),
        waiting=gauge("waiting", np.tile([0.0, 2.0], 20)),
    )
    assert stats(seen)["prefill_steps"].value == pytest.approx(25)
    assert diagnose(seen).probabilities["token_budget_small"] > 0.3


def test_a_request_larger_than_the_pool_starves_everybody():
    seen = server(
        running=gauge("running", np.r_[np.full(10, 4.0), np.zeros(30)]),
        waiting=gauge("waiting", np.r_[np.zeros(10), np.arange(1.0, 31.0)]),
        usage=gauge("usage", np.r_[np.full(10, 0.3), np.zeros(30)]),
    )
    assert diagnose(seen).causes[0].mode == "request_larger_than_pool"


def test_a_leak_shows_only_while_nobody_runs():
    assert any("a leak" in each for each in diagnose(server(40, busy=40)).unseen)
    assert not any("a leak" in each for each in diagnose(server(40, busy=20)).unseen)


def test_blocks_that_nobody_holds_are_a_leak():
    usage = np.r_[np.full(20, 0.5), np.full(20, 0.2)]
    found = diagnose(server(40, busy=20, usage=gauge("usage", usage)))
    assert found.causes[0].mode == "block_leak"
    assert found.consequences == []  # no request was preempted


def test_a_refused_start_needs_no_metrics():
    fact = Fact("pool_too_small", START, 2048.0, "server.log, line 9")
    found = diagnose(Observed(facts=(fact,)))
    assert [cause.mode for cause in found.causes] == ["start_refused"]
    assert found.causes[0].evidence[0].figure.start_s == START


def test_free_memory_in_holes_is_fragmentation():
    holes = np.array([300, 300, 300])
    found = diagnose(
        Observed(free_maps=(FreeMap(time_s=START, slots=3000, holes=holes, wanted=512),))
    )
    assert [(cause.mode, cause.tested) for cause in found.causes] == [("fragmentation", False)]


def _low_hits():
    return server(prefix_hits=counter("prefix_hits", np.zeros(40)))


def test_why_the_hit_rate_is_low_is_not_in_the_metrics():
    found = diagnose(_low_hits())
    assert any("block events" in each for each in found.unseen)


def _stored(prompts):
    """Prompts of (contents, extra), a second apart; hashes chain as an engine's do."""
    rows = []
    for at, (contents, extra) in enumerate(prompts):
        parent = 0
        for content in contents:
            block = hash((parent, content, extra)) % 2**62 + 1
            rows.append((float(at), 0, block, parent, content, extra))
            parent = block
    return events(rows)


SHARED = (11, 12, 13, 14)


@pytest.mark.parametrize(
    ("prompts", "mode"),
    [
        ([((1000 + i, *SHARED), 0) for i in range(40)], "varying_prefix"),
        ([(SHARED, 77 + i) for i in range(40)], "cache_salts"),
    ],
)
def test_events_tell_why_the_hit_rate_is_low(prompts, mode):
    found = diagnose(replace(_low_hits(), events=_stored(prompts)))
    assert next(iter(found.probabilities)) == mode or found.causes[0].mode == mode


def test_prompts_with_nothing_in_common_are_healthy():
    prompts = [(tuple(range(100 * i + 1, 100 * i + 5)), 0) for i in range(40)]
    found = diagnose(replace(_low_hits(), events=_stored(prompts)))
    assert found.verdict == "healthy"


@pytest.mark.parametrize(
    ("day", "lasted_s", "said"),
    [
        ("2026-12-01", 60, "10:00:00 to 10:01:00"),
        ("", 60, "2026-12-01 10:00:00 to 10:01:00"),
        ("", 86400, "2026-12-01 10:00:00 to 2026-12-02 10:00:00"),
        ("", 0, "2026-12-01 10:00:00"),
    ],
)
def test_times_have_a_date_unless_it_was_said(day, lasted_s, said):
    assert span(1796119200.0, 1796119200.0 + lasted_s, day) == said


def test_what_adds_up_to_more_than_all_is_said_to():
    causes = [Candidate(mode=mode, says=mode, probability=0.9) for mode in ("bursts", "restart")]
    blank = diagnose(server(1))
    of_both, of_one = (lines(blank.model_copy(update={"candidates": causes[:n]})) for n in (2, 1))
    assert any("more than 100 %" in line for line in of_both)
    assert not any("more than 100 %" in line for line in of_one)
