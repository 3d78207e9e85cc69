"""A git repository with a few commits, and asv's configuration for it, to publish exports in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AsvProject:
    """Attributes: folder of the repository, hashes of its commits from the first to the last."""

    folder: Path
    commits: list[str]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def html(self) -> Path:
        return self.folder / "html"

    def publish(self) -> str:
        """Run `asv publish`; returns what it printed."""
        run = subprocess.run(
            [sys.executable, "-m", "asv", "publish", "--no-pull"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout


def make_project(folder: Path, *, commits: int) -> AsvProject:
    """A project with a commit a day."""
    folder.mkdir(parents=True, exist_ok=True)
    author = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }

    def git(*arguments: str, day: int = 1) -> str:
        date = f"2026-01-{day:02d}T00:00:00+0000"
        environment = {**os.environ, **author}
        environment |= {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        run = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    hashes = []
    for day in range(1, commits + 1):
        git("commit", "--quiet", "--allow-empty", "--message", f"{folder.name}, day {day}", day=day)
        hashes.append(git("rev-parse", "HEAD"))
    configuration = {
        "version": 1,
        "project": "a-project",
        "repo": ".",
        "branches": ["HEAD"],
        "environment_type": "virtualenv",
        "results_dir": "results",
        "html_dir": "html",
        "env_dir": "env",
        "regressions_first_commits": {"^gate_more[.]": None},
    }
    (folder / "asv.conf.json").write_text(json.dumps(configuration))
    return AsvProject(folder, hashes)
