"""The paged server on cases small enough to follow by hand."""

from dataclasses import replace
from typing import Any

import pytest

from paged.accounting import Counters, Serving
from paged.arrivals import Request
from paged.clock import StepTime
from paged.counting import serve_by_counts
from paged.errors import BadSize
from paged.policy import PagedPolicy
from paged.scheduler import SHARED, Scheduler, serve

BY_ONE = PagedPolicy(block_size=1)
both = pytest.mark.parametrize("serving", [serve, serve_by_counts], ids=["blocks", "counts"])


def each_step(requests: list[Request], policy: PagedPolicy, **options: Any) -> list[Counters]:
    """What is counted in each step."""
    moments: list[Counters] = []
    serve(requests, policy, observe=lambda server: moments.append(server.moment()), **options)
    begin = Counters(slots=options["slots"])
    return [now - then for then, now in zip([begin, *moments], moments, strict=False)]


@both
def test_the_last_one_in_gives_way_and_computes_its_tokens_again(serving: Any) -> None:
    # Step 1: 3 and 2 tokens in 8 slots. Step 3 needs 2 more and there is 1: the second one goes,
    # and comes back in step 4, when the first one is done; its 3 tokens are computed again, and
    # the one that it had generated last.
    served: Serving = serving([Request(3, 3), Request(2, 3)], BY_ONE, slots=8)
    assert served.total == Counters(
        slots=8,
        steps=4,
        token=5 + 7 + 5 + 4,
        free_short=3,
        free_idle=3 + 1 + 4,
        logical_token=21,
        running=6,
        running_requests=6,
        queued=1,
        waiting_short=1,
        arrived=2,
        admitted=2,
        completed=2,
        preemptions=1,
        prompt_tokens=5,
        computed_tokens=5 + 6 + 3 + 1,
        recomputed_tokens=3,
        generated_tokens=6,
        # Four steps, and nine tokens of prompts.
        time_ns=4 * 30_000_000 + 9 * 50_000,
    )
    assert (served.peak_running, served.peak_requests, served.peak_allocated) == (2, 2, 7)


@both
def test_what_was_swapped_out_comes_back_and_is_not_computed_again(serving: Any) -> None:
    swapping = replace(BY_ONE, preemption="swap")
    total = serving([Request(3, 3), Request(2, 3)], swapping, slots=8).total
    assert (total.swapped_out, total.swapped_in, total.recomputed_tokens) == (3, 3, 0)
    assert total.computed_tokens == 5 + 6 + 1
    assert total.steps == 4


@both
def test_an_admission_leaves_the_watermark_free_unless_nothing_runs(serving: Any) -> None:
    requests = [Request(7, 2), Request(1, 1)]
    policy = replace(BY_ONE, watermark=0.3)
    total = serving(requests, policy, slots=10).total
    # The first one takes 7 of 10, then 8; the second would leave 2, and waits two steps.
    assert (total.steps, total.waiting_watermark, total.waiting_short) == (3, 2, 0)
    assert total.free_short == 3 + 2
    total = serving([Request(9, 1)], replace(policy, watermark=1.0), slots=10).total
    assert (total.completed, total.waiting_watermark) == (1, 0)


@both
def test_a_request_that_never_fits_is_refused_and_the_next_one_served(serving: Any) -> None:
    # The last token of the second is never written, and that of the first one would not matter.
    total = serving([Request(4, 6), Request(4, 5)], PagedPolicy(block_size=4), slots=11).total
    assert (total.arrived, total.refused, total.completed) == (2, 1, 1)
    # The 3 slots behind the last whole block are never used.
    assert total.token + total.internal == 4 + 8 * 4
    assert total.free_idle == 3 * 5 + 4


@both
def test_an_idle_server_takes_no_steps(serving: Any) -> None:
    requests = [Request(1, 1, 0), Request(1, 1, 1000), Request(1, 1, 1000)]
    time = StepTime(step_ns=1, prefill_ns_per_token=0)
    total = serving(requests, BY_ONE, slots=4, time=time).total
    assert (total.steps, total.running, total.queued) == (2, 3, 0)
    # The last two do not fit at once: one of them waits a step.
    assert serving(requests, BY_ONE, slots=1, time=time).total.waiting_short == 1


