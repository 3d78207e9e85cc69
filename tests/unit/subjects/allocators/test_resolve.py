"""From a name to an allocator: built-in ones, engines' environments, files, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paged.subject import PagedSubject, paged_allocator
from paged.system import CAPABILITIES
from reference.allocator.contract import AllocatorCapabilities, capabilities_of_factory
from reference.allocator.machine import run_program
from reference.allocator.programs import Pool, Program, Step
from reference.system import driving
from subjects.allocators.remote import RemoteFactory
from subjects.allocators.resolve import ADAPTERS, BUILT_IN, open_allocator
from subjects.environments import STAMP, engine_python
from subjects.loading import SubjectError
from subjects.starting import HOME

PROGRAM = Program(
    Pool(num_blocks=4, block_size=2),
    (Step("admit", "a", tokens=(0, 1, 2)), Step("free", "a"), Step("admit", "b", tokens=(0, 1))),
)

PLAIN = """
from paged.subject import paged_allocator

def make(*given, **named):
    return paged_allocator(*given, **named)

def wrong(): ...
wrong.capabilities = {"forks": True}
words = lambda: None
words.capabilities = "fork"
NUMBER = 3
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("plain.py").write_text(PLAIN)
    yield "plain.py"
    sys.modules.pop("subject_plain", None)


@pytest.mark.parametrize("in_process", [False, True])
def test_ours_is_known_by_name(*, in_process: bool) -> None:
    with open_allocator("paged", in_process=in_process) as subject:
        assert (subject.name, subject.version) == ("paged", "")
        assert subject.capabilities == capabilities_of_factory(paged_allocator)
        finding = run_program(subject.factory, PROGRAM, capabilities=subject.capabilities)
        assert finding is None
        assert (subject.factory is paged_allocator) == in_process
        assert isinstance(subject.factory, RemoteFactory) != in_process


def test_a_system_answers_from_its_own_process_and_serves_no_stream() -> None:
    with open_allocator("paged-system") as subject:
        assert subject.capabilities == CAPABILITIES
        assert driving.run_program(subject.factory, PROGRAM, capabilities=CAPABILITIES) is None
        with pytest.raises(SubjectError, match="paged-system is a system, not an allocator"):
            subject.serve(requests=1, pool={})


def test_the_built_in_names_lead_somewhere() -> None:
    assert {"paged", "vllm", "sglang", "transformers", "torch"} <= BUILT_IN.keys()
    for known in BUILT_IN.values():
        where = known.where.rpartition(":")[0]
        if where.endswith(".py"):
            assert Path(where).parent == ADAPTERS
            assert Path(where).is_file()
    assert BUILT_IN["paged"].environment == BUILT_IN["torch"].environment == ""
    assert BUILT_IN["vllm"].environment == "vllm"


def test_the_process_ends_with_the_block() -> None:
    with open_allocator("paged") as subject:
        assert isinstance(subject.factory, RemoteFactory)
        process = subject.factory._process
        child = process._child
        assert child is not None
        assert child.poll() is None
    assert child.poll() is not None
    assert process._child is None


# Engines' environments


def test_an_environment_that_is_missing_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGEDBENCH_ENGINES", str(tmp_path))
    missing = tmp_path / "vllm" / "bin" / "python"
    with pytest.raises(SubjectError) as refused, open_allocator("vllm"):
        pass
    assert str(refused.value) == (
        f"vllm needs an environment of its own, and {missing} is not there: build it with "
        f"'make engine-vllm', or name an interpreter with --engine-python"
    )


def test_environments_lie_in_the_checkout_unless_another_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PAGEDBENCH_ENGINES", raising=False)
    with pytest.raises(SubjectError) as refused:
        engine_python("no-such-engine")
    assert str(HOME / ".engines" / "no-such-engine" / "bin" / "python") in str(refused.value)
    python = tmp_path / "mine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setenv("PAGEDBENCH_ENGINES", str(tmp_path))
    with pytest.raises(SubjectError, match=r"the build of .*mine did not end; .*make engine-mine"):
        engine_python("mine")
    (tmp_path / "mine" / STAMP).touch()
    assert engine_python("mine") == python


def test_an_engine_runs_in_its_own_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What it does there is seen by the words of an interpreter that is none.
    python = tmp_path / "vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "not an interpreter" >&2\nexit 9\n')
    (tmp_path / "vllm" / STAMP).touch()
    python.chmod(0o755)
    monkeypatch.setenv("PAGEDBENCH_ENGINES", str(tmp_path))
    with (
        pytest.raises(SubjectError, match=r"is no Python interpreter; .*make engine-vllm"),
        open_allocator("vllm"),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "options"),
    [("vllm", {}), ("sglang", {}), ("transformers", {}), ("paged", {"python": "python"})],
)
def test_in_process_is_refused_to_whatever_needs_its_own_interpreter(
    name: str, options: dict[str, str]
) -> None:
    with (
        pytest.raises(SubjectError, match=f"{name} runs in an interpreter of its own"),
        open_allocator(name, in_process=True, **options),
    ):
        pass


def test_an_interpreter_that_is_named_takes_precedence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGEDBENCH_ENGINES", str(tmp_path))  # where there is none
    monkeypatch.setitem(BUILT_IN, "vllm", BUILT_IN["paged"])
    with open_allocator("vllm", python=sys.executable) as subject:
        assert subject.capabilities.fork


# Files and modules


@pytest.mark.parametrize("in_process", [False, True])
def test_a_file_of_the_users(plain: str, *, in_process: bool) -> None:
    with open_allocator(f"{plain}:make", in_process=in_process) as subject:
        assert subject.name == "plain.py:make"
        assert subject.capabilities == AllocatorCapabilities()  # it declares none
        least = subject.capabilities
        assert run_program(subject.factory, PROGRAM, capabilities=least) is None


@pytest.mark.parametrize("in_process", [False, True])
@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("nothing", "plain.py has no 'nothing'; it offers paged_allocator, make, wrong, words"),
        ("NUMBER", "plain.py:NUMBER is int, not callable: name a factory"),
        ("wrong", "plain.py:wrong: capability 'forks' is unknown; use "),
        ("words", "capabilities is 'fork'; it must be a mapping"),
    ],
)
def test_a_name_that_leads_nowhere_says_why_here_and_there(
    plain: str, attribute: str, words: str, *, in_process: bool
) -> None:
    with (
        pytest.raises(SubjectError, match=words),
        open_allocator(f"{plain}:{attribute}", in_process=in_process),
    ):
        pass


@pytest.mark.parametrize("in_process", [False, True])
def test_a_word_that_is_no_name_is_told_what_would_be(*, in_process: bool) -> None:
    with (
        pytest.raises(SubjectError, match=r"'pagd' names no allocator: use module:function.*paged"),
        open_allocator("pagd", in_process=in_process),
    ):
        pass


def test_ours_stays_what_it_was() -> None:
    made = paged_allocator(4, 2, prefix_caching=True, window=None)
    assert isinstance(made, PagedSubject)
    assert made.counts() == (4, 0, 0)
