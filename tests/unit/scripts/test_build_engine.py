"""Engine environments are built once, again when something changed, and never half."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import build_engine
from scripts.build_engine import ALL_BUILT, BUILD_FAILED, CANNOT_START, STAMP, main


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    requirements = tmp_path / "requirements" / "engines"
    requirements.mkdir(parents=True)
    for name in ("fast", "slow"):
        (requirements / f"{name}.txt").write_text(f"{name}-engine==1.0\n")
    monkeypatch.setattr(build_engine, "ROOT", tmp_path)
    monkeypatch.setattr(build_engine, "REQUIREMENTS", requirements)
    monkeypatch.setattr(build_engine, "ENGINES", tmp_path / ".engines")
    monkeypatch.delenv("PIP_ARGS", raising=False)
    return tmp_path


class Commands:
    """What is run instead: venv makes an interpreter, and pip does as it is told here."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.pip: Callable[[], int] = lambda: 0

    def __call__(self, *command: str) -> int:
        self.seen.append(command)
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()
            return 0
        return self.pip()

    def installs(self) -> list[str]:
        return [Path(command[-1]).stem for command in self.seen if "install" in command]


@pytest.fixture(autouse=True)
def commands(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(build_engine, "call", made)
    return made


def test_what_is_up_to_date_is_built_again_only_by_force(
    checkout: Path, commands: Commands
) -> None:
    assert main(["fast"]) == ALL_BUILT
    assert main(["fast", "slow"]) == ALL_BUILT
    assert commands.installs() == ["fast", "slow"]

    left_over = checkout / ".engines" / "fast" / "left-over"
    left_over.touch()
    assert main(["--force", "fast"]) == ALL_BUILT
    assert commands.installs() == ["fast", "slow", "fast"]
    assert not left_over.exists()


def test_new_requirements_and_another_python_build_again(
    monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    main(["fast", "slow"])
    (build_engine.REQUIREMENTS / "fast.txt").write_text("fast-engine==2.0\n")
    assert build_engine.state("fast") == "out of date"
    main(["fast", "slow"])
    assert commands.installs() == ["fast", "slow", "fast"]

    monkeypatch.setattr(build_engine.platform, "python_version", lambda: "3.99.0")
    main(["slow"])
    assert commands.installs() == ["fast", "slow", "fast", "slow"]


def test_an_environment_whose_interpreter_is_gone_is_built_again(
    checkout: Path, commands: Commands
) -> None:
    main(["fast"])
    (checkout / ".engines" / "fast" / "bin" / "python").unlink()
    main(["fast"])
    assert commands.installs() == ["fast", "fast"]


def test_pip_fails_and_the_others_are_built(
    capsys: pytest.CaptureFixture[str], commands: Commands
) -> None:
    codes = iter([1, 0])
    commands.pip = lambda: next(codes)
    assert main(["fast", "slow"]) == BUILD_FAILED
    assert "fast: pip failed with exit code 1" in capsys.readouterr().err
    assert build_engine.state("fast") == "not built"
    assert build_engine.state("slow") == "ready"


def test_an_interrupted_build_leaves_nothing_that_looks_complete(
    checkout: Path, commands: Commands
) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    main(["fast"])
    commands.pip = interrupt
    with pytest.raises(KeyboardInterrupt):
        main(["--force", "fast"])
    assert not (checkout / ".engines" / "fast" / STAMP).exists()
    commands.pip = lambda: 0
    commands.seen.clear()
    assert main(["fast"]) == ALL_BUILT
    assert commands.installs() == ["fast"]


def test_pip_gets_exact_requirements_and_what_the_user_adds(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    monkeypatch.setenv("PIP_ARGS", "--quiet --find-links 'my wheels'")
    main(["fast"])
    pip = commands.seen[-1]
    assert pip[0] == str(checkout / ".engines" / "fast" / "bin" / "python")
    assert pip[pip.index("install") :] == (
        *("install", "--no-deps", "--quiet", "--find-links", "my wheels", "-r"),
        str(checkout / "requirements" / "engines" / "fast.txt"),
    )


@pytest.mark.parametrize("arguments", [["fst"], ["fast", "fst"], []])
def test_unknown_and_missing_names_are_refused_with_those_that_there_are(
    arguments: list[str], capsys: pytest.CaptureFixture[str], commands: Commands
) -> None:
    assert main(arguments) == CANNOT_START
    assert "there are fast, slow" in capsys.readouterr().err
    assert commands.seen == []


def test_unbalanced_pip_args_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], commands: Commands
) -> None:
    monkeypatch.setenv("PIP_ARGS", "--find-links 'my wheels")
    assert main(["fast"]) == CANNOT_START
    assert "PIP_ARGS=" in capsys.readouterr().err
    assert commands.seen == []


def test_the_list_says_what_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    main(["slow"])
    capsys.readouterr()
    assert main(["--list"]) == ALL_BUILT
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert listed == [["fast", "not built"], ["slow", "ready"]]
