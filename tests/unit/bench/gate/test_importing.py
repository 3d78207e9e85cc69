"""Records of other machines: taken in whole, or refused with the reason."""

import json

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.gate.importing import import_record, read_record
from bench.gate.verdict import judge
from helpers.gate_records import contestant, environment, failing, gate_record
from reference.errors import BadInput


def judged(**changes):
    """A record whose verdicts are those that its own launches give."""
    return judge(gate_record(**changes))


def write(tmp_path, record, name="gate.json", **fields):
    data = {**json.loads(record.model_dump_json()), **fields}
    path = tmp_path / name
    path.write_text(json.dumps(data))
    return path


def refused(tmp_path, record, why, **fields):
    with pytest.raises(BadInput, match=why):
        import_record(write(tmp_path, record, **fields), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_record_is_taken_in_as_it_is_and_twice_is_one_file(tmp_path):
    record, store = judged(), tmp_path / "store"
    (path,) = {import_record(write(tmp_path, record), store) for _ in range(2)}
    assert read_record(path) == record
    assert [read_record(each) for each in store.iterdir()] == [record]
    other = judged(started_at="2026-02-02T00:00:00+00:00")
    import_record(write(tmp_path, other, "other.json"), store)
    assert len(list(store.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"alpha": -1.0}, "between 0 and 1"),
        ({"looks": []}, "increasing"),
        ({"margin": -0.5}, "margin -0.5"),
        ({"margin": None}, "margin missing"),
    ],
)
def test_record_that_was_judged_by_nothing_is_refused(tmp_path, changes, why):
    asked = json.loads(judged().model_dump_json())["parameters"] | changes
    asked = {name: each for name, each in asked.items() if each is not None}
    refused(tmp_path, judged(), why, parameters=asked)


GPU = {"device": "NVIDIA H100", "timer": "cuda_event"}


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ({"timer": "perf_counter"}, "timed by 'perf_counter'"),
        ({"device": " "}, "its device is"),
        ({"torch": "unknown"}, "its torch is 'unknown'"),
        ({"triton": "not installed"}, "its triton is"),
        ({**GPU, "driver": None, "cuda": "13.0"}, "driver None"),
        ({**GPU, "driver": "580.1", "cuda": None}, "CUDA None"),
    ],
)
def test_unknown_key_is_refused(tmp_path, where, why):
    side = contestant("a" * 40, environment=environment(**where))
    refused(tmp_path, judged(head=side), why)


def test_side_that_never_started_is_refused(tmp_path):
    record = judged(base=contestant(environment=None))
    refused(tmp_path, record, "base does not say what it ran on")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"schema_version": 2, "something_new": 1}, "it has schema 2, and this version reads 1"),
        ({"schema_version": 0}, "it has schema 0, and this version reads 1"),
        ({"extra": 1}, "extra: Extra inputs"),
    ],
)
def test_other_schema_is_refused(tmp_path, fields, why):
    refused(tmp_path, judged(), why, **fields)


@pytest.mark.parametrize(
    ("text", "why"),
    [('{"schema_version": 1}', "Field required"), ('{"schema_version": 1', "Invalid JSON")],
)
def test_what_is_no_record_is_refused(tmp_path, text, why):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=why):
        read_record(file)


def test_verdict_that_its_launches_do_not_give_is_refused(tmp_path):
    slow = judged(benchmarks=[failing(), failing("other")])
    assert slow.exit_code != 0
    why = r"it says 'pass' \(exit code 0\), and its own"
    refused(tmp_path, slow, why, verdict="pass", exit_code=0)
    first, *rest = json.loads(slow.model_dump_json())["benchmarks"]
    why = f"verdict on {first['key']} "
    refused(tmp_path, slow, why, benchmarks=[{**first, "verdict": "pass"}, *rest])


def test_command_takes_in_the_good_and_names_the_bad(tmp_path):
    good, bad = write(tmp_path, judged()), tmp_path / "bad.json"
    bad.write_text("{}")
    store = tmp_path / "store"
    result = CliRunner().invoke(app, ["import", str(bad), str(good), "--store", str(store)])
    assert result.exit_code == 2
    assert "no schema_version" in result.output
    assert len(list(store.glob("*.json"))) == 1
    bad.write_text("\n")
    assert "bad.json is empty" in CliRunner().invoke(app, ["import", str(bad)]).output
    assert CliRunner().invoke(app, ["import", str(good), "--store", str(store)]).exit_code == 0
