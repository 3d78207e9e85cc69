"""Build the environments in which foreign engines run: one of its own for each, in .engines/NAME,
or in the folder that PAGEDBENCH_ENGINES names.

An engine pins its dependencies against ours and against those of the next one. What it needs
stands complete and in exact versions in requirements/engines/NAME.txt, so pip resolves nothing.
PIP_ARGS in the environment is passed on to pip: an extra index that holds CPU builds of torch, say.

Exit codes: 0 every environment is there, 2 cannot start, 4 an environment could not be built.
"""

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements" / "engines"
ENGINES = Path(os.environ.get("PAGEDBENCH_ENGINES") or ROOT / ".engines").absolute()
STAMP = "built-from"

ALL_BUILT = 0
CANNOT_START = 2
BUILD_FAILED = 4


class BuildFailed(Exception):
    """An environment could not be built; the message says why."""


def names() -> list[str]:
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def wanted_stamp(name: str) -> str:
    """What the stamp of an environment says if it is what it would be built as now."""
    digest = hashlib.sha256((REQUIREMENTS / f"{name}.txt").read_bytes()).hexdigest()
    return f"{digest} {platform.python_implementation()} {platform.python_version()}\n"


def state(name: str) -> str:
    """`ready`, `out of date` or `not built`.

    Without a stamp nothing is known about what lies there: it counts as not built. An environment
    outlives the interpreter that it was made with, but is of no use then.
    """
    environment = ENGINES / name
    stamp = environment / STAMP
    if not stamp.is_file() or not python_of(environment).exists():
        return "not built"
    return "ready" if stamp.read_text() == wanted_stamp(name) else "out of date"


def call(*command: str) -> int:
    print(f"$ {shlex.join(command)}", flush=True)
    return subprocess.run(command, check=False).returncode


def build(name: str, pip_args: Sequence[str]) -> None:
    """Build the environment of an engine, in place of one that is there.

    The stamp goes first and comes last: whatever happens in between, what is left counts as not
    built.

    Raises BuildFailed: venv or pip failed.
    """
    environment = ENGINES / name
    requirements = REQUIREMENTS / f"{name}.txt"
    stamp = wanted_stamp(name)
    (environment / STAMP).unlink(missing_ok=True)
    if environment.exists():
        shutil.rmtree(environment)
    code = call(sys.executable, "-m", "venv", str(environment))
    if code:
        raise BuildFailed(
            f"{name}: python -m venv failed with exit code {code}; "
            f"on Debian and Ubuntu it is in the package python3-venv"
        )
    pip = [str(python_of(environment)), "-m", "pip", "--disable-pip-version-check"]
    code = call(*pip, "install", "--no-deps", *pip_args, "-r", str(requirements))
    if code:
        raise BuildFailed(f"{name}: pip failed with exit code {code}, see above")
    (environment / STAMP).write_text(stamp)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build the environments of foreign engines.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="an engine; --list shows them")
    parser.add_argument("--list", action="store_true", help="show the engines and what is built")
    parser.add_argument("--force", action="store_true", help="build again what is up to date")
    options = parser.parse_args(arguments)

    known = names()
    if options.list:
        for name in known:
            print(f"{name:<14} {state(name)}")
        return ALL_BUILT
    unknown = [name for name in options.names if name not in known]
    if unknown or not options.names:
        problem = f"unknown: {', '.join(unknown)}" if unknown else "no engine is named"
        print(f"{problem}; there are {', '.join(known)}", file=sys.stderr)
        return CANNOT_START
    try:
        pip_args = shlex.split(os.environ.get("PIP_ARGS", ""))
    except ValueError as error:
        print(f"PIP_ARGS={os.environ['PIP_ARGS']}: {error}", file=sys.stderr)
        return CANNOT_START

    failures = []
    for name in dict.fromkeys(options.names):
        if state(name) == "ready" and not options.force:
            print(f"{name}: {shown(ENGINES / name)} is up to date")
            continue
        print(f"{name}: building {shown(ENGINES / name)} ({state(name)} so far)", flush=True)
        try:
            build(name, pip_args)
        except BuildFailed as failure:
            failures.append(str(failure))
            print(failure, file=sys.stderr)
        else:
            print(f"{name}: {shown(ENGINES / name)} is ready")
    if len(options.names) > 1 and failures:
        print("\n".join(["", "failed:", *failures]), file=sys.stderr)
    return BUILD_FAILED if failures else ALL_BUILT


if __name__ == "__main__":
    sys.exit(main())
