"""`make asv` judges by stored results: none that failed, is missing or is old counts as good."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
from asv.config import Config

from bench.asv.series import gate_definitions
from bench.gate.asv import export
from helpers.asv_project import make_project
from helpers.gate_records import contestant, gate_record
from scripts import run_asv
from scripts.asv_offline import make_offline
from scripts.run_asv import ALL_MEASURED, BENCHMARK_FAILED, NOTHING_MEASURED, judge

MACHINE = "bench-1"
SUITE = {"time_decode": [["16", "64"]], "track_waste": []}
GOOD = {"time_decode": [2e-5, math.nan], "track_waste": [0.25]}


def store(results_dir: Path, values: dict[str, list[float | None] | None]) -> tuple[Path, Config]:
    """Write what asv leaves behind after a run (its format 2)."""
    conf = Config()
    conf.results_dir = str(results_dir)
    benchmarks = {
        name: {"name": name, "params": params, "version": "1", "type": "track", "unit": "1"}
        for name, params in SUITE.items()
    }
    results = {name: [found, SUITE[name], "1"] for name, found in values.items()}
    record = {
        "commit_hash": "a" * 40,
        "env_name": "virtualenv-py3.11",
        "date": 0,
        "params": {"machine": MACHINE, "python": "3.11"},
        "python": "3.11",
        "requirements": {},
        "env_vars": {},
        "result_columns": ["result", "params", "version"],
        "results": results,
        "durations": {},
        "version": 2,
    }
    path = results_dir / MACHINE / "aaaaaaaa-virtualenv-py3.11.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    (results_dir / "benchmarks.json").write_text(json.dumps({**benchmarks, "version": 2}), "utf-8")
    return path, conf


def test_every_entry_measured_or_not_applicable_is_good(tmp_path: Path) -> None:
    path, conf = store(tmp_path, GOOD)
    assert judge(path, conf, MACHINE, started=0.0) == (
        ALL_MEASURED,
        "2 measured, 1 not applicable here",
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({**GOOD, "time_decode": [2e-5, None]}, "1 FAILED: time_decode(64)"),
        ({**GOOD, "track_waste": [None]}, "1 FAILED: track_waste()"),
        ({**GOOD, "time_decode": None}, "2 FAILED: time_decode(16), time_decode(64)"),
        ({"track_waste": [0.25]}, "2 FAILED: time_decode(16), time_decode(64)"),
    ],
    ids=["one set of parameters", "whole benchmark", "build", "absent"],
)
def test_failed_or_absent_entry_is_named(
    tmp_path: Path, values: dict[str, list[float | None] | None], named: str
) -> None:
    path, conf = store(tmp_path, values)
    code, line = judge(path, conf, MACHINE, started=0.0)
    assert code == BENCHMARK_FAILED
    assert named in line


def test_results_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    path, conf = store(tmp_path, GOOD)
    code, _ = judge(path, conf, MACHINE, started=path.stat().st_mtime + 1)
    assert code == NOTHING_MEASURED


def test_no_results_file_is_not_success(tmp_path: Path) -> None:
    path, conf = store(tmp_path, GOOD)
    code, _ = judge(path.with_name("bbbbbbbb-other.json"), conf, MACHINE, started=0.0)
    assert code == NOTHING_MEASURED


def test_suite_that_applies_nowhere_is_not_success(tmp_path: Path) -> None:
    path, conf = store(tmp_path, {"time_decode": [math.nan] * 2, "track_waste": [math.nan]})
    code, _ = judge(path, conf, MACHINE, started=0.0)
    assert code == NOTHING_MEASURED


def test_gates_series_stay_on_a_page_that_is_made_without_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path / "repo", commits=2)
    base, head = (contestant(commit) for commit in project.commits)
    export(gate_record(base=base, head=head), project.results, project.folder)
    exported = gate_definitions(project.results)
    # `asv run` lists what the suite has, and nothing else.
    (project.results / "benchmarks.json").write_text('{"version": 2}')
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(run_asv, "ROOT", project.folder)
    no_npm = partial(make_offline, vendor=tmp_path / "vendor")
    monkeypatch.setattr(run_asv, "make_offline", no_npm)
    monkeypatch.setattr("scripts.asv_offline.shutil.which", lambda _: None)
    run_asv.publish(Config.load(), exported)
    shown = json.loads((project.html / "index.json").read_text())["benchmarks"]
    assert set(shown) == set(exported)
    assert "gate.alloc.churn.time" in shown
    captured = capsys.readouterr()
    assert "the page needs the network" in captured.err
    assert "install npm" in captured.err
    assert "history:" in captured.out


def test_page_that_was_not_published_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = Config()
    conf.html_dir = str(tmp_path / "html")
    monkeypatch.setattr(run_asv, "asv", lambda *_: None)
    run_asv.publish(conf, {})
    captured = capsys.readouterr()
    assert "run `asv publish` first" in captured.err
    assert "history:" not in captured.out