@both
def test_prompts_that_are_computed_take_time(serving: Any) -> None:
    # The first step takes 1 + 10 * 5; the second request comes in at 40 and has to wait for it.
    requests = [Request(10, 2, 0), Request(0, 1, 40)]
    time = StepTime(step_ns=1, prefill_ns_per_token=5)
    total = serving(requests, BY_ONE, slots=20, time=time).total
    assert (total.steps, total.running) == (2, 3)
    late = [Request(10, 2, 0), Request(0, 1, 52)]
    assert serving(late, BY_ONE, slots=20, time=time).total.steps == 3


@both
def test_as_many_requests_as_clients_are_under_way(serving: Any) -> None:
    served = serving([Request(1, 2)] * 5, BY_ONE, slots=100, clients=2)
    assert (served.peak_requests, served.total.queued, served.total.steps) == (2, 0, 6)


@both
def test_a_limit_on_who_runs_is_not_a_lack_of_memory(serving: Any) -> None:
    total = serving([Request(1, 2)] * 3, replace(BY_ONE, max_running=2), slots=100).total
    assert (total.waiting_limit, total.waiting_short, total.free_short) == (2, 0, 0)


@both
def test_a_pool_without_a_block_is_refused(serving: Any) -> None:
    with pytest.raises(BadSize, match="slots"):
        serving([Request(1, 1)], PagedPolicy(block_size=16), slots=15)


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    steps = each_step([Request(10, 2)], replace(BY_ONE, token_budget=4), slots=20)
    assert [step.token for step in steps] == [4, 8, 10, 11]
    assert [step.computed_tokens for step in steps] == [4, 4, 2 + 1, 1]
    assert [step.generated_tokens for step in steps] == [0, 0, 1, 1]


def test_decoding_sequences_go_before_prompts_in_the_budget() -> None:
    requests = [Request(1, 4), Request(1, 4), Request(6, 1)]
    steps = each_step(requests, replace(BY_ONE, token_budget=4), slots=40)
    # In step 1 the prompts of two, and 2 tokens of the third's; then 2 for decoding, 2 for it.
    assert [step.computed_tokens - step.generated_tokens for step in steps] == [4, 2, 2, 0]
    assert [step.generated_tokens for step in steps] == [2, 2, 3, 2]


def test_nobody_is_admitted_when_the_budget_is_spent() -> None:
    total = serve([Request(4, 1), Request(4, 1)], replace(BY_ONE, token_budget=4), slots=40).total
    assert (total.waiting_budget, total.waiting_short, total.steps) == (1, 0, 2)
    assert total.free_short == 0


@pytest.mark.parametrize(("look_ahead", "steps"), [(0, 6), (1, 6), (2, 5)])
def test_looking_ahead_admits_past_a_head_that_does_not_fit(look_ahead: int, steps: int) -> None:
    # Beside the first one there are 3 slots, enough only for the last: the third of those waiting.
    requests = [Request(5, 2), Request(7, 2), Request(7, 1), Request(2, 1)]
    served = serve(requests, replace(BY_ONE, look_ahead=look_ahead), slots=8)
    assert served.total.steps == steps
    assert served.total.completed == 4


@pytest.mark.parametrize(("prompt", "copies"), [(5, 2), (8, 0), (0, 0)])
def test_samples_copy_a_partly_filled_block_and_share_the_full_ones(
    prompt: int, copies: int
) -> None:
    policy = PagedPolicy(block_size=4, samples=3)
    served = serve([Request(prompt, 2)], policy, slots=100)
    full = prompt // 4
    assert served.total.copies == copies
    assert served.peak_allocated == 4 * (full + 3)
    assert served.total.logical_token == 3 * (prompt + (prompt + 1))
    # Until the first of them writes, all read the same.
    assert served.total.logical_token - served.total.token == 2 * (prompt + 4 * full)
    assert (served.peak_running, served.peak_requests) == (3, 1)


def test_what_is_shared_is_seen_in_the_map() -> None:
    seen: list[int] = []
    serve(
        [Request(8, 1)],
        PagedPolicy(block_size=4, samples=2),
        slots=40,
        observe=lambda server: seen.append(int((server.slot_map()[0] == SHARED).sum())),
    )
    assert seen == [8]


