"""docs/gate.md says what the code does: defaults, options, exit codes, commands, links."""

import re
import shlex

import pytest
import typer

from bench.cli import app
from bench.gate.configuration import GateConfiguration, read_configuration
from bench.gate.record import Design
from bench.gate.report.deliver import Outputs
from helpers.places import DOCS

TEXT = (DOCS / "gate.md").read_text()
INDENTED = [line.strip() for line in TEXT.splitlines() if line.startswith("    ")]
COMMANDS = [
    part.strip()
    for line in INDENTED
    for part in line.partition("  #")[0].split("&&")
    if part.strip().startswith("pagedbench ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_one_that_is_taken(command):
    _, name, *arguments = shlex.split(command)
    with typer.main.get_command(app).commands[name].make_context(name, arguments) as context:
        assert context.info_name == name


def test_there_are_commands_of_every_kind():
    assert {command.split()[1] for command in COMMANDS} == {"gate", "compare", "history", "import"}


def row(start):
    (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def percents(text):
    return [float(number) / 100 for number in re.findall(r"(\d+(?:\.\d+)?) %", text)]


def numbers(text):
    return tuple(int(number) for number in re.findall(r"\d+", text))


def test_figures_of_the_tests_are_the_defaults():
    design = Design()
    assert percents(row("a slowdown up to")[1]) == [design.margin, design.wall_margin]
    assert percents(row("*pass*")[1]) == [design.equivalence]
    looks = row("looks at")[1]
    assert numbers(looks.partition(" launches")[0]) == design.looks
    assert percents(looks) == [design.alpha]
    assert looks.endswith(f"/ {len(design.looks)}")
    confirm = row("confirmation")[1]
    assert numbers(confirm.partition(",  each")[0].partition(", each")[0]) == design.confirm_looks
    assert percents(confirm) == [design.confirm_alpha]
    assert confirm.endswith(f"/ {len(design.confirm_looks)}")
    assert percents(row("over the suite")[1]) == [design.family_alpha]
    assert percents(row("too noisy")[1]) == [design.quarantine_sd]


def test_stated_false_alarm_rate_is_that_of_the_two_stages():
    design = Design()
    line = next(line for line in TEXT.splitlines() if "**False alarm**" in line)
    assert percents(line)[:3] == pytest.approx(
        [design.alpha, design.confirm_alpha, design.alpha * design.confirm_alpha]
    )


def test_exit_codes_are_those_of_the_help():
    stated = set(re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE))
    help_text = typer.main.get_command(app).commands["gate"].help
    codes = help_text.partition("Exit codes")[2]
    assert stated == set(re.findall(r"\b\d+\b", codes)) == {"0", "1", "2", "3", "4", "5", "130"}


def test_every_report_has_its_row():
    stated = re.findall(r"^\| `--(\w+)", TEXT, re.MULTILINE)
    assert {*stated, "repository"} == {*Outputs.__dataclass_fields__}


def test_example_of_a_configuration_is_one(tmp_path):
    start = INDENTED.index("[tool.pagedbench.gate]")
    file = tmp_path / "pyproject.toml"
    file.write_text("\n".join(INDENTED[start : start + 7]))
    found = read_configuration(file)
    assert found != GateConfiguration()
    assert found.limits == {"calls": 0.01, "waste/*:peak_slots": 0.02}
    assert found.design().equivalence == 0.05
    assert found.compiled_targets == ("sm_80", "sm_90", "gfx942")
