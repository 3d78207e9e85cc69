"""What can be found out about this machine, this interpreter and this checkout.

Without pydantic and torch: a process that is timed should not wait for them.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import runpy
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[2]
"""Folder that holds the rooms: the checkout, or site-packages."""


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or that it is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def git(*arguments: str, folder: Path | None = None) -> str | None:
    """Ask git about a checkout, ours if no folder is given; None where it has no answer."""
    folder = ROOT if folder is None else folder
    if not (folder / ".git").exists():  # it may lie in the checkout of somebody else
        return None
    try:
        # In a session of its own: a Ctrl-C of the terminal is for us, not for git.
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            start_new_session=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def commit_of(folder: Path | None = None) -> str | None:
    """Full hash of what is checked out; None where the folder is no checkout."""
    return git("rev-parse", "HEAD", folder=folder)


def has_changes(folder: Path | None = None) -> bool | None:
    """Whether files that git knows were changed since; None where the folder is no checkout."""
    status = git("status", "--porcelain", "--untracked-files=no", folder=folder)
    return None if status is None else bool(status)


def cpu_name() -> str:
    """Name the processor, as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def torch_built_for(what: str) -> str | None:
    """Version of `cuda` or `hip` that torch was built for, without importing torch; None: none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version = Path(spec.origin).with_name("version.py")
    built: str | None = runpy.run_path(str(version)).get(what) if version.is_file() else None
    return built


def present_device(name: str) -> Literal["cpu", "cuda"]:
    """What --device comes to on this machine. Raises BadInput.

    A torch that is built for the CPU is not imported: it takes a second.
    """
    from reference.errors import BadInput  # the gate's worker imports this file before its rooms

    if name not in {"auto", "cpu", "cuda"}:
        raise BadInput(f"--device {name}: choose cpu, cuda or auto")
    if name == "cpu":
        return "cpu"
    if torch_built_for("cuda") or torch_built_for("hip"):
        import torch

        if torch.cuda.is_available():
            return "cuda"
    if name == "cuda":
        raise BadInput(f"--device cuda: torch {version_of('torch')} finds none; use --device cpu")
    return "cpu"


FACTS: Final[Mapping[str, Callable[[], Any]]] = {
    **{
        name: partial(version_of, name)
        for name in ("pagedbench", "torch", "triton", "numpy", "hypothesis")
    },
    "python": platform.python_version,
    "platform": platform.platform,
    "cpu": cpu_name,
    "cores": lambda: len(os.sched_getaffinity(0)),
    "cuda": partial(torch_built_for, "cuda"),
    "commit": commit_of,
    "dirty": has_changes,
}
"""How a field of an environment is found, by its name; see `bench.machine.environment`."""


def facts(names: Iterable[str]) -> dict[str, Any]:
    """Those of the names that are in `FACTS`, and what is found out about them."""
    return {name: FACTS[name]() for name in names if name in FACTS}
