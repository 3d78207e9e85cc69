"""Where a record was made: without it a figure means nothing."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds the rooms: the checkout, or site-packages."""


class Environment(BaseModel):
    """Machine and versions."""

    model_config = ConfigDict(frozen=True)

    pagedbench: str
    python: str
    torch: str
    triton: str
    device: str
    """The GPU's name, or the CPU's."""
    driver: str | None
    """Version of the CUDA driver; None on the CPU."""
    cpu: str
    threads: int
    commit: str | None
    dirty: bool | None
    """Of the checkout that pagedbench runs from, and whether it has uncommitted changes; None where
    it is not a checkout."""


def describe_environment(device: str) -> Environment:
    """Collect the environment of this process for work on `cpu` or `cuda`."""
    import torch  # not above: the versions are wanted without the second that it takes

    status = git("status", "--porcelain", "--untracked-files=no")
    on_gpu, cpu = device == "cuda", cpu_name()
    return Environment(
        pagedbench=version_of("pagedbench"),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=version_of("triton"),
        device=torch.cuda.get_device_name() if on_gpu else cpu,
        driver=_driver() if on_gpu else None,
        cpu=cpu,
        threads=torch.get_num_threads(),
        commit=git("rev-parse", "HEAD"),
        dirty=None if status is None else bool(status),
    )


def version_of(distribution: str) -> str:
    """Version of an installed distribution, or that it is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def git(*arguments: str) -> str | None:
    """Ask git about the checkout that this file lies in; None where there is none, or no git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def cpu_name() -> str:
    """Name the processor, as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    # One line for each GPU, and one driver for all.
    return run.stdout.partition("\n")[0].strip() or None
