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


def test_each_is_measured_against_the_anchor():
    names = ["v1", "v2", "v3"]
    assert plan_pairs(names, "v1", "anchor") == [("v1", "v2"), ("v1", "v3")]
    assert plan_pairs(names, "v2", "anchor") == [("v2", "v1"), ("v2", "v3")]
    assert plan_pairs(names, "v1", "chain") == [("v1", "v2"), ("v2", "v3")]
    assert plan_pairs(names, "v1", "both") == [("v1", "v2"), ("v1", "v3"), ("v2", "v3")]
    assert len(plan_pairs(names, "v2", "both")) == 2  # (v2, v1) and (v1, v2) are one pair


@pytest.mark.parametrize(
    ("names", "anchor", "why"),
    [
        (["v1"], "v1", "at least two"),
        (["v1", "v1"], "v1", "twice"),
        (["v1", "v2"], "v9", "none of"),
    ],
)
def test_names_that_make_no_pairs_are_refused(names, anchor, why):
    with pytest.raises(BadInput, match=why):
        plan_pairs(names, anchor, "anchor")


def cells(runs, anchor="v1"):
    (row,) = chain(runs, ["v1", "v2", "v3"], anchor).rows
    return {cell.release: cell for cell in row.cells}


def test_step_between_releases_is_the_quotient_of_two_ratios():
    found = cells([run("v1", "v2", 1.10), run("v1", "v3", 1.21)])
    assert found["v2"].to_anchor.estimate.ratio == 1.10
    assert found["v2"].step == pytest.approx(1.10)
    assert found["v3"].step == pytest.approx(1.10)
    assert found["v3"].to_previous is None


def test_measured_step_is_taken_before_a_quotient():
    found = cells([run("v1", "v2", 1.10), run("v1", "v3", 1.21), run("v2", "v3", 1.05)])
    assert found["v3"].step == 1.05
    assert found["v3"].to_previous.estimate.low == pytest.approx(1.04)


def test_ratio_that_was_measured_the_other_way_is_turned_round():
    found = cells([run("v2", "v1", 0.8), run("v2", "v3", 1.0)], anchor="v2")
    link = found["v2"].to_previous
    assert link.estimate.ratio == pytest.approx(1.25)
    assert link.estimate.low == pytest.approx(1 / 0.81)
    assert link.verdict is None


def test_unmeasured_pair_has_no_ratio():
    found = cells([run("v1", "v2", 1.1)])
    assert found["v3"].to_anchor is None
    assert found["v3"].step is None


@pytest.mark.parametrize(
    "other", [{"torch": "2.12.0"}, {"triton": "3.8.0"}, {"driver": "9"}, {"cuda": "12.8"}]
)
def test_seconds_of_another_key_are_not_there(other):
    record = chain(
        [run("v1", "v2", 1.1, head_where=environment(**other)), run("v1", "v3", 1.0)],
        ["v1", "v2", "v3"],
        "v1",
    )
    assert [release.same_key for release in record.releases] == [True, False, True]
    first, second, third = record.rows[0].cells
    assert second.to_anchor is not None
    assert second.seconds is None
    assert None not in {first.seconds, third.seconds}


@pytest.mark.parametrize("other", [{"device": "another"}, {"timer": "cuda_event"}, {"cores": 96}])
def test_chain_over_two_machines_is_refused(other):
    runs = [run("v1", "v2", 1.1), run("v2", "v3", 1.1, where=environment(**other))]
    with pytest.raises(BadInput, match="runs of 2 machines"):
        chain(runs, ["v1", "v2", "v3"], "v1")


def test_release_that_is_two_things_is_refused():
    runs = [run("v1", "v2", 1.1), run("v2", "v3", 1.1, where=environment(torch="2.12.0"))]
    with pytest.raises(BadInput, match="v2 is not the same release in every run"):
        chain(runs, ["v1", "v2", "v3"], "v1")


def test_share_of_the_copy_bandwidth():
    # 4 MB in 4 ms * 1.008 (the median of nine launches) is 0.992 GB/s; a copy reaches 2.
    record = run("v1", "v2", 1.0, where=environment(copy_gbs=2.0)).record
    assert share_of_copy(record, "decode", "base") == pytest.approx(1 / 1.008 / 2)
    without = run("v1", "v2", 1.0).record
    assert share_of_copy(without, "decode", "base") is None
    uncounted = run("v1", "v2", 1.0, where=environment(copy_gbs=2.0), counters=[]).record
    assert share_of_copy(uncounted, "decode", "base") is None


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([0, 0], 0), ([0, 3], 3), ([3, 1], 1), ([1, 5], 5), ([5, 4], 4), ([4, 130], 130), ([], 4)],
)
def test_worst_exit_code(codes, expected):
    assert worst(codes) == expected


