"""What `make peers` runs, and how it says what came of it."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import run_peers
from scripts.run_peers import KNOWN, PEERS, RECORDS
from subjects.attention.resolve import BUILT_IN

RECORD = {
    "verdict": "as expected",
    "kernels": [
        {
            "problems": 1200,
            "checks": {
                "memory": {"not run": 1200},
                "truth": {"passed": 1190, "failed as expected": 10, "not supported": 3},
                "alone": {"passed": 70},
            },
        }
    ],
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / KNOWN).mkdir(parents=True)
    monkeypatch.setattr(run_peers, "ROOT", tmp_path)
    monkeypatch.setattr(run_peers.torch.cuda, "is_available", lambda: False)
    return tmp_path


def stubbed(
    monkeypatch: pytest.MonkeyPatch, checkout: Path, codes: dict[str, int]
) -> list[list[str]]:
    """Replace what is run: it leaves a record, unless its exit code is that of a usage error."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        calls.append(command[1:])
        peer = command[command.index("--kernel") + 1]
        code = codes.get(peer, 0)
        if code != 2:
            (checkout / RECORDS / f"{peer}.json").write_text(json.dumps(RECORD))
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["run_peers.py", *arguments])
    return run_peers.main()


def test_the_peers_are_those_that_check_knows() -> None:
    ours = {"torch", "torch-latent", "triton", "triton-latent", "triton-cascade"}
    ours |= {
        f"{room}-{kind}" for room in ("torch", "triton") for kind in ("merge", "write", "copy")
    }
    assert {*PEERS} == BUILT_IN.keys() - ours
    assert {*PEERS} >= run_peers.NEED_A_GPU | run_peers.NEED_THE_CPU
    root = Path(run_peers.__file__).parents[1]
    assert {path.stem for path in (root / KNOWN).glob("*.toml")} <= {*PEERS}


def test_each_is_checked_with_what_is_known_of_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / KNOWN / "flex.toml").touch()
    calls = stubbed(monkeypatch, checkout, {})
    assert run(monkeypatch, "--problems", "9", "--seed", "3", "--lanes", "1") == 0
    asked = {call[call.index("--kernel") + 1]: call for call in calls}
    theirs = [f"vllm-{kind}" for kind in ("unified", "diffkv", "mla", "sparse", "merge", "write")]
    theirs += [f"sglang-{kind}" for kind in ("decode", "mla", "extend", "merge")]
    assert list(asked) == ["sdpa", "flex", *theirs, "flashinfer-merge", "vllm-cpu"]
    assert asked["sdpa"][:5] == ["check", "--kernel", "sdpa", "--problems", "9"]
    assert [name for name, call in asked.items() if "--expected" in call] == ["flex"]
    assert [name for name, call in asked.items() if "--device" in call] == ["vllm-cpu"]
    lines = capsys.readouterr().out.splitlines()[-19:]
    assert lines[0].split() == ["sdpa", "1,200", "1,270", "10", "0", "as", "expected"]
    assert lines[-1].endswith("not run: no GPU")


def test_a_peer_that_fails_does_not_keep_the_others_from_being_checked(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = stubbed(monkeypatch, checkout, {"sdpa": 2, "flex": 1})
    assert run(monkeypatch, "sdpa", "flex", "vllm-cpu") == 2
    assert len(calls) == 3
    assert "no record" in capsys.readouterr().out


def test_an_older_record_is_not_taken_for_a_new_one(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubbed(monkeypatch, checkout, {})
    assert run(monkeypatch, "sdpa") == 0
    stubbed(monkeypatch, checkout, {"sdpa": 2})
    assert run(monkeypatch, "sdpa") == 2


def test_an_unknown_peer_is_refused_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "sdap")
    assert "choose from sdpa, flex" in capsys.readouterr().err
