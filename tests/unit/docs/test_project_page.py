"""docs/project.md: the table's keys are those that are read, one by one."""

import re

from bench.command.project import POINTS, STREAMS, Project
from helpers.places import ROOT

PAGE = (ROOT / "docs" / "project.md").read_text(encoding="utf-8")


def test_every_key_has_its_row_and_no_other() -> None:
    keys = PAGE.partition("## The keys")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE)
    assert rows == [name for name in Project.model_fields if name != "root"]


def test_defaults_are_as_the_page_says() -> None:
    assert f"| `streams` | `{STREAMS[0]}` |" in PAGE
    assert f"| `problems` | {Project.model_fields['problems'].default} |" in PAGE
    assert len(STREAMS) == 1
    assert [re.findall(r"q\d+", point)[0] for point in POINTS] == ["q1", "q32"]
