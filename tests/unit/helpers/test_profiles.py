"""The Hypothesis profiles are the ones in force, whatever the surroundings."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import settings

from helpers.places import ROOT
from helpers.profiles import PROFILES, examples

REPORT_PROFILE = """
import json, sys
from helpers.profiles import examples, register_profiles
from hypothesis import settings
register_profiles()
if sys.argv[1:]:
    settings.load_profile(sys.argv[1])
active = examples(50, stateful_step_count=7)
print(json.dumps({
    "examples": active.max_examples,
    "steps": active.stateful_step_count,
    "deadline": active.deadline is not None,
    "derandomize": active.derandomize,
    "database": active.database is not None,
    "print_blob": active.print_blob,
}))
"""


def profile_in_fresh_process(*arguments: str, **variables: str) -> dict[str, object]:
    answer = subprocess.run(
        [sys.executable, "-c", REPORT_PROFILE, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def test_running_session_has_one_of_our_profiles_and_no_deadline() -> None:
    assert settings.get_current_profile_name().partition("-with-")[0] in PROFILES
    assert settings.default.deadline is None
    assert examples(10).deadline is None


@pytest.mark.parametrize(("profile", "expected"), [("quick", 5), ("ci", 50), ("long", 1000)])
def test_profile_scales_the_examples_a_test_asks_for(profile: str, expected: int) -> None:
    report = profile_in_fresh_process(profile)
    assert report["examples"] == expected
    assert report["steps"] == 7


def test_make_test_long_runs_everything_with_the_long_profile() -> None:
    stamps = [f"-o go/.stamp-{step}" for step in ("runtime", "project", "dev")]
    shown = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "--dry-run",
            *" ".join(stamps).split(),
            "test-long",
            "VENV=go",
            "ARGS=-x",
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.endswith("--ignore tests/benchmarks tests -x --hypothesis-profile=long\n")
    assert shown.startswith("OMP_NUM_THREADS=1 go/bin/python -m pytest")


def test_ci_variable_brings_neither_fixed_examples_nor_a_forgotten_database() -> None:
    assert profile_in_fresh_process(CI="true") == {
        "examples": 50,
        "steps": 7,
        "deadline": False,
        "derandomize": False,
        "database": True,
        "print_blob": True,
    }


@pytest.mark.parametrize("count", [0, -3])
def test_asking_for_no_examples_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match=rf"not {count}: pass a positive count"):
        examples(count)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
def test_asking_for_a_gpu_run_without_a_gpu_is_an_error() -> None:
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "tests/unit/helpers/test_profiles.py",
        ],
        cwd=ROOT,
        env={**os.environ, "PAGEDBENCH_TEST_GPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == pytest.ExitCode.USAGE_ERROR
    assert "finds no CUDA device: unset it to run the CPU tests" in answer.stderr
