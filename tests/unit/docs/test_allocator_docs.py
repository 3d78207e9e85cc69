"""The pages about allocators say what the code says."""

import re
from pathlib import Path

import pytest

from bench.fuzz.record import read_known, read_trace
from helpers.places import ROOT
from reference.allocator.machine import CHECKS
from scripts.run_releases import RELEASES
from subjects.allocators.resolve import BUILT_IN

CONTRACT = (ROOT / "docs" / "allocator-contract.md").read_text()
FINDINGS = (ROOT / "docs" / "findings.md").read_text()
TRACES = sorted((ROOT / "docs" / "findings").glob("*.json"))


def test_the_table_of_checks_is_that_of_the_code() -> None:
    section = CONTRACT.partition("## The checks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| (.+) \|$", section, re.MULTILINE)
    assert dict(rows) == {"check": "what must hold"} | dict(CHECKS)


def test_the_table_of_engines_is_that_of_the_code() -> None:
    section = CONTRACT.partition("## Engines")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE) == list(BUILT_IN)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_trace_of_an_engine_is_whole_and_is_written_about(path: Path) -> None:
    trace = read_trace(path)
    assert trace.allocator.version, "the released version is part of a finding"
    assert trace.check in CHECKS
    assert read_known([path.parent], trace.allocator.name)[str(path)] == trace.finding
    assert f"docs/findings/{path.name}" in FINDINGS


def test_every_replay_of_the_page_is_there() -> None:
    replays = re.findall(r"docs/findings/[^\s:]+", FINDINGS)
    assert len(replays) >= len(TRACES) > 0
    assert [replay for replay in replays if not (ROOT / replay).is_file()] == []


def test_the_page_of_releases_has_all_of_them_and_its_replays_are_there() -> None:
    page = (ROOT / "docs" / "releases.md").read_text()
    for release in (each for releases in RELEASES.values() for each in releases):
        assert f"| {release.replace('==', ' ')} |" in page
    traces = {ROOT / each for each in re.findall(r"docs/findings/releases/\S+", page)}
    assert traces == set((ROOT / "docs" / "findings" / "releases").glob("*.json")) != set()
    for path in traces:
        trace = read_trace(path)
        assert f"--engine-python {trace.allocator.engine_python}\n" in page
