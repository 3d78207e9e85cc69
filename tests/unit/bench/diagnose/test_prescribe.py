"""What a change would do: a server that is reproduced, and one that is not."""

import numpy as np

from bench.diagnose.prescribe import prescribe, rebuilt
from bench.diagnose.window import windows
from helpers.seen import counter, gauge, histogram, server


def capped():
    """Four at once, each 1 s long at 20 ms a token; five arrive a second: one more waits each."""
    work = np.full(40, 4.0)
    return server(
        running=gauge("running", np.full(40, 4.0)),
        waiting=gauge("waiting", np.arange(40.0)),
        usage=gauge("usage", np.full(40, 0.137)),
        finished=counter("finished", work),
        ttft_s=histogram("ttft_s", work, 0.05),
        itl_s=histogram("itl_s", 200 * np.ones(40), 0.02),
        prompt_length=histogram("prompt_length", work, 500.0),
        output_length=histogram("output_length", work, 50.0),
        prompt_tokens=counter("prompt_tokens", 500 * work),
        prefix_queries=counter("prefix_queries", 500 * work),
        prefix_hits=counter("prefix_hits", 0 * work),
    )


def test_the_stream_is_what_was_seen():
    (window,) = windows(capped())
    base = rebuilt(window)
    assert len(base.requests) == 5 * 39
    assert {(r.prompt_tokens, r.output_tokens) for r in base.requests} == {(500, 50)}
    assert base.policy.max_running == 4
    assert base.slots == 16_000


def test_a_server_that_is_reproduced_is_told_what_changes_do():
    (window,) = windows(capped())
    made = prescribe(window)
    assert made.reproduced, made.why_not
    rows = {row.change: row for row in made.predictions}
    assert rows["max_num_seqs 8"].ttft_p50_s < 0.2 * rows["as it is"].ttft_p50_s
    assert rows["max_num_seqs 8"].requests_per_s > 1.1 * rows["as it is"].requests_per_s
    assert rows["50 % more blocks"] == rows["as it is"].model_copy(
        update={"change": "50 % more blocks"}
    )


def test_no_reproduction_no_promise():
    seen = server(preemptions=counter("preemptions", np.full(40, 2.0)))
    (window,) = windows(seen)
    made = prescribe(window)
    assert not made.reproduced
    assert made.predictions == []
    assert "preemptions" in made.why_not
    assert any(f.quantity == "preemptions" and f.seen == 78 for f in made.fidelity)


def test_what_is_missing_is_said():
    (window,) = windows(server(output_length=None))
    assert "lengths" in prescribe(window).why_not


def test_lengths_in_two_buckets_are_told_by_what_the_sums_gain():
    short, long = np.tile([4.0, 2.0], 20), np.tile([0.0, 1.0], 20)
    one, two = histogram("prompt_length", short, 60.0), histogram("prompt_length", long, 1900.0)
    mixed = type(one)(
        name=one.name,
        kind=one.kind,
        engine=one.engine,
        times_s=one.times_s,
        values=one.values + two.values,
        bounds=one.bounds,
        buckets=one.buckets + two.buckets,
        sums=one.sums + two.sums,
    )
    (window,) = windows(server(prompt_length=mixed))
    assert {r.prompt_tokens for r in rebuilt(window).requests} == {60, 1900}
