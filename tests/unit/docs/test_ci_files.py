"""The action, the workflows and the files of `init`: their steps, run by a shell with a gate that
ends as it is told to.
"""

import os
import re
import shlex
import subprocess

import pytest
import typer
import yaml

from bench.cli import app
from bench.command.project import Project
from bench.command.scaffold import ACTION, TEMPLATES
from helpers.places import DOCS, ROOT

ACTION_FILE = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOWS = {
    "ours": yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text()),
    "theirs": yaml.safe_load((TEMPLATES / "github.yml").read_text().replace("@ACTION@", ACTION)),
}
GITLAB = yaml.safe_load((TEMPLATES / "gitlab.yml").read_text())["pagedbench"]
STEPS = {step["name"]: step for step in ACTION_FILE["runs"]["steps"]}
INPUTS = {name: each.get("default", "") for name, each in ACTION_FILE["inputs"].items()}

# Writes its arguments to a file, its reports where they are asked for, and ends as told.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > arguments
while [ $# -gt 0 ]; do
  case "$1" in --json|--html|--markdown|--junit) echo "report of $1" > "$2"; shift ;; esac
  shift
done
exit "$CODE"
"""


@pytest.fixture
def folder(tmp_path):
    """A checkout on a runner, with stand-ins for pagedbench and for what talks to GitHub."""
    programs = {
        "pagedbench": STAND_IN,
        "gh": '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > said\n',
        "python": '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > arguments\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "pagedbench").mkdir()
    return tmp_path


def run(script, folder, *, code=0, **environment):
    """As GitHub runs a step: bash that stops at the first failure."""
    known = {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RUNNER_TEMP": str(folder),
        "CODE": str(code),
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **known, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def step(name, folder, *, code=0, **inputs):
    """A step of the action, with its inputs where its `env` says."""
    values = {**INPUTS, **inputs}
    environment = {}
    for variable, said in STEPS[name].get("env", {}).items():
        expression = re.fullmatch(r"\$\{\{ ([\w.-]+) \}\}", said)[1]
        environment[variable] = values.get(expression.removeprefix("inputs."), "7")
    return run(STEPS[name]["run"], folder, code=code, **environment)


def accepted(arguments):
    """Whether the real command takes these arguments: parsed, and not run."""
    command = typer.main.get_command(app).commands[arguments[0]]
    with command.make_context(arguments[0], list(arguments[1:])) as context:
        return context.params


def arguments(folder):
    return (folder / "arguments").read_text().splitlines()


SERVICES = ("github", "gitlab")


def gate(service, folder, *, args="", code=0):
    if service == "github":
        return step("Gate", folder, code=code, args=args)
    script, variables = GITLAB["script"][-1], {**GITLAB["variables"], "GATE_ARGS": args}
    return run(script, folder, code=code, **variables, CI_MERGE_REQUEST_DIFF_BASE_SHA="a" * 40)


@pytest.mark.parametrize("service", SERVICES)
def test_arguments_are_those_of_the_command(service, folder):
    ran = gate(service, folder, args="--benchmark attention --pairs 16")
    assert ran.returncode == 0, ran.stderr
    params = accepted(arguments(folder))
    assert params["base"] == {"github": "HEAD^1", "gitlab": "a" * 40}[service]
    assert params["github"] == (service == "github")
    assert None not in (params["json"], params["markdown"], params["junit"])
    assert (list(params["benchmark"]), params["pairs"]) == (["attention"], 16)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 130])
@pytest.mark.parametrize("policy", ["warn", "block"])
def test_the_action_ends_as_the_gate_but_for_a_warning(code, policy, folder):
    ran = step("Gate", folder, code=code, inconclusive=policy)
    assert ran.returncode == (0 if (code, policy) == (3, "warn") else code)


@pytest.mark.parametrize(("policy", "code"), [("warn", 0), ("block", 0), ("ignore", 2)])
def test_the_action_knows_two_policies(policy, code, folder):
    ran = step("Inputs", folder, inconclusive=policy)
    assert ran.returncode == code
    assert ("choose warn or block" in ran.stdout) == bool(code)


def test_the_action_installs_itself_and_what_the_subjects_need(folder):
    script = STEPS["Install"]["run"]
    run(script, folder, GITHUB_ACTION_PATH="/the action", REQUIREMENTS="-r own.txt .")
    assert arguments(folder) == ["-m", "pip", "install", "/the action", "-r", "own.txt", "."]


def test_gitlab_lets_inconclusive_pass_and_nothing_else(folder):
    assert GITLAB["allow_failure"] == {"exit_codes": [3]}
    assert GITLAB["artifacts"]["when"] == "always"
    assert GITLAB["artifacts"]["reports"]["junit"] in GITLAB["script"][-1]
    assert gate("gitlab", folder, code=3).returncode == 3


def test_summary_is_the_report_and_lacks_nothing_without_one(folder):
    summary = folder / "summary"
    script = STEPS["Summary"]["run"]
    assert run(script, folder, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert not summary.exists()
    gate("github", folder)
    assert run(script, folder, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert summary.read_text() == "report of --markdown\n"


def test_comment_edits_the_last_one(folder):
    assert step("Comment", folder).returncode == 0
    assert not (folder / "said").exists()
    gate("github", folder)
    assert step("Comment", folder).returncode == 0
    report = folder / "pagedbench" / "gate.md"
    said = shlex.split(f"pr comment 7 --edit-last --create-if-none --body-file {report}")
    assert (folder / "said").read_text().split() == said
    assert report.read_text().endswith("\n[The page to look at](7)\n")
    assert list(STEPS).index("Keep the record") < list(STEPS).index("Comment")


def test_reports_are_kept_whatever_the_verdict(folder):
    for name in ("Summary", "Comment", "Keep the record"):
        assert "always()" in STEPS[name]["if"]
    gate("github", folder, code=1)
    pattern = STEPS["Keep the record"]["with"]["path"].replace("${{ runner.temp }}/", "")
    assert {file.suffix for file in folder.glob(pattern)} == {".json", ".html", ".md", ".xml"}


def test_no_text_of_a_pull_request_is_written_into_a_script():
    """What its author can choose comes by the environment, or not at all."""
    for each in STEPS.values():
        assert "${{" not in each.get("run", "")
    for workflow in WORKFLOWS.values():
        for job in workflow["jobs"].values():
            assert not [each for each in job["steps"] if "${{" in each.get("run", "")]


@pytest.mark.parametrize("whose", WORKFLOWS)
def test_a_workflow_asks_the_action_for_what_it_has(whose):
    uses = {"ours": "./", "theirs": ACTION}[whose]
    jobs = WORKFLOWS[whose]["jobs"].values()
    asked = [each for job in jobs for each in job["steps"] if each.get("uses") == uses]
    assert asked
    for each in asked:
        assert each["with"].keys() <= INPUTS.keys()
    assert WORKFLOWS[whose]["jobs"]["gate"]["permissions"]["pull-requests"] == "write"


def test_our_workflow_runs_everything_by_a_path_that_is_there():
    steps = WORKFLOWS["ours"]["jobs"]["all"]["steps"]
    scripts = [each["run"] for each in steps if "run" in each]
    assert scripts == [".ci/run"]
    assert os.access(ROOT / scripts[0], os.X_OK)
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for file in re.findall(r"requirements: -r (\S+)", text):
        assert (ROOT / file).is_file()


def test_the_page_lists_the_inputs_and_the_keys():
    page = (DOCS / "project.md").read_text()
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")}
    rows = re.findall(r"^\| `(\w+)` \| (\S*) ?\|", sections["The action"], re.MULTILINE)
    assert {name: default.strip("`") for name, default in rows} == INPUTS
    keys = re.findall(r"^\| `(\w+)` \|", sections["The keys"], re.MULTILINE)
    assert keys == [name for name in Project.model_fields if name != "root"]
