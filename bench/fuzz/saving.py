"""A finding on disk: its trace, and a test of it."""

from __future__ import annotations

from pathlib import Path

from bench.fuzz.film import Reel
from bench.fuzz.pytest_file import pytest_file
from bench.fuzz.record import FindingRecord, Trace, replay_command, slug


def saved(trace: Trace, folder: Path, *, film: Reel | None = None) -> FindingRecord:
    """Write a finding to a folder; where that fails, it is only said."""
    path = folder / f"{slug(trace)}.json"
    test = folder / f"test_{slug(trace).replace('-', '_')}.py"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(trace.to_json())
        test.write_text(pytest_file(trace))
    except OSError:
        # A full disk is no reason to lose the finding.
        return FindingRecord(trace=trace, saved_to=None, pytest_file=None, replay=None, film=film)
    return FindingRecord(
        trace=trace,
        saved_to=str(path),
        pytest_file=str(test),
        replay=replay_command(path, trace.allocator),
        film=film,
    )
