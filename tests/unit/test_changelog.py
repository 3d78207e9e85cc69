"""The changelog of a release is built from its fragments, all of them, and they are then gone."""

import re
import shutil

import pytest

from helpers.places import ROOT

FRAGMENTS = sorted(each for each in (ROOT / "changelog.d").iterdir() if each.name != "README.md")


def test_release_is_built_from_every_fragment(tmp_path) -> None:
    shell = pytest.importorskip("towncrier._shell", reason="pip install towncrier")
    testing = pytest.importorskip("click.testing")
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "changelog.d", tmp_path / "changelog.d")
    # Behind a release there is none of the project's own.
    (tmp_path / "changelog.d" / "+made-up.added.md").write_text("Something new.\n")
    asked = ["build", "--yes", "--version", "9.8.7", "--date", "2026-01-02", "--dir", str(tmp_path)]
    run = testing.CliRunner().invoke(shell.cli, asked)
    assert run.exit_code == 0, run.output
    built = (tmp_path / "CHANGELOG.md").read_text()
    assert "## 9.8.7 (2026-01-02)\n\n### " in built
    said = " ".join(built.split())
    assert "- Something new." in built
    for fragment in FRAGMENTS:
        assert " ".join(fragment.read_text().split()) in said, fragment.name
    assert [each.name for each in (tmp_path / "changelog.d").iterdir()] == ["README.md"]


def test_fragments_are_named_by_their_kind_and_are_sentences() -> None:
    named = re.compile(r"(\+[\w-]+|\d+)\.(added|changed|fixed|measured)\.md")
    assert [each.name for each in FRAGMENTS if not named.fullmatch(each.name)] == []
    assert [each.name for each in FRAGMENTS if each.read_text().rstrip()[-1] not in ".)`"] == []