def shown(show, *arguments):
    console = Console(file=StringIO(), width=80)
    show(*arguments, console)
    return console.file.getvalue()


def test_report_of_a_chain():
    runs = [run("v1", "v2", 1.1, head_where=environment(torch="2.12.0")), run("v1", "v3", 1.0)]
    text = shown(show_chain, chain(runs, ["v1", "v2", "v3"], "v1"))
    second, third = text.split("v3 against v1\n")[0], text.split("v3 against v1\n")[1]
    row = next(line for line in second.splitlines() if line.startswith("decode"))
    assert " ".join(row.split()) == "decode +10.0 % +9.0 to +11.0 % +10.0 % - - pass"
    assert "ratios compare, seconds do not" in second
    assert "4.0" in next(line for line in third.splitlines() if line.startswith("decode"))
    assert "ratios compare" not in third


def test_machines_are_shown_by_ratio_and_share_alone():
    h100 = environment(device="NVIDIA H100", timer="cuda_event", copy_gbs=2.0)
    b200 = environment(device="NVIDIA B200", timer="cuda_event", copy_gbs=4.0)
    records = [
        run("v1", "v2", 1.1, where=h100).record,
        run("v1", "v2", 1.0, where=b200, base_s=2e-3).record,
    ]
    text = shown(show_machines, records)
    row = next(line for line in text.splitlines() if line.startswith("decode"))
    assert row.split() == ["decode", "+10.0", "%,", "45", "%", "+0.0", "%,", "50", "%"]
    assert " ms" not in text


def command(*arguments):
    return CliRunner().invoke(app, ["compare", *arguments], env={"COLUMNS": "200"})


def test_command_runs_each_pair_once_and_keeps_the_records(monkeypatch, tmp_path):
    plans = []

    def fake_run(plan, **_):
        plans.append((plan.base.asked, plan.head.asked))
        return run(*plans[-1], 1.1, verdict="fail", exit_code=1).record

    monkeypatch.setattr("bench.gate.run.run_gate", fake_run)
    monkeypatch.setattr("bench.gate.contestant.find", lambda _: Found(commit="a" * 40))
    json_file, store = tmp_path / "chain.json", tmp_path / "store"
    result = command("v1", "v2", "v3", "--json", str(json_file), "--store", str(store))
    assert result.exit_code == 1, result.output
    assert plans == [("v1", "v2"), ("v1", "v3")]
    assert len(list(store.glob("*.json"))) == 2
    data = json.loads(json_file.read_text())
    assert data["anchor"] == "v1"
    assert [cell["step"] for cell in data["rows"][0]["cells"]] == [None, 1.1, pytest.approx(1.0)]


def test_environments_are_contestants_of_this_checkout(monkeypatch, tmp_path):
    plans = []

    def fake_run(plan, **_):
        plans.append(plan)
        return run("v1", "v2", 1.0).record

    monkeypatch.setattr("bench.gate.run.run_gate", fake_run)
    made: list[tuple[str, ...]] = []
    monkeypatch.setattr("bench.gate.contestant.built", made.append)
    python = sys.executable
    result = command("--env", "torch==2.12.0,triton==3.8.0", "--env", python)
    assert result.exit_code == 0, result.output
    assert made == [("torch==2.12.0", "triton==3.8.0")], "it is built before anything is measured"
    (plan,) = plans
    assert plan.base.asked == "torch==2.12.0,triton==3.8.0"
    assert plan.head.python == python
    assert "rooms" not in plan.head.asked


def test_command_shows_records_without_running(tmp_path):
    files = []
    for device, timer in (("A", "process_time"), ("B", "process_time")):
        record = run("v1", "v2", 1.1, where=environment(device=device, timer=timer)).record
        files.append(tmp_path / f"{device}.json")
        files[-1].write_text(record.model_dump_json())
    result = command("--record", str(files[0]), "--record", str(files[1]))
    assert result.exit_code == 0, result.output
    assert "+10.0 %" in result.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "got none of them"),
        (["v1", "v2", "--env", "torch==2.12.0"], "releases and --env"),
        (["v1"], "at least two"),
        (["v1", "v2", "--pairs", "all"], "choose anchor, chain, both"),
        (["v1", "v2", "--anchor", "v3"], "none of v1, v2"),
        (["--record", "no-such-file.json"], "No such file"),
    ],
)
def test_command_refuses_what_it_cannot_do(arguments, why):
    result = command(*arguments)
    assert result.exit_code == 2
    assert why in result.output
