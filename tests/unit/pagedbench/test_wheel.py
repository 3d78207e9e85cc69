"""The wheel installs one name, works beside anybody's `kernels`, and hides no user's rooms."""

import importlib.metadata
import os
import re
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

# Hugging Face's `kernels`, and what importing it needs besides our own requirements.
HUGGING_FACE = (
    "kernels==0.17.2",
    "huggingface_hub==2.4.0",
    "httpx2==2.16.2",
    "httpcore2==2.16.2",
    "h11==0.16.0",
    "idna==3.20",
    "truststore==0.10.5",
    "tqdm==4.70.1",
)

LEFT_OUT = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
"""What was compiled by one command is there for the next."""

pytestmark = pytest.mark.slow

KERNEL = """
import kernels.mine  # the user's own package has the name of a room
from pagedbench import Capabilities, declares

@declares(Capabilities(variants=frozenset(), kv_dtypes=frozenset(), dtypes=frozenset({"fp32"})))
def attention(batch):
    kernels.mine.attention(batch)
"""


def ran(*command: object, cwd: Path, ends: int = 0, **environment: str) -> str:
    """Output of a command that has to end so, in an environment without this checkout."""
    run = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: os.environ[name] for name in os.environ if name not in LEFT_OUT} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == ends, run.stdout + run.stderr
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
    """The folder of an environment with the wheel, beside Hugging Face's kernels or a stand-in."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = packages_of(folder)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    pip += ["--retries=1", "--timeout=10", f"--target={packages}"]
    both = subprocess.run([*pip, wheel, *HUGGING_FACE], capture_output=True, check=False)
    if both.returncode:  # no index, or one without them
        ran(*pip, "--no-index", wheel, cwd=folder)
        (packages / "kernels").mkdir()
        (packages / "kernels" / "__init__.py").write_text("get_kernel = 'a stand-in'\n")
    # What pagedbench depends on is this environment's; what is installed editable there is not.
    here = [place for place in sys.path if Path(place).name == "site-packages"]
    (packages / "beside.pth").write_text("".join(f"{place}\n" for place in here))
    return folder


def gate_once(start: list[object], folder: Path) -> None:
    """The gate of the repository that `init` set up: a call more is worse, whatever the time."""
    with (folder / "pyproject.toml").open("a") as table:
        table.write("problems = 3\n")
    git = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org")
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message=first")):
        ran(*git, *words, cwd=folder)
    pool = folder / "paged_example" / "pool.py"
    first = "        blocks, length = self.tables[sequence]\n        length +="
    assert pool.read_text().count(first) == 1
    pool.write_text(pool.read_text().replace(first, f"        (lambda: 0)()\n{first}"))
    said = ran(*start, "gate", "HEAD", "--benchmark", "pool", cwd=folder, ends=1)
    assert "fail: worse: allocator/paged_example.pool" in said
    assert re.search(r"calls: worse, [\d,]+ to [\d,]+ calls", said)
    assert "against the truth: 1 of 1 subject right" in said
    assert "outputs: 1 of 1 are the same bits" in said


def packages_of(environment: Path) -> Path:
    base = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", vars=base))


def test_the_only_name_that_is_installed_is_ours(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"pagedbench"}
    assert "pagedbench/kernels/compiled/baselines/triton-3.9.0.json" in names
    assert "pagedbench/paged/counting.c" in names
    for folder in ("bench/command/templates", "bench/command/page/assets"):
        files = {file.name for file in (ROOT / folder).iterdir()}
        within = f"pagedbench/{folder}/"
        assert {name.removeprefix(within) for name in names if name.startswith(within)} == files
    assert not [name for name in names if "tests" in name or "studies" in name]


def test_commands_run_beside_a_package_called_kernels(installed: Path, tmp_path: Path) -> None:
    start = [installed / "bin" / "python", "-m", "pagedbench"]
    assert "--problems" in ran(*start, "check", "--help", cwd=tmp_path, COLUMNS="100")
    assert "paged:block=16" in ran(*start, "waste", "--requests", "50", cwd=tmp_path)
    fuzz = ("fuzz", "--examples", "5", "--json", "fuzz.json")
    assert "no finding" in ran(*start, *fuzz, cwd=tmp_path)
    assert "report.html: fuzz" in ran(*start, "report", "fuzz.json", cwd=tmp_path)
    assert "paged: no finding in 5 programs." in (tmp_path / "report.html").read_text()
    assert "written   pyproject.toml" in ran(*start, "init", cwd=tmp_path)
    assert "paged_example.pool:make: 5" in ran(*start, "fuzz", "--examples", "5", cwd=tmp_path)
    gate_once(start, tmp_path)
    # Of a smaller one a thousand are called in turn, until they are larger than the cache.
    short = ("--batch", "1x2048", "--subject", "torch", "--rounds", "1", "--no-compile")
    assert "right in" in ran(*start, "throughput", *short, cwd=tmp_path)
    compiled = ran(*start, "compile", "--target", "sm_90", "--kernel", "copy", cwd=tmp_path)
    assert "same" in compiled  # the stored figures are found by the names in a checkout


def test_package_called_kernels_is_hugging_faces(installed: Path, tmp_path: Path) -> None:
    theirs = "import pagedbench, kernels; pagedbench.Capabilities; print(kernels.get_kernel)"
    said = ran(installed / "bin" / "python", "-c", theirs, cwd=tmp_path, HF_HUB_OFFLINE="1")
    if "stand-in" in said:
        pytest.skip("pip found no `kernels` of Hugging Face's: a stand-in was imported")
    assert said.startswith("<function get_kernel at ")
    assert (packages_of(installed) / "kernels" / "hf_hub.py").is_file()


def test_users_rooms_are_theirs(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    right = "from pagedbench.paged.attention import paged_attention as attention\n"
    (tmp_path / "kernels" / "mine.py").write_text(right)
    (tmp_path / "my_kernel.py").write_text(KERNEL)
    subjects = ("--kernel", "my_kernel.py:attention", "--kernel", "triton")
    options = ("--problems", "2", "--no-timing", "--lanes", "1")
    python = installed / "bin" / "python"
    assert "right" in ran(python, "-m", "pagedbench", "check", *subjects, *options, cwd=tmp_path)


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
