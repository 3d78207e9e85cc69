"""The gate on a real GPU: a short self-test by events."""

import json
import subprocess
import sys
from pathlib import Path

import torch


def test_identical_code_is_timed_by_events_and_passes_or_stays_open(tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    command = [sys.executable, "-m", "bench.cli", "gate", "--aa", "--device", "cuda"]
    command += ["--benchmark", "gpu/copy", "--benchmark", "gpu/decode[block=16,cold]"]
    command += ["--time-limit", "2", "--json", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in {0, 3}, run.stdout + run.stderr
    record = json.loads(file.read_text())
    where = record["base"]["environment"]
    assert where["timer"] == "cuda_event"
    assert where["device"] == torch.cuda.get_device_name()
    for benchmark in record["benchmarks"]:
        (moved,) = (
            each["base"]
            for each in record["counters"]
            if (each["benchmark"], each["name"]) == (benchmark["key"], "bytes")
        )
        share = moved / benchmark["samples"][0]["base_s"] / (where["copy_gbs"] * 1e9)
        assert 0.05 < share < 1.1, "cold calls cannot be faster than a copy"
