"""docs/project.md: the defaults of the table are those that are taken."""

import re

from bench.command.project import POINTS, STREAMS, Project
from helpers.places import ROOT

PAGE = (ROOT / "docs" / "project.md").read_text(encoding="utf-8")


def test_defaults_are_as_the_page_says() -> None:
    assert f"| `streams` | `{STREAMS[0]}` |" in PAGE
    assert f"| `problems` | {Project.model_fields['problems'].default} |" in PAGE
    assert len(STREAMS) == 1
    assert [re.findall(r"q\d+", point)[0] for point in POINTS] == ["q1", "q32"]
