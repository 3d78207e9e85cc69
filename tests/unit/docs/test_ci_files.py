"""The ready CI files: their steps, run by a shell with a gate that ends as it is told to."""

import os
import shlex
import subprocess

import pytest
import typer
import yaml

from bench.cli import app
from helpers.places import DOCS, ROOT

CI = DOCS / "ci"
GITHUB = yaml.safe_load((CI / "github.yml").read_text())
GITLAB = yaml.safe_load((CI / "gitlab.yml").read_text())

# Writes its arguments to a file, its reports where they are asked for, and ends as told.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > arguments
while [ $# -gt 0 ]; do
  case "$1" in --json|--markdown|--junit) echo "report of $1" > "$2"; shift ;; esac
  shift
done
exit "$CODE"
"""


def steps(job):
    return {step["name"]: step for step in GITHUB["jobs"][job]["steps"] if "name" in step}


@pytest.fixture
def folder(tmp_path):
    """A checkout in which `make venv` has been, with the stand-in as pagedbench."""
    command = tmp_path / ".venv" / "bin" / "pagedbench"
    command.parent.mkdir(parents=True)
    command.write_text(STAND_IN)
    command.chmod(0o755)
    return tmp_path


def run(script, folder, *, code=0, **environment):
    """As GitHub runs a step: bash that stops at the first failure."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "CODE": str(code), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def accepted(arguments):
    """Whether the real command takes these arguments: parsed, and not run."""
    command = typer.main.get_command(app).commands[arguments[0]]
    with command.make_context(arguments[0], list(arguments[1:])) as context:
        return context.params


COMMANDS = {
    "github gate": (steps("gate")["Gate"]["run"], GITHUB["env"]),
    "github noise": (steps("noise")["Noise"]["run"], GITHUB["env"]),
    "gitlab gate": (GITLAB["gate"]["script"][-1], GITLAB["gate"]["variables"]),
    "gitlab noise": (GITLAB["gate-noise"]["script"][-1], GITLAB["gate-noise"]["variables"]),
}
BASE_SHA = {"CI_MERGE_REQUEST_DIFF_BASE_SHA": "a" * 40}


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_are_those_of_the_command(name, folder):
    script, variables = COMMANDS[name]
    ran = run(script, folder, **{**variables, **BASE_SHA})
    assert ran.returncode == 0, ran.stderr
    params = accepted((folder / "arguments").read_text().splitlines())
    bases = {"github gate": "HEAD^1", "gitlab gate": "a" * 40}
    assert params["base"] == bases.get(name)
    assert params["aa"] == ("noise" in name)
    assert params["json"] is not None
    assert params["markdown"] is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_ones_own_reach_the_gate(name, folder):
    script, variables = COMMANDS[name]
    own = {"GATE_ARGS": "--benchmark attention --pairs 16"}
    run(script, folder, **{**variables, **BASE_SHA, **own})
    params = accepted((folder / "arguments").read_text().splitlines())
    assert list(params["benchmark"]) == ["attention"]
    assert params["pairs"] == 16


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 130])
@pytest.mark.parametrize("policy", ["warn", "block"])
def test_github_step_ends_as_the_gate_but_for_a_warning(code, policy, folder):
    script, variables = COMMANDS["github gate"]
    ran = run(script, folder, code=code, **{**variables, "INCONCLUSIVE": policy})
    assert ran.returncode == (0 if (code, policy) == (3, "warn") else code)


@pytest.mark.parametrize("code", [0, 1, 3, 4, 5])
def test_noise_is_never_red_for_being_noisy(code, folder):
    script, variables = COMMANDS["github noise"]
    assert run(script, folder, code=code, **variables).returncode == (0 if code == 3 else code)


def test_gitlab_lets_inconclusive_pass_and_nothing_else():
    for job in ("gate", "gate-noise"):
        assert GITLAB[job]["allow_failure"] == {"exit_codes": [3]}
    assert GITLAB["gate"]["artifacts"]["reports"]["junit"] in GITLAB["gate"]["script"][-1]


@pytest.mark.parametrize(("job", "report"), [("gate", "gate.md"), ("noise", "noise.md")])
def test_summary_is_the_report_and_lacks_nothing_without_one(job, report, folder):
    summary = folder / "summary"
    script = steps(job)["Summary"]["run"]
    assert run(script, folder, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert not summary.exists()
    (folder / report).write_text("the report\n")
    assert run(script, folder, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert summary.read_text() == "the report\n"


def test_comment_edits_the_last_one(folder):
    gh = folder / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" > said\n')
    gh.chmod(0o755)
    path = f"{gh.parent}{os.pathsep}{os.environ['PATH']}"
    script = steps("gate")["Comment"]["run"]
    assert run(script, folder, PATH=path, PULL_REQUEST="7").returncode == 0
    assert not (folder / "said").exists()
    (folder / "gate.md").write_text("the report\n")
    assert run(script, folder, PATH=path, PULL_REQUEST="7").returncode == 0
    said = (folder / "said").read_text().split()
    assert said == shlex.split("pr comment 7 --edit-last --create-if-none --body-file gate.md")


def test_reports_are_kept_whatever_the_verdict():
    for name in ("Summary", "Comment", "Keep the record"):
        assert "always()" in steps("gate")[name]["if"]
    assert GITLAB["gate"]["artifacts"]["when"] == "always"


def test_no_step_of_a_pull_request_writes_its_text_into_a_script():
    """What the author of a pull request can choose comes by the environment, or not at all."""
    for job in GITHUB["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")


def test_jobs_install_by_a_target_that_exists():
    makefile = (ROOT / "Makefile").read_text()
    for script in (steps("gate")["Install"]["run"], GITLAB["gate"]["script"][0]):
        program, target = script.split()
        assert program == "make"
        assert f"\n{target}:" in makefile
