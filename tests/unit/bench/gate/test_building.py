"""What a side builds: once for the same inputs, kept as files, and ended with the gate."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.gate import building
from bench.gate.building import build, keep_log
from bench.gate.contestant import Side
from helpers import gate_records
from subjects.interpreters import ENVIRONMENTS_VARIABLE

MAKE = "mkdir -p out && cp source out/made && echo more >> source && echo once >> {count}"


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Side]:
    monkeypatch.setenv(ENVIRONMENTS_VARIABLE, str(tmp_path / "environments"))

    def make(name: str, source: str = "a") -> Side:
        tree = tmp_path / name
        (tree / "inner").mkdir(parents=True)
        (tree / "inner" / "source").write_text(source)
        return Side(gate_records.contestant(), tree, sys.executable, tree / "inner")

    return make


def test_the_same_inputs_are_built_once(side: Callable[..., Side], tmp_path: Path) -> None:
    count = tmp_path / "count"
    command = MAKE.format(count=count)
    for name, source, kept in (
        ("one", "a\n", False),
        ("two", "a\n", True),
        ("three", "b\n", False),
    ):
        made = side(name, source)
        found = build(made, command, stopped=bool)
        assert found is not None
        assert (found.failed, found.kept) == (False, kept)
        assert (made.root / "out" / "made").read_text() == source
        assert (made.root / "source").read_text() == f"{source}more\n", (
            "what it changed is kept, too"
        )
    assert build(side("four"), f"{command} ", stopped=bool).kept is False  # type: ignore[union-attr]
    assert count.read_text() == "once\n" * 3


def test_the_sides_interpreter_is_first_on_the_path(side: Callable[..., Side]) -> None:
    made = side("one")
    build(made, 'python -c \'import sys; open("who", "w").write(sys.prefix)\'', stopped=bool)
    assert (made.root / "who").read_text() == sys.prefix


def test_a_build_that_fails_is_not_kept_and_its_output_is(
    side: Callable[..., Side], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        found = build(side(name), "seq 100; echo no luck >&2; exit 3", stopped=bool)
        assert found is not None
        assert (found.failed, found.kept) == (True, False)
        assert found.last_lines.splitlines()[-2:] == ["no luck", "ended with code 3"]
        assert len(found.last_lines.splitlines()) == building.LAST_LINES
    log = keep_log(found, tmp_path, "head")
    assert Path(log).read_text().startswith("1\n2\n")


def test_a_build_ends_with_the_gate(side: Callable[..., Side], tmp_path: Path) -> None:
    began = time.monotonic()
    child = tmp_path / "child"
    command = f"sh -c 'echo $$ > {child}; exec sleep 60' & sleep 60"
    assert build(side("one"), command, stopped=child.exists) is None
    assert time.monotonic() - began < 55
    assert gone(Path("/proc", child.read_text().strip(), "cmdline"))


def test_what_a_build_detaches_ends_with_it(side: Callable[..., Side], tmp_path: Path) -> None:
    child = tmp_path / "child"
    command = (
        f"setsid sh -c 'echo $$ > {child}; exec sleep 60' & while [ ! -s {child} ]; do :; done"
    )
    build(side("one"), command, stopped=bool)
    assert gone(Path("/proc", child.read_text().strip(), "cmdline"))


def gone(command: Path) -> bool:
    """Whether a process that was killed ends, which takes it a moment."""
    for _ in range(600):
        try:
            if "sleep" not in command.read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_the_oldest_goes_first(
    side: Callable[..., Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "MOST_KEPT", 2)
    for name in ("a", "b", "c"):
        build(side(name, name), "echo > made", stopped=bool)
    kept = [each for each in (tmp_path / "environments" / "builds").iterdir() if each.is_dir()]
    assert len(kept) == 2
    assert build(side("again", "c"), "echo > made", stopped=bool).kept  # type: ignore[union-attr]
    assert not build(side("gone", "a"), "echo > made", stopped=bool).kept  # type: ignore[union-attr]
