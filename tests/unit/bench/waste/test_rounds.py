"""What --whatif runs, round by round, and what it need not run because it cannot matter."""

from dataclasses import replace
from typing import Any

import pytest

from bench.command.progress import Silence
from bench.waste.changes import PAIR, cannot_matter, variations
from bench.waste.clocks import ROUND_FIGURES
from bench.waste.parallel import Job
from bench.waste.plan import WastePlan, draw_again, read_streams
from bench.waste.policies import parse_policy
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.run import run_waste
from bench.waste.whatif import compare
from bench.waste.whatif_report import whatif_reading
from helpers.waste_records import job, simulated
from reference.errors import BadInput

CALM = "azure-fit:rate=2,requests=60,system=64,prompts=2,max_len=2000"


def same(row: WasteRow) -> dict[str, Any]:
    return row.model_dump(exclude={"policy", "seconds", "inferred"})


@pytest.mark.parametrize(
    ("stream", "slots", "inferred"),
    [
        (CALM, 400_000, {"preemption", "look-ahead", "watermark", "max-running"}),
        (CALM, 12_000, {"max-running"}),
        ("alpaca-fit:requests=80", 3000, {"max-running"}),
    ],
)
@pytest.mark.parametrize("base", ["paged", "paged:prefix=lru,watermark=0.02,look-ahead=8"])
def test_what_cannot_matter_serves_step_for_step_as_the_base(
    stream: str, slots: int, inferred: set[str], base: str
) -> None:
    row = simulated(job(base, stream, slots=slots))
    policy = parse_policy(base)
    found = set()
    for each in variations(policy, prefixes=True):
        if cannot_matter(each.policy, row, timed=":rate" in stream):
            found.add(each.group)
            asked = replace(job(base, stream, slots=slots), policy=each.policy)
            assert same(simulated(asked)) == same(row), each.words
    assert found >= inferred


def test_what_matters_is_run() -> None:
    crowded = simulated(job("paged:prefix=lru", "sharegpt-fit:requests=60", slots=4000))
    assert crowded.total.preemptions
    assert crowded.total.evictions or not crowded.total.hit_tokens
    policy = parse_policy("paged:prefix=lru")
    run = {
        each.words
        for each in variations(policy, prefixes=True)
        if not cannot_matter(each.policy, crowded, timed=False)
    }
    assert {"preemption swap", "watermark 10%", "look-ahead 8", "block size 32"} <= run


def plan(spec: str, *, drawings: int = 3, **changes: Any) -> WastePlan:
    return WastePlan(
        **{
            "streams": read_streams([spec], [], requests=60, seed=0),
            "drawn": draw_again([spec], traces=0, requests=60, seed=0, seeds=drawings, whatif=True),
            "policies": ("paged",),
            "block_sizes": (16,),
            "slots": 5000,
            "bytes_per_token": 1,
            "max_model_len": None,
            "warmup": None,
            "clients": None,
            "clock": ROUND_FIGURES,
            "slo": None,
            "rank": "requests",
            "workers": 1,
            "ray": False,
            "ray_address": None,
            "whatif": True,
        }
        | changes
    )


def searched(asked: WastePlan) -> WasteRecord:
    return run_waste(asked, Silence())


def test_singles_then_pairs_of_the_best_then_drawings_of_what_could_be_recommended() -> None:
    record = searched(plan("sharegpt-fit:system=512"))
    assert record.complete
    assert record.asked == sum(not row.inferred for row in record.rows)
    found = compare(record, record.streams[0].label)
    assert found is not None
    assert found.best is not None
    assert found.best.drawings == 3
    assert PAIR in {effect.group for effect in found.effects}
    groups = [effect.group == PAIR for effect in found.effects]
    assert groups == sorted(groups)
    again = [row for row in record.rows if row.drawing]
    assert {row.drawing for row in again} == {1, 2}
    assert len({row.total.logical_token for row in record.rows if row.policy == record.base}) == 3
    drawn_policies = {row.policy for row in again}
    assert {record.base, found.best.row.policy} <= drawn_policies
    assert len(drawn_policies) < 7
    assert record.runs is not None
    assert record.asked <= record.runs


def test_runs_bound_the_search_single_changes_first() -> None:
    record = searched(plan("sharegpt-fit:system=512", runs=5))
    assert len([row for row in record.rows if not row.inferred]) == 5
    assert record.rows[0].policy == record.base
    found = compare(record, record.streams[0].label)
    assert found is not None
    assert {effect.group for effect in found.effects if not effect.row.inferred} == {"block size"}


def test_what_is_drawn_is_drawn_again_and_nothing_else(tmp_path: Any) -> None:
    file = tmp_path / "t.csv"
    file.write_text("prompt_tokens,output_tokens\n9,1\n")
    specs = ["sharegpt-fit", "sharegpt-fit:seed=7", str(file)]
    drawn = draw_again(specs, traces=1, requests=5, seed=3, seeds=4, whatif=False)
    assert [len(sources) for sources in drawn] == [3, 0, 0, 0]
    first, second, _ = ([p.prompt_tokens.tolist() for p in s.chunks()] for s in drawn[0])
    assert first != second
    with pytest.raises(BadInput, match="--seeds 4: no stream is drawn"):
        draw_again(specs[1:], traces=1, requests=5, seed=3, seeds=4, whatif=False)
    usual = draw_again(specs[:2], traces=0, requests=5, seed=3, seeds=None, whatif=True)
    assert [len(sources) for sources in usual] == [4, 0]


def test_policies_side_by_side_are_served_on_every_drawing() -> None:
    asked = plan("sharegpt-fit", whatif=False, policies=("paged", "oracle/buddy"))
    jobs: list[Job] = asked.jobs()
    assert [(job.policy.__class__.__name__[:5], job.drawing) for job in jobs] == [
        (name, number) for name in ("Paged", "Conti") for number in range(3)
    ]
    record = searched(asked)
    assert len(record.rows_of(record.streams[0].label)) == 2


class Impatient(Silence):
    """Somebody who presses Ctrl-C after so many simulations."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int) -> None:
        self.left -= count
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 14])
def test_an_interrupt_keeps_what_was_simulated_in_any_round(after: int) -> None:
    record = run_waste(plan("sharegpt-fit"), Impatient(after))
    assert not record.complete
    assert sum(not row.inferred for row in record.rows) == after < record.asked
    assert compare(record, record.streams[0].label) is not None


def test_swapping_is_tried_where_the_clock_has_a_time_for_it() -> None:
    free = plan("sharegpt-fit")
    costly = replace(ROUND_FIGURES, time=replace(ROUND_FIGURES.time, swap_ns_per_token=5000))
    groups = [
        {each.group for each in asked.variations(asked.streams[0][1])}
        for asked in (free, replace(free, clock=costly))
    ]
    assert groups[1] - groups[0] == {"preemption"}
    record = searched(replace(free, runs=1))
    found = compare(record, record.streams[0].label)
    assert found is not None
    said = " ".join(whatif_reading(found, record))
    assert "Not tried: swapping, of which the clock says nothing" in said
