"""`make gate-power`: what is there is not run again; rates and missed bars are of the files."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bench.gate.verdict import judge
from helpers.gate_records import benchmark, contestant, failing, gate_record, samples
from helpers.places import ROOT
from studies import gate_power

SAME = {"base": contestant("b" * 40), "head": contestant("b" * 40)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of runs, in which no real run is ever started."""
    monkeypatch.setattr(gate_power, "git", lambda *_, **__: "b" * 40)

    def refuse(*_, **__):
        raise AssertionError("a run was started")

    monkeypatch.setattr(gate_power, "shell", refuse)
    return tmp_path / "power"


def store(folder, name, **kept):
    folder.mkdir(exist_ok=True)
    usual = {"exit_code": 0, "elapsed_s": 10.0, "load": 1.0}
    (folder / f"{name}.json").write_text(json.dumps({**usual, **kept}))


def identical(**changes):
    record = judge(gate_record(**{**SAME, **changes}))
    return {"record": json.loads(record.model_dump_json()), "exit_code": record.exit_code}


def planted(slowdown):
    record = judge(gate_record(mode="plant", benchmarks=[failing(slowdown=slowdown)]))
    return {"record": json.loads(record.model_dump_json()), "exit_code": record.exit_code}


def fill(folder, *, runs=2):
    """Everything that a series of `runs` would leave behind."""
    for number in range(runs):
        store(folder, f"identical-{number}", **identical())
        store(folder, f"planted-5-{number}", **planted(0.05))
        store(folder, f"planted-3-{number}", **planted(0.03))
        changed = ["- a"] if number == 0 else []
        store(folder, f"asv-{number}", decisions=4, changed=changed, exit_code=len(changed))
        store(folder, f"pytest-{number}", decisions=10, changed=["x"], exit_code=1)


def run(folder, *more, runs=2):
    counts = [f"--{name}={runs}" for name in ("identical", "planted", "others")]
    arguments = ["--folder", str(folder), *counts, "--trials", "200", *more]
    code = gate_power.main(arguments)
    file = folder / "gate-power.json"
    return code, json.loads(file.read_text()) if file.is_file() else None


def test_finished_series_is_summed_up_without_a_run(folder, capsys):
    fill(folder)
    code, summary = run(folder)
    assert code == gate_power.ALL_THERE
    assert summary["identical"]["failed_runs"] | {"high": None} == {
        "found": 0, "trials": 2, "share": 0.0, "low": 0.0, "high": None,
    }  # fmt: skip
    assert summary["planted"]["0.05"]["failed_runs"]["found"] == 2
    assert summary["planted"]["0.05"]["median_launches_to_fail"] == 15
    assert summary["asv"]["changed"]["found"] == 1
    assert summary["asv"]["changed"]["trials"] == 8
    assert summary["pytest_benchmark"]["failed_runs"]["share"] == 1.0
    assert set(summary["resampled"]) == {"random", "recorded"}
    assert summary["missed"] == []
    assert "asv continuous     1 of 2 runs fail" in capsys.readouterr().out


def test_only_what_is_missing_is_run(folder, monkeypatch):
    fill(folder)
    (folder / "asv-1.json").unlink()
    started = []

    def asv(options):
        started.append("asv")
        return {"exit_code": 0, "decisions": 4, "changed": []}

    monkeypatch.setattr(gate_power, "asv_continuous", asv)
    code, summary = run(folder)
    assert (code, started) == (gate_power.ALL_THERE, ["asv"])
    assert summary["asv"]["runs"] == 2
    run(folder)
    assert started == ["asv"]


def test_run_without_a_result_is_said_and_leaves_no_file(folder, monkeypatch, capsys):
    fill(folder)
    (folder / "asv-1.json").unlink()

    def asv(options):
        raise gate_power.RunFailed("no environment")

    monkeypatch.setattr(gate_power, "asv_continuous", asv)
    code, summary = run(folder)
    assert code == gate_power.NO_RESULT
    assert not (folder / "asv-1.json").exists()
    assert "asv-1" in capsys.readouterr().err
    assert summary["asv"]["runs"] == 1


