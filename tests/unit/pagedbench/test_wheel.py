"""The wheel installs one name, works beside anybody's `kernels`, and hides no user's rooms."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from helpers.places import ROOT

ROOMS = ("reference", "subjects", "paged", "kernels", "bench")

pytestmark = pytest.mark.slow

KERNEL = """
import kernels.mine  # the user's own package has the name of a room
from pagedbench import Capabilities, declares

@declares(Capabilities(variants=frozenset(), kv_dtypes=frozenset(), dtypes=frozenset({"fp32"})))
def attention(batch):
    kernels.mine.attention(batch)
"""


def ran(*command: object, cwd: Path, **environment: str) -> str:
    """Output of a command that has to end well, in an environment without this checkout."""
    run = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout: building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for room in ("pagedbench", *ROOMS):
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    ran(sys.executable, "-c", build, folder, cwd=tree)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, beside a package called kernels."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = Path(
        sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    )
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    # What pagedbench depends on is this environment's; what is installed editable there is not.
    here = [place for place in sys.path if Path(place).name == "site-packages"]
    (packages / "beside.pth").write_text("".join(f"{place}\n" for place in here))
    (packages / "kernels").mkdir()
    (packages / "kernels" / "__init__.py").write_text("whose = 'Hugging Face'\n")
    return folder / "bin"


def test_the_only_name_that_is_installed_is_ours(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"pagedbench"}
    assert "pagedbench/kernels/compiled/baselines/triton-3.9.0.json" in names
    assert not [name for name in names if "tests" in name or "studies" in name]


def test_commands_run_beside_a_package_called_kernels(installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    start = [python, "-m", "pagedbench"]
    assert "--problems" in ran(*start, "check", "--help", cwd=tmp_path, COLUMNS="100")
    assert "paged:block=16" in ran(*start, "waste", "--requests", "50", cwd=tmp_path)
    said = ran(
        *start, "check", "--kernel", "triton", "--problems", "2", "--no-timing", cwd=tmp_path
    )
    assert "right" in said
    assert "no finding" in ran(*start, "fuzz", "--examples", "5", cwd=tmp_path)
    theirs = "import pagedbench, kernels; pagedbench.Capabilities; print(kernels.whose)"
    assert ran(python, "-c", theirs, cwd=tmp_path) == "Hugging Face\n"


def test_compiled_kernels_are_found_by_their_names(installed: Path, tmp_path: Path) -> None:
    command = ("compile", "--target", "sm_90", "--kernel", "copy")
    said = ran(installed / "python", "-m", "pagedbench", *command, cwd=tmp_path)
    assert "same" in said


def test_users_rooms_are_theirs(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    right = "from pagedbench.paged.attention import paged_attention as attention\n"
    (tmp_path / "kernels" / "mine.py").write_text(right)
    (tmp_path / "my_kernel.py").write_text(KERNEL)
    options = ("--kernel", "my_kernel.py:attention", "--problems", "3", "--no-timing")
    said = ran(installed / "python", "-m", "pagedbench", "check", *options, cwd=tmp_path)
    assert "right" in said


def test_short_name_of_a_room_is_refused_by_the_build(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['setup.py', '--version']; sys.path.insert(0, '.'); "
        "from pathlib import Path; import setup; "
        "setup.inside_the_package('import kernels\\nprint(kernels.x)\\n', Path('a.py'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "a.py:1: `import kernels` binds the room's short name" in run.stderr


def test_distribution_is_the_one_that_runs_these_tests() -> None:
    entry = importlib.metadata.entry_points(group="console_scripts")["pagedbench"]
    assert entry.value == "pagedbench.__main__:main"
