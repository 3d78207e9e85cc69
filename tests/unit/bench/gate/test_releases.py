"""Releases: ratios of one job are chained, seconds of another key are never shown beside."""

import json
import sys
from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.gate.contestant import Found
from bench.gate.record import Estimate
from bench.gate.releases import (
    NamedRun,
    chain,
    plan_pairs,
    share_of_copy,
    worst,
)
from bench.gate.report.releases import show_chain, show_machines
from helpers.gate_records import (
    benchmark,
    contestant,
    counter,
    environment,
    gate_record,
    samples,
)
from helpers.snapshots import assert_as_stored
from reference.errors import BadInput

COMMITS = {name: letter * 40 for name, letter in (("v1", "1"), ("v2", "2"), ("v3", "3"))}


def run(base, head, ratio, *, base_s=4e-3, where=None, head_where=None, **changes):
    """A run of two releases on one benchmark that moves 4 MB a call."""
    slowdown = ratio - 1
    usual = {
        "base": contestant(COMMITS[base], environment=where or environment()),
        "head": contestant(COMMITS[head], environment=head_where or where or environment()),
        "benchmarks": [
            benchmark(
                "decode",
                slowdown=slowdown,
                samples=samples(slowdown, base_s=base_s),
                estimate=Estimate(ratio=ratio, low=ratio - 0.01, high=ratio + 0.01),
            )
        ],
        "counters": [
            counter("decode", "torch_bytes", unit="bytes", base=4_000_000, head=4_000_000)
        ],
    }
    return NamedRun(base=base, head=head, record=gate_record(**{**usual, **changes}))


NAMES = ["v1", "v2", "v3"]


@pytest.mark.parametrize(
    ("anchor", "pairs", "planned"),
    [
        ("v1", "anchor", ["v1 v2", "v1 v3"]),
        ("v2", "anchor", ["v2 v1", "v2 v3"]),
        ("v1", "chain", ["v1 v2", "v2 v3"]),
        ("v1", "both", ["v1 v2", "v1 v3", "v2 v3"]),
        ("v2", "both", ["v2 v1", "v2 v3"]),  # (v2, v1) and (v1, v2) are one pair
    ],
)
def test_pairs_are_planned_around_the_anchor(anchor, pairs, planned):
    assert [" ".join(pair) for pair in plan_pairs(NAMES, anchor, pairs)] == planned


def cells(*ratios, anchor="v1"):
    """The cells of a chain of runs, each as `base head ratio`."""
    runs = [run(base, head, ratio) for base, head, ratio in ratios]
    (row,) = chain(runs, NAMES, anchor).rows
    return {cell.release: cell for cell in row.cells}


def test_a_step_between_releases_is_measured_or_else_the_quotient_of_two_ratios():
    to_anchor = ("v1", "v2", 1.10), ("v1", "v3", 1.21)
    found = cells(*to_anchor)
    assert found["v2"].to_anchor.estimate.ratio == 1.10
    assert (found["v2"].step, found["v3"].step) == pytest.approx((1.10, 1.10))
    assert found["v3"].to_previous is None
    measured = cells(*to_anchor, ("v2", "v3", 1.05))["v3"]
    assert measured.step == 1.05
    assert measured.to_previous.estimate.low == pytest.approx(1.04)
    unmeasured = cells(("v1", "v2", 1.1))["v3"]
    assert (unmeasured.to_anchor, unmeasured.step) == (None, None)


def test_ratio_that_was_measured_the_other_way_is_turned_round():
    link = cells(("v2", "v1", 0.8), ("v2", "v3", 1.0), anchor="v2")["v2"].to_previous
    assert link.estimate.ratio == pytest.approx(1.25)
    assert link.estimate.low == pytest.approx(1 / 0.81)
    assert link.verdict is None


@pytest.mark.parametrize(
    "other", [{"torch": "2.12.0"}, {"triton": "3.8.0"}, {"driver": "9"}, {"cuda": "12.8"}]
)
def test_seconds_of_another_key_are_not_there(other):
    record = chain(
        [run("v1", "v2", 1.1, head_where=environment(**other)), run("v1", "v3", 1.0)],
        NAMES,
        "v1",
    )
    assert [release.same_key for release in record.releases] == [True, False, True]
    first, second, third = record.rows[0].cells
    assert second.to_anchor is not None
    assert second.seconds is None
    assert None not in {first.seconds, third.seconds}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"device": "another"}, "runs of 2 machines"),
        ({"timer": "cuda_event"}, "runs of 2 machines"),
        ({"cores": 96}, "runs of 2 machines"),
        ({"torch": "2.12.0"}, "v2 is not the same release in every run"),
    ],
)
def test_chain_over_two_machines_or_two_things_of_one_name_is_refused(other, words):
    runs = [run("v1", "v2", 1.1), run("v2", "v3", 1.1, where=environment(**other))]
    with pytest.raises(BadInput, match=words):
        chain(runs, NAMES, "v1")


