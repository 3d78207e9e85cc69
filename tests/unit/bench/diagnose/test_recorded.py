"""Recordings of vLLM's own engine with known faults, made by `make incidents ARGS=--fixtures`."""

import gzip
import json
from pathlib import Path

import pytest

from bench.diagnose.readers import read_all
from bench.diagnose.run import diagnose
from helpers.places import ROOT
from scripts.make_incidents import FIXTURES

RECORDED = ROOT / "tests" / "data" / "incidents"
SEEN = ("metrics.prom.gz", "kv_events.jsonl.gz", "server.log.gz")


def folders() -> list[Path]:
    return sorted(RECORDED.iterdir())


def test_all_are_there_small_and_of_no_machine() -> None:
    assert [folder.name for folder in folders()] == sorted(f"{name}-0" for name in FIXTURES)
    files = [file for folder in folders() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) < 3_000_000
    for file in files:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
        assert not any(path in text for path in ("/home/", "/tmp/", "site-packages"))


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_the_cause_is_found(folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    files = [folder / name for name in SEEN if (folder / name).exists()]
    found = {cause.mode for cause in diagnose(read_all(files)).causes}
    assert found == set(truth["modes"]) - {"healthy", "nothing_shared"}
