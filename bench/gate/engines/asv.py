"""Releases as asv results, with an engine's release where asv has a commit.

asv's results belong to commits of a repository. Here it is one that is made for them: a branch for
each allocator, and on it an empty commit with a tag for each release, in their order. `asv publish`
in the folder draws the history of the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.asv.series import Exported, LeftOut, Series, series_name, write
from bench.gate.engines.history import by_allocator
from bench.gate.engines.record import EnginesRecord, Release
from bench.gate.engines.words import RACES, raced, version
from bench.machine.environment import GateEnvironment
from reference.errors import BadInput

DAY_S: Final = 86_400
"""Between two releases, from the first day of 2000: asv draws over time, and a wheel does not say
when it was released."""

FIRST_S: Final = 946_684_800

WHO: Final = {
    f"GIT_{who}_{what}": f"pagedbench{'' if what == 'NAME' else '@localhost'}"
    for who in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}


def export(record: EnginesRecord, folder: Path) -> Exported:
    """Write results, their repository and asv's configuration; what is left out is said.

    Doing it twice adds nothing. Raises BadInput: asv is not installed, or git cannot be run.
    """
    repo = folder / "releases"
    where = GateEnvironment.here(device=record.cpu, driver=None, timer="process_time", threads=1)
    paths, left_out, branches = [], [], []
    for allocator, releases in by_allocator(record.releases).items():
        branch = series_name(allocator)
        known = [each for each in releases if each.requirements]
        left_out += [
            f"{each.name}: it is no release, but what is installed"
            for each in releases
            if not each.requirements
        ]
        if known:
            branches.append(branch)
        for each, commit in zip(known, _commits(repo, branch, known), strict=True):
            try:
                path = write(
                    _series(each, branch),
                    folder / "results",
                    commit=commit,
                    dirty=False,
                    where=where,
                    started_at=f"{record.measured_on}T00:00:00+00:00",
                    repo=repo,
                )
            except LeftOut as why:
                left_out.append(f"{each.name}: {why}")
            else:
                paths.append(path)
    configuration = {
        "version": 1,
        "project": "KV-cache allocators of engines, by release",
        "repo": "releases",
        "branches": branches,
        "results_dir": "results",
        "html_dir": "html",
    }
    (folder / "asv.conf.json").write_text(json.dumps(configuration, indent=4) + "\n", "utf-8")
    return Exported(tuple(dict.fromkeys(paths)), tuple(left_out))


def _series(release: Release, allocator: str) -> list[Series]:
    found = []
    for caching in (False, True):
        on = "on" if caching else "off"
        counted = release.bytecodes_with(caching=caching)
        if counted is not None:
            found.append(
                Series(
                    f"gate.{allocator}.bytecodes_caching_{on}",
                    "bytecodes",
                    f"bytecodes for each operation, caching {on}",
                    value=counted.per_operation,
                )
            )
    for heat in RACES:
        race = raced(release, heat)
        if race is not None and race.ratio is not None:
            on = "on" if heat.caching else "off"
            found.append(
                Series(
                    f"gate_more.{allocator}.rate_{heat.stream}_caching_{on}",
                    "of the anchor's",
                    f"operations per CPU-second, {heat.stream}, caching {on}",
                    value=race.ratio.median,
                )
            )
    for check, shows in release.shows.items():
        name = f"gate.{allocator}.fails.{series_name(check)}"
        found.append(Series(name, "findings", f"fails {check}", value=float(shows)))
    return found


def _commits(repo: Path, branch: str, releases: Sequence[Release]) -> list[str]:
    """A commit for each release: the same ones each time, whatever was there before."""
    if not (repo / ".git").exists():
        repo.mkdir(parents=True, exist_ok=True)
        _git(repo, "init", "--quiet")
    tree = _git(repo, "mktree")
    commits: list[str] = []
    for number, release in enumerate(releases):
        date = f"{FIRST_S + number * DAY_S} +0000"
        dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        parent = ["-p", commits[-1]] if commits else []
        commit = _git(repo, "commit-tree", tree, *parent, "-m", release.name, more=dates)
        _git(repo, "tag", "--force", f"{branch}-{version(release.name)}", commit)
        commits.append(commit)
    if commits:
        _git(repo, "update-ref", f"refs/heads/{branch}", commits[-1])
    return commits


def _git(repo: Path, *arguments: str, more: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        ["git", "-C", str(repo), *arguments],
        input="",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **WHO, **(more or {})},
    )
    if done.returncode:
        raise BadInput(f"git {arguments[0]} in {repo}: {done.stderr.strip()}")
    return done.stdout.strip()
