"""Recordings with known faults: every fault has a name that the diagnosis knows, held-out ones are
drawn apart, what is made is not made again, and what is made can be read.
"""

import json
import sys

import pytest

from bench.diagnose.modes import MODES
from bench.diagnose.readers import read_all
from helpers.places import ROOT
from scripts import make_incidents
from scripts.incidents.drawing import Dice
from scripts.incidents.setups import EVERY, drawn
from scripts.make_incidents import ALL_MADE, CANNOT_START, SOME_FAILED, main
from subjects.environments import engine_python
from subjects.loading import SubjectError

STAND_IN = """
import json, pathlib, sys
print("a library says hello")
for line in sys.stdin:
    job = json.loads(line)
    folder = pathlib.Path(job["folder"])
    said = {"folder": str(folder), "cpu_s": 1}
    if job["name"] == "restart":
        said["failed"] = "it broke"
    else:
        folder.mkdir(parents=True)
        (folder / "truth.json").write_text(json.dumps(job))
    print(json.dumps(said))
"""


def test_what_the_tests_need_is_made() -> None:
    assert set(make_incidents.FIXTURES) <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_incident_can_be_drawn_and_has_modes_that_are_told_apart(name: str) -> None:
    for seed in range(6):
        made = drawn(name, seed, held_out=seed % 3 == 2)
        assert set(made.modes) <= {*MODES, "healthy"}
        assert set(made.also) <= set(MODES)
        typed = dict(zip(made.arguments[::2], made.arguments[1::2], strict=False))
        tokens = int(typed["--block-size"]) * (int(typed["--num-gpu-blocks-override"]) - 1)
        small = name in {"start_refused", "request_larger_than_pool"}
        assert (tokens < made.max_model_len) == small
        assert int(typed["--max-num-batched-tokens"]) >= int(typed["--max-num-seqs"])
        assert drawn(name, seed, held_out=seed % 3 == 2).arguments == made.arguments


def test_held_out_configurations_share_no_number_and_no_interval_with_the_others() -> None:
    fitted, held = (
        [Dice("any", seed, held_out=held_out) for seed in range(60)] for held_out in (False, True)
    )
    assert not {each.every for each in fitted} & {each.every for each in held}
    for name, low, high in (("pool", 1000.0, 9000.0), ("rate", 0.5, 20.0)):
        edges = [low * (high / low) ** (at / 6) for at in range(7)]
        for dice, bands in ((fitted, {0, 2, 3, 5}), (held, {1, 4})):
            values = [each.real(name, low, high) for each in dice]
            assert {sum(value >= edge for edge in edges) - 1 for value in values} == bands


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A recorder that writes only the truth, and fails at a restart."""
    folder = tmp_path / "scripts" / "incidents"
    folder.mkdir(parents=True)
    (folder / "record.py").write_text(STAND_IN)
    monkeypatch.setattr(make_incidents, "EVERY", ("bursts", "restart"))
    monkeypatch.setattr(make_incidents, "ROOT", tmp_path)
    monkeypatch.setattr(make_incidents, "engine_python", lambda name: sys.executable)
    return tmp_path / "made"


def test_what_is_made_is_not_made_again_and_failures_are_said(stand_in, capsys) -> None:
    assert main(["bursts", "--into", str(stand_in), "--seeds", "3", "--lanes", "2"]) == ALL_MADE
    truths = [json.loads((stand_in / f"bursts-{seed}/truth.json").read_text()) for seed in range(3)]
    assert [truth["held_out"] for truth in truths] == [False, False, True]
    changed = ["--changed", "--watermark 0.05", "--into", str(stand_in / "changed")]
    assert main(["bursts", "--seeds", "1", *changed]) == ALL_MADE
    truth = json.loads((stand_in / "changed/bursts-0/truth.json").read_text())
    assert truth["changed"] == ["--watermark", "0.05"]
    capsys.readouterr()
    assert main(["--into", str(stand_in), "--seeds", "3"]) == SOME_FAILED
    said = capsys.readouterr()
    assert "3 of 6 are made" in said.out
    assert "bursts" not in said.out
    assert "it broke" in said.err


def test_what_cannot_start_says_why(stand_in, monkeypatch, capsys) -> None:
    assert main(["nonsense"]) == CANNOT_START
    assert "there are bursts, restart" in capsys.readouterr().err
    monkeypatch.setattr(make_incidents, "engine_python", engine_python)
    monkeypatch.setenv("PAGEDBENCH_ENGINES", str(stand_in))
    assert main(["bursts"]) == CANNOT_START
    assert "make engine-vllm" in capsys.readouterr().err


def test_a_recording_is_the_same_each_time_and_can_be_read(tmp_path) -> None:
    # Starts the engine, where it is built: seconds, most of them for its imports.
    try:
        engine_python("vllm")
    except SubjectError as reason:
        pytest.skip(str(reason))
    assert main(["restart", "--seeds", "1", "--into", str(tmp_path)]) == ALL_MADE
    made, kept = tmp_path / "restart-0", ROOT / "tests" / "data" / "incidents" / "restart-0"
    for file in ("metrics.prom.gz", "kv_events.jsonl.gz", "client_requests.csv.gz", "truth.json"):
        assert (made / file).read_bytes() == (kept / file).read_bytes(), "make the fixtures anew"
    seen = read_all([made / "metrics.prom.gz", made / "kv_events.jsonl.gz"])
    assert {"running", "waiting", "usage", "ttft_s", "http"} <= {each.name for each in seen.series}
    assert seen.events is not None
    assert len(seen.events) > 100