def test_folder_of_another_commit_is_refused(folder, monkeypatch, capsys):
    fill(folder)
    run(folder)
    monkeypatch.setattr(gate_power, "git", lambda *_, **__: "c" * 40)
    code, _ = run(folder)
    assert code == gate_power.CANNOT_START
    assert "name another --folder" in capsys.readouterr().err


def test_alarm_on_identical_code_misses_the_bar(folder):
    fill(folder)
    store(folder, "identical-1", **identical(benchmarks=[failing()]))
    code, summary = run(folder)
    assert code == gate_power.BAR_MISSED
    assert "a real run on identical code failed" in summary["missed"]


def test_slowdowns_that_are_not_found_miss_the_bar(folder):
    fill(folder)
    wide = [
        sample.model_copy(update={"d_timer": 8 * sample.d_timer}) for sample in samples(count=40)
    ]
    store(folder, "identical-0", **identical(benchmarks=[benchmark("noisy", samples=wide)]))
    code, summary = run(folder)
    assert code == gate_power.BAR_MISSED
    assert any(each.startswith("+3 % is found in") for each in summary["missed"])


def test_planted_run_that_does_not_fail_misses_the_bar(folder):
    fill(folder)
    store(folder, "planted-5-1", **{**planted(0.05), "exit_code": 3})
    code, summary = run(folder)
    assert code == gate_power.BAR_MISSED
    assert "0.05 planted: 1 of 2 runs fail" in summary["missed"]


def test_asv_counts_what_both_commits_have(tmp_path):
    results = tmp_path / ".asv" / "results" / gate_power.MACHINE
    results.mkdir(parents=True)
    (results / "machine.json").write_text("{}")
    whole = {"a": [[1.0, 2.0]], "b": [[float("nan"), None]]}
    (results / "11111111-env.json").write_text(json.dumps({"results": whole}))
    assert gate_power.asv_measured(tmp_path) == 0
    (results / "22222222-env.json").write_text(json.dumps({"results": {"a": [[1.0, None]]}}))
    assert gate_power.asv_measured(tmp_path) == 1


# As asv 0.6.6 prints it, with narrower columns.
ASV_REPORT = """
| Change   | Before [a406acb6] | After [f242553b] |   Ratio | Benchmark (Parameter)   |
|----------|-------------------|------------------|---------|-------------------------|
| +        | 1.48±0.06ms       | 13.1±0.5ms       |    8.86 | allocator.time_a('on')  |
| -        | 12.4±0.3ms        | 807±30us         |    0.07 | allocator.time_a('off') |

SOME BENCHMARKS HAVE CHANGED SIGNIFICANTLY.
PERFORMANCE DECREASED.
"""


def test_interrupted_run_tidies_up_and_is_told_once(tmp_path):
    told = tmp_path / "told"
    child = (
        "import pathlib, signal, sys, time\n"
        f"told = pathlib.Path({str(told)!r})\n"
        "def end(*_):\n"
        "    told.write_text((told.read_text() if told.exists() else '') + 'once ')\n"
        "    time.sleep(0.5)\n"
        "    told.write_text(told.read_text() + 'tidy')\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end)\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from studies.gate_power import shell\n"
        f"shell([sys.executable, '-c', {child!r}])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "up").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert told.read_text() == "once tidy"


def test_asvs_report_is_read():
    assert gate_power.asv_changed(ASV_REPORT) == [
        "+ allocator.time_a('on')",
        "- allocator.time_a('off')",
    ]
    assert gate_power.asv_changed("\nBENCHMARKS NOT SIGNIFICANTLY CHANGED.\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Traceback",
        "SOME BENCHMARKS HAVE CHANGED SIGNIFICANTLY.",
        ASV_REPORT.partition("SOME")[0],
    ],
)
def test_asvs_report_that_cannot_be_read_is_no_answer(text):
    with pytest.raises(gate_power.RunFailed, match="cannot be read"):
        gate_power.asv_changed(text)


def test_job_of_a_plant_has_its_own_percentage(monkeypatch):
    asked = []
    monkeypatch.setattr(gate_power, "gate", lambda options, *rest: asked.append(rest))
    options = gate_power.parse(["--identical=0", "--planted=1", "--others=0"])
    for job in list(gate_power.jobs(options)):
        job.run()
    assert asked == [("HEAD", "--plant", "5%"), ("HEAD", "--plant", "3%")]