@pytest.mark.parametrize(("keep", "least"), [(1.0, 0), (0.0, 1)])
def test_beams_that_part_share_what_they_wrote_together(keep: float, least: int) -> None:
    policy = PagedPolicy(block_size=2, samples=4, beam_keep=keep)
    total = serve([Request(4, 20)], policy, slots=400).total
    alone = serve([Request(4, 20)], replace(policy, beam_keep=None), slots=400).total
    assert total.logical_token == alone.logical_token
    if least:
        assert total.token < alone.token
        assert total.copies > alone.copies
    else:
        assert (total.token, total.copies) == (alone.token, alone.copies)


def test_a_prefix_that_was_computed_is_found_again() -> None:
    policy = PagedPolicy(block_size=4, prefix_caching=True)
    keys = (11, 12, 13)
    requests = [
        Request(12, 1, 0, keys),
        Request(12, 1, 100, keys),  # all but the last block: one token has to be computed
        Request(13, 1, 200, keys),
        Request(12, 1, 300, (11, 22, 23)),
    ]
    time = StepTime(step_ns=1, prefill_ns_per_token=0)
    steps = each_step(requests, policy, slots=100, time=time)
    assert [step.hit_tokens for step in steps] == [0, 8, 12, 4]
    assert [step.queried_tokens for step in steps] == [12, 12, 13, 12]
    assert [step.computed_tokens for step in steps] == [13, 5, 2, 9]
    # Idle between requests, in use while one of them runs.
    assert [step.cached_idle for step in steps][:1] == [0]


def test_two_that_run_at_once_hold_a_common_prefix_once() -> None:
    policy = PagedPolicy(block_size=4, prefix_caching=True)
    requests = [Request(9, 3, None, (1, 2)), Request(9, 2, None, (1, 2))]
    first = each_step(requests, policy, slots=100)[0]
    assert (first.logical_token, first.token) == (18, 10)
    assert first.logical_token / first.token == pytest.approx(first.sharing)


def test_a_cache_that_is_too_small_shows_ghost_hits() -> None:
    policy = PagedPolicy(block_size=1, prefix_caching=True)
    families = [Request(3, 1, at, (at % 3 * 10, at % 3 * 10 + 1)) for at in range(12)]
    time = StepTime(step_ns=1, prefill_ns_per_token=0)
    small = serve(families, policy, slots=5, time=time).total
    large = serve(families, policy, slots=12, time=time).total
    assert large.hit_tokens == 9 * 2
    # What has no key goes first, and is never looked for.
    assert large.ghost_hits == 0
    assert small.hit_tokens < large.hit_tokens
    assert small.ghost_hits > 0


def test_blocks_behind_the_window_are_given_up() -> None:
    policy = PagedPolicy(block_size=2, sliding_window=4)
    steps = each_step([Request(0, 10)], policy, slots=20)
    assert [step.token for step in steps] == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert [step.allocated for step in steps] == [0, 2, 2, 4, 4, 6, 4, 6, 4, 6]


def test_the_server_can_be_driven_step_by_step() -> None:
    server = Scheduler([Request(2, 2), Request(2, 1)], BY_ONE, slots=10)
    assert server.take_step()
    assert server.batch() == [(0, (0,), 2), (1, (1,), 2)]
    assert not server.take_step()
    assert [number for number, _, _ in server.batch()] == [0]
    assert (server.alive, server.completed) == (False, 2)


def test_steps_in_which_nobody_waits_are_taken_at_once() -> None:
    """W10: one by one, these would take minutes; what is counted is what arithmetic says."""
    steps = 50_000_000
    requests = [Request(3, steps, 0), Request(3, steps, 20)]
    time = StepTime(step_ns=1, prefill_ns_per_token=0, kv_ps_per_token=0)
    served = serve_by_counts(requests, PagedPolicy(block_size=16), slots=2 * steps + 64, time=time)
    assert served.total.steps == steps + 20
    assert served.total.token == 2 * (3 * steps + steps * (steps - 1) // 2)
    assert served.total.time_ns == steps + 20
    assert served.service is not None
    assert served.service.itl is not None
    assert served.service.itl.count == 2 * (steps - 1)