@pytest.mark.parametrize(
    ("copy_gbs", "counted", "share"),
    # 4 MB in 4 ms * 1.008 (the median of nine launches) is 0.992 GB/s; a copy reaches 2.
    [(2.0, True, pytest.approx(1 / 1.008 / 2)), (None, True, None), (2.0, False, None)],
)
def test_share_of_the_copy_bandwidth(copy_gbs, counted, share):
    changes = {} if counted else {"counters": []}
    record = run("v1", "v2", 1.0, where=environment(copy_gbs=copy_gbs), **changes).record
    assert share_of_copy(record, "decode", "base") == share


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([0, 3], 3), ([3, 1], 1), ([1, 5], 5), ([5, 4], 4), ([4, 130], 130), ([], 4)],
)
def test_worst_exit_code(codes, expected):
    assert worst(codes) == expected


def test_reports_are_as_they_are_stored():
    """Ratios of one job side by side; machines by ratio and share of copy bandwidth alone."""
    runs = [run("v1", "v2", 1.1, head_where=environment(torch="2.12.0")), run("v1", "v3", 1.0)]
    h100 = environment(device="NVIDIA H100", timer="cuda_event", copy_gbs=2.0)
    b200 = environment(device="NVIDIA B200", timer="cuda_event", copy_gbs=4.0)
    machines = [run("v1", "v2", 1.1, where=h100), run("v1", "v2", 1.0, where=b200, base_s=2e-3)]
    console = Console(file=StringIO(), width=80)
    show_chain(chain(runs, NAMES, "v1"), console)
    show_machines([each.record for each in machines], console)
    assert_as_stored("gate-releases.txt", console.file.getvalue())


def command(*arguments):
    return CliRunner().invoke(app, ["compare", *arguments], env={"COLUMNS": "200"})


@pytest.fixture
def plans(monkeypatch):
    """Plans of runs, not carried out: each fails with a slowdown of 10 %."""
    kept = []

    def fake_run(plan, **_):
        kept.append(plan)
        pair = plan.base.asked, plan.head.asked
        return run(*(pair if pair[0] in COMMITS else ("v1", "v2")), 1.1, exit_code=1).record

    monkeypatch.setattr("bench.gate.run.run_gate", fake_run)
    return kept


def test_command_runs_each_pair_once_and_keeps_the_records(plans, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.gate.contestant.find", lambda _, root: Found(commit="a" * 40))
    json_file, store = tmp_path / "chain.json", tmp_path / "store"
    result = command(*NAMES, "--json", str(json_file), "--store", str(store))
    assert result.exit_code == 1, result.output
    assert [(plan.base.asked, plan.head.asked) for plan in plans] == [("v1", "v2"), ("v1", "v3")]
    assert len(list(store.glob("*.json"))) == 2
    data = json.loads(json_file.read_text())
    assert data["anchor"] == "v1"
    assert [cell["step"] for cell in data["rows"][0]["cells"]] == [None, 1.1, pytest.approx(1.0)]


def test_environments_are_contestants_of_this_checkout(monkeypatch, plans):
    made = []
    monkeypatch.setattr("bench.gate.contestant.built", lambda each, root: made.append(each))
    result = command("--env", "torch==2.12.0,triton==3.8.0", "--env", sys.executable)
    assert result.exit_code == 1, result.output
    assert made == [("torch==2.12.0", "triton==3.8.0")], "it is built before anything is measured"
    (plan,) = plans
    assert plan.base.asked == "torch==2.12.0,triton==3.8.0"
    assert plan.head.python == sys.executable
    assert "rooms" not in plan.head.asked


def test_command_shows_records_without_running(tmp_path):
    files = [tmp_path / f"{device}.json" for device in "AB"]
    for file in files:
        record = run("v1", "v2", 1.1, where=environment(device=file.stem)).record
        file.write_text(record.model_dump_json())
    result = command("--record", str(files[0]), "--record", str(files[1]))
    assert result.exit_code == 0, result.output
    assert "+10.0 %" in result.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "got none of them"),
        (["v1", "v2", "--env", "torch==2.12.0"], "releases and --env"),
        (["v1"], "at least two"),
        (["v1", "v1"], "twice"),
        (["v1", "v2", "--pairs", "all"], "choose anchor, chain, both"),
        (["v1", "v2", "--anchor", "v3"], "none of v1, v2"),
        (["--record", "no-such-file.json"], "No such file"),
    ],
)
def test_command_refuses_what_it_cannot_do(arguments, why):
    result = command(*arguments)
    assert result.exit_code == 2
    assert why in result.output
