"""`pagedbench history`: steps that are there are found with their commits, noise is not one."""

import json
import random

import pytest
from typer.testing import CliRunner

from bench.asv.history import find_steps
from bench.cli import app
from bench.gate.asv import export
from helpers.asv_project import make_project
from helpers.gate_records import benchmark, contestant, counter, environment, gate_record, samples
from reference.errors import BadInput

TIME = "gate.decode.time"
WASTE = "gate.decode.wasted_slots"
HITS = "gate_more.decode.hits"


def measure(project, commit, *, seconds=5e-3, wasted=1000, hits=500, where=None):
    """Store one commit's result: exported as the base of a run whose head is itself."""
    side = contestant(commit, environment=where or environment())
    record = gate_record(
        mode="aa",
        base=side,
        head=side,
        benchmarks=[benchmark("decode", samples=samples(base_s=seconds))],
        counters=[
            counter("decode", base=wasted, head=wasted),
            counter("decode", "hits", base=hits, head=hits, more_is_better=True),
        ],
    )
    (path,) = export(record, project.results, project.folder).paths
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Twelve commits; from the seventh on everything is worse, with 1 % of noise on the times."""
    project = make_project(tmp_path_factory.mktemp("history") / "repo", commits=12)
    noise = random.Random(0)
    for place, commit in enumerate(project.commits):
        late = place >= 6
        measure(
            project,
            commit,
            seconds=(6e-3 if late else 5e-3) * noise.uniform(0.99, 1.01),
            wasted=1010 if late else 1000,
            hits=400 if late else 500,
        )
    return project


def test_planted_step_is_found_between_its_commits_less_of_what_should_grow_being_worse(project):
    found = find_steps(project.results, project.folder)
    assert [step.benchmark for step in found.steps] == [TIME, HITS]
    for step in found.steps:
        assert (step.last_before, step.first_after) == tuple(project.commits[5:7])
        assert (step.points, step.kind) == (12, "worse")
    time, hits = found.steps
    assert time.change == pytest.approx(0.2, abs=0.02)
    assert (hits.before, hits.after) == (500, 400)


def test_threshold_by_name_lets_a_small_exact_step_through(project):
    exact = {r"^gate[.].*wasted": 0.0}
    found = find_steps(project.results, project.folder, thresholds=exact)
    (step,) = (step for step in found.steps if step.benchmark == WASTE)
    assert step.change == pytest.approx(0.01)


def test_noise_alone_gives_no_step(tmp_path):
    project = make_project(tmp_path / "repo", commits=12)
    noise = random.Random(1)
    for commit in project.commits:
        measure(project, commit, seconds=5e-3 * noise.uniform(0.97, 1.03))
    assert find_steps(project.results, project.folder).steps == []


def test_change_of_the_key_is_no_step(tmp_path):
    project = make_project(tmp_path / "repo", commits=8)
    for place, commit in enumerate(project.commits):
        where = environment(torch="2.12.0" if place < 4 else "2.13.0")
        measure(project, commit, seconds=5e-3 if place < 4 else 8e-3, where=where)
    found = find_steps(project.results, project.folder)
    assert found.steps == []
    assert found.series == 2 * 3


def test_commits_of_another_repository_are_said(project, tmp_path):
    other = make_project(tmp_path / "other", commits=1)
    found = find_steps(project.results, other.folder)
    assert found.steps == []
    assert len(found.unknown_commits) == 12


@pytest.mark.parametrize(
    ("pattern", "said"), [("nothing-of-it", "none of 3 series"), ("(", "regular expression")]
)
def test_pattern_that_finds_nothing_is_refused(project, pattern, said):
    with pytest.raises(BadInput, match=said):
        find_steps(project.results, project.folder, pattern=pattern)
    with pytest.raises(BadInput, match="no asv results"):
        find_steps(project.folder, project.folder)


def run(project, *arguments):
    options = ["--config", str(project.folder / "asv.conf.json"), "--repo", str(project.folder)]
    return CliRunner().invoke(app, ["history", *options, *arguments], env={"COLUMNS": "200"})


def test_command_prints_the_steps_and_writes_them(project, tmp_path):
    file = tmp_path / "history.json"
    result = run(project, "--json", str(file))
    assert result.exit_code == 0
    assert f"{project.commits[5][:8]}..{project.commits[6][:8]}, 12 points" in result.output
    assert "2 steps, 2 for the worse, in 3 series over 12 commits" in result.output
    assert [step["benchmark"] for step in json.loads(file.read_text())["steps"]] == [TIME, HITS]


def test_command_chooses(project):
    assert "1 step, 1 for the worse" in run(project, "--benchmark", "hits").output
    assert "0 steps" in run(project, "--benchmark", "wasted", "--worse").output


def test_command_refuses_what_it_cannot_do(project, tmp_path):
    assert run(project, "--benchmark", "(").exit_code == 2
    assert run(project, "--json", str(tmp_path / "no" / "folder.json")).exit_code == 2
    missing = CliRunner().invoke(app, ["history", "--config", str(tmp_path / "asv.conf.json")])
    assert missing.exit_code == 2
    assert "name it, or the folder of results" in " ".join(missing.output.split())
