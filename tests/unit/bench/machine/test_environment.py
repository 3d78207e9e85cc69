"""Where a record was made: versions, device, and the checkout's commit."""

import platform
import subprocess
from importlib import metadata

import pytest
import torch

from bench.machine import facts
from bench.machine.environment import (
    Environment,
    FuzzEnvironment,
    WasteEnvironment,
    describe_environment,
)
from bench.machine.facts import ROOT, version_of


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one commit, in place of ours."""
    monkeypatch.setattr(facts, "ROOT", tmp_path)

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    return tmp_path, git


def test_versions_are_those_that_run():
    here = describe_environment("cpu")
    assert torch.__version__.startswith(here.torch)
    assert here.triton == metadata.version("triton")
    assert here.python == platform.python_version()
    assert here.threads == torch.get_num_threads()
    assert here.device == here.cpu
    assert here.driver is None
    assert Environment.model_validate_json(here.model_dump_json()) == here


def test_what_is_not_installed_is_said_to_be():
    assert version_of("pip-of-nobody") == "not installed"
    assert version_of("torch") == metadata.version("torch")
    assert (ROOT / "bench" / "machine" / "facts.py").samefile(facts.__file__)


def test_a_folder_inside_somebody_elses_checkout_is_none(checkout):
    folder, _ = checkout
    (folder / "inside").mkdir()
    assert facts.commit_of(folder) is not None
    assert facts.commit_of(folder / "inside") is None
    assert facts.has_changes(folder / "inside") is None


@pytest.mark.parametrize("kind", [FuzzEnvironment, WasteEnvironment])
def test_every_environment_is_found_without_being_told(kind):
    here = kind.here()
    assert set(here.model_dump()) == set(kind.model_fields)
    assert here.cpu == facts.cpu_name()
    assert kind.here(cpu="another").cpu == "another"


def test_commit_and_dirt_are_the_checkouts(checkout):
    folder, git = checkout
    clean = describe_environment("cpu")
    assert clean.commit == git("rev-parse", "HEAD")
    assert clean.dirty is False
    (folder / "untracked").touch()
    assert describe_environment("cpu").dirty is False
    (folder / "file").write_text("two")
    dirty = describe_environment("cpu")
    assert dirty.dirty is True
    assert dirty.commit == clean.commit


def test_without_a_checkout_or_without_git_nothing_is_claimed(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing here"))
    assert describe_environment("cpu").commit is None
    monkeypatch.undo()
    monkeypatch.setattr(facts, "ROOT", tmp_path / "site-packages")
    here = describe_environment("cpu")
    assert (here.commit, here.dirty) == (None, None)


def test_a_gpu_is_named_with_its_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    program = tmp_path / "nvidia-smi"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for does, driver in (
        ("echo ' 570.1'\necho 570.1", "570.1"),
        ("", None),
        ("exit 9", None),
    ):
        program.write_text(f"#!/bin/sh\n{does}\n")
        here = describe_environment("cuda")
        assert (here.device, here.driver) == ("A GPU", driver)
        assert here.cpu not in {"", "A GPU"}
