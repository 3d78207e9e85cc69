"""`make releases`: what it asks for, and the page that it writes."""

from pathlib import Path

import pytest

from bench.gate.engines.kernel_record import KernelSettings
from bench.gate.engines.kernel_run import plan_kernels
from bench.gate.engines.record import Settings
from bench.gate.engines.run import plan_engines
from reference.attention.problem import AttentionProblem
from scripts import run_releases
from subjects.interpreters import distribution


def test_every_release_is_asked_for_and_is_of_its_allocator(tmp_path: Path) -> None:
    asked = run_releases.commands()["allocators"]
    plan = plan_engines(
        [each.partition("=")[2] for each in asked if each.startswith("--allocator=")],
        [each.partition("=")[2] for each in asked if each.startswith("--env=")],
        anchor=run_releases.ANCHOR,
        settings=Settings(),
        store=tmp_path,
    )
    engines = [entry for entry in plan.entries if entry.requirements]
    assert len(engines) >= 25
    for entry in engines:
        (name,) = map(distribution, entry.requirements)
        assert name.removesuffix("-cpu") == entry.subject


def test_kernels_are_judged_where_bugs_are_known(tmp_path: Path) -> None:
    asked = run_releases.commands()["kernels"]
    environments = [each.removeprefix("--env=") for each in asked if each.startswith("--env=")]
    plan = plan_kernels(
        [run_releases.KERNEL], environments, settings=KernelSettings(), store=tmp_path
    )
    assert [entry.name for entry in plan.entries] == environments
    for spec in run_releases.KNOWN_BUGS:
        AttentionProblem.parse(spec)


def test_tables_take_the_place_of_the_last_ones_and_traces_come_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_releases, "ROOT", tmp_path)
    page = tmp_path / "releases.md"
    monkeypatch.setattr(run_releases, "PAGE", page)
    begin, end = run_releases.marks("allocators")
    page.write_text(f"# Before\n\n{begin}\n\nold\n\n{end}\n\nAfter\n")
    findings = tmp_path / run_releases.RECORDS / "findings"
    findings.mkdir(parents=True)
    (findings / "shown.json").write_text("a trace")
    (findings / "of-another-day.json").write_text("a trace")
    tables = tmp_path / run_releases.RECORDS / "allocators.md"
    tables.write_text(f"new: --replay {run_releases.RECORDS / 'findings' / 'shown.json'}\n")
    run_releases.write_page("allocators")
    said = f"new: --replay {run_releases.FINDINGS / 'shown.json'}"
    assert page.read_text() == f"# Before\n\n{begin}\n\n{said}\n\n{end}\n\nAfter\n"
    kept = sorted(path.name for path in (tmp_path / run_releases.FINDINGS).iterdir())
    assert kept == ["shown.json"]
