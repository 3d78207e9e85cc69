"""`make gate-power`: what is there is not run again; rates and missed bars are of the files."""

import json

import pytest

from bench.gate.verdict import judge
from helpers.gate_records import contestant, failing, gate_record
from studies import gate_power
from studies.resample import ResampleError

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
    lines = (folder / "gate-power.json").read_text().splitlines()
    assert len([line for line in lines if '"benchmark": "alloc/churn", "slowdown"' in line]) == 6
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


def test_runs_that_take_longer_than_there_is_time_are_left_for_the_next(folder, monkeypatch):
    fill(folder, runs=1)
    store(folder, "identical-0", **identical() | {"elapsed_s": 90.0})
    started = []

    def gate(_, *arguments):
        started.append(arguments)
        return planted(0.05)

    monkeypatch.setattr(gate_power, "gate", gate)
    # A run on planted code took ten seconds, one on identical code ninety.
    code, summary = run(folder, "--for=1m", "--others=1")
    assert code == gate_power.INTERRUPTED
    assert started == [("HEAD", "--plant", "5%"), ("HEAD", "--plant", "3%")]
    assert summary["identical"]["runs"] == 1
    assert summary["planted"]["0.03"]["runs"] == 2


def test_runs_of_too_few_launches_are_no_result(folder, monkeypatch, capsys):
    def too_few(*_, **__):
        raise ResampleError("record more")

    monkeypatch.setattr(gate_power, "resample", too_few)
    fill(folder)
    assert run(folder) == (gate_power.NO_RESULT, None)
    assert "record more" in capsys.readouterr().err


def test_alarm_on_identical_code_misses_the_bar(folder):
    fill(folder)
    store(folder, "identical-1", **identical(benchmarks=[failing()]))
    code, summary = run(folder)
    assert code == gate_power.BAR_MISSED
    assert "a real run on identical code failed" in summary["missed"]


# As asv 0.6.6 prints it, with narrower columns.
ASV_REPORT = """
| Change   | Before [a406acb6] | After [f242553b] |   Ratio | Benchmark (Parameter)   |
|----------|-------------------|------------------|---------|-------------------------|
| +        | 1.48±0.06ms       | 13.1±0.5ms       |    8.86 | allocator.time_a('on')  |
| -        | 12.4±0.3ms        | 807±30us         |    0.07 | allocator.time_a('off') |

SOME BENCHMARKS HAVE CHANGED SIGNIFICANTLY.
PERFORMANCE DECREASED.
"""


def test_asvs_report_is_read():
    assert gate_power.asv_changed(ASV_REPORT) == [
        "+ allocator.time_a('on')",
        "- allocator.time_a('off')",
    ]
    assert gate_power.asv_changed("\nBENCHMARKS NOT SIGNIFICANTLY CHANGED.\n") == []
    for text in ("", "Traceback", "SOME BENCHMARKS HAVE CHANGED SIGNIFICANTLY."):
        with pytest.raises(gate_power.RunFailed, match="cannot be read"):
            gate_power.asv_changed(text)
