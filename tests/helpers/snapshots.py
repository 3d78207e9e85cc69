"""Reports as they are, in `tests/snapshots`: a change shows in the diff, and is read there."""

import os

from helpers.places import ROOT

SNAPSHOTS = ROOT / "tests" / "snapshots"


def assert_as_stored(name: str, text: str) -> None:
    """Hold a text against what is stored; PAGEDBENCH_FREEZE=1 stores it."""
    file = SNAPSHOTS / name
    if os.environ.get("PAGEDBENCH_FREEZE") == "1":
        file.write_bytes(text.encode())
    assert text == file.read_bytes().decode()
