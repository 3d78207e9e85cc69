"""Folders of killed runs go; those of runs that live stay."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.gate.temporary import remove_abandoned, temporary_folder

HOLD = """
import sys, time
from bench.gate.temporary import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_gone_however_the_context_ends(places: Path) -> None:
    with temporary_folder() as folder:
        assert folder.parent == places
        (folder / "something").write_text("")
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), temporary_folder() as folder:
        raise KeyboardInterrupt
    assert not folder.exists()


def test_only_what_nobody_holds_is_removed(places: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        folder = Path(child.stdout.readline().strip())
        (places / "pagedbench-gate-of-somebody-else").mkdir()
        assert remove_abandoned(settled_s=0.0) == [], "its run lives"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert folder.is_dir(), "nobody could tidy up"
        assert remove_abandoned() == [], "so young a folder may be about to be locked"
        os.utime(folder / "in-use", (0, 0))
        assert remove_abandoned() == [folder]
        assert not folder.exists()
        assert (places / "pagedbench-gate-of-somebody-else").is_dir()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
