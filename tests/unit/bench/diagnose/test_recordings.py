"""Recordings of known cause, where they lie beside the checkout; and what the page says."""

import pytest

from bench.diagnose.findings import FINDINGS
from bench.diagnose.inference import fitted
from bench.diagnose.modes import HEALTHY, MODES
from bench.diagnose.readers import read_all
from bench.diagnose.run import diagnose
from helpers.places import ROOT

INCIDENTS = ROOT.parent / "shared" / "incidents"


def found(recording: str):
    folder = INCIDENTS / recording
    if not folder.is_dir():
        pytest.skip(f"no recordings at {INCIDENTS}")
    names = ("metrics.prom.gz", "kv_events.jsonl.gz", "server.log.gz")
    return diagnose(read_all(folder / name for name in names if (folder / name).is_file()))


@pytest.mark.parametrize(
    ("recording", "cause"),
    [
        ("vllm-0.32.0-virtual/load_spike_then_kv_full", "load_growth"),
        ("vllm-0.32.0-virtual/preemption_thrash", "pool_too_small"),
        ("vllm-0.32.0-virtual/prefix_working_set_too_big", "working_set_too_big"),
        ("vllm-0.32.0-virtual/varying_first_block", "varying_prefix"),
        ("vllm-0.32.0/token_budget_small", "token_budget_small"),
        ("vllm-0.32.0/startup_pool_smaller_than_one_request", "start_refused"),
    ],
)
def test_the_cause_of_a_recording_is_found(recording, cause):
    assert found(recording).causes[0].mode == cause


@pytest.mark.parametrize("name", ["healthy_full_pool", "unique_prompts_no_sharing", "healthy_low"])
def test_a_healthy_recording_is_healthy(name):
    assert found(f"vllm-0.32.0-virtual/{name}").verdict == "healthy"


def test_every_mode_names_findings_and_modes_that_exist():
    for name, mode in MODES.items():
        roles = {*mode.requires, *mode.expects, *mode.allows, *mode.forbids, *mode.unlike.values()}
        assert mode.requires, name
        assert roles <= FINDINGS.keys(), name
        assert {*mode.unlike, *mode.leads_to} <= {HEALTHY, *MODES}, name
    assert fitted().held.keys() <= {HEALTHY, *MODES}


def test_a_mode_is_tested_where_recordings_have_it():
    untested = {name for name, mode in MODES.items() if not mode.recorded}
    assert untested == MODES.keys() - fitted().held.keys()


def test_the_page_has_every_mode():
    page = (ROOT / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | {mode.says} |" in page for name, mode in MODES.items())
