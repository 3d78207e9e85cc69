"""An allocator in another process: its crashes are findings, and the next program goes on."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from paged.subject import paged_allocator
from reference.allocator.contract import (
    AllocatorCapabilities,
    AllocatorDied,
    AllocatorRaised,
    capabilities_of_factory,
)
from reference.allocator.machine import Finding, run_program
from reference.allocator.programs import Pool, Program, Step
from subjects.allocators.remote import RemoteFactory
from subjects.allocators.worker import death
from subjects.loading import SubjectError
from subjects.process import NotStarted
from subjects.starting import HOME

# A right allocator without prefix caching, and nothing imported; {} stands for what `append` does
# when it is given the token 13. Each import adds a line to a file beside it.
ALLOCATOR = """
import os, pathlib, signal, sys, time

with open(pathlib.Path(__file__).with_name("imported"), "a") as imported:
    imported.write("once\\n")

class Simple:
    def __init__(self, num_blocks, block_size, **_):
        self.size = block_size
        self.blocks = list(range(num_blocks))
        self.unused = list(self.blocks)
        self.tables, self.lengths = {{}}, {{}}

    def grow(self, sequence, length):
        table = self.tables.get(sequence, [])
        needed = -(-length // self.size) - len(table)
        if needed > len(self.unused):
            return False
        self.tables[sequence] = table + [self.unused.pop() for _ in range(needed)]
        self.lengths[sequence] = length
        return True

    def admit(self, sequence, tokens, *, num_tokens, salt):
        if sequence in self.tables:
            raise KeyError(sequence)
        return 0 if self.grow(sequence, len(tokens)) else None

    def append(self, sequence, tokens):
        if 13 in tokens:
            {}
        return self.grow(sequence, self.lengths[sequence] + len(tokens))

    def free(self, sequence):
        self.unused += self.tables.pop(sequence)

    def slots(self, sequence):
        table = self.tables[sequence]
        return [table[p // self.size] * self.size + p % self.size
                for p in range(self.lengths[sequence])]

    def counts(self):
        return len(self.unused), 0, len(self.blocks) - len(self.unused)

def make(num_blocks, block_size, *, prefix_caching, window):
    return Simple(num_blocks, block_size)

make.capabilities = {{"prefix_caching": False}}
make.version = "simple 1"
"""

POOL = Pool(num_blocks=4, block_size=2, prefix_caching=False)
A = Step("admit", "a", tokens=(1, 2, 3))
RIGHT = Program(POOL, (A, Step("append", "a", tokens=(4, 5)), Step("append_unknown")))
UNLUCKY = Program(POOL, (A, Step("append", "a", tokens=(13,))))


def written(folder: Path, does: str = "pass", more: str = "") -> str:
    """Write an allocator to a file, and return its name."""
    (folder / "simple.py").write_text(ALLOCATOR.format(does) + textwrap.dedent(more))
    return f"{folder / 'simple.py'}:make"


def imports(folder: Path) -> int:
    return len((folder / "imported").read_text().splitlines())


def run(factory: RemoteFactory, program: Program) -> Finding | None:
    return run_program(factory, program, capabilities=factory.capabilities)


def test_an_allocator_introduces_itself_and_runs(tmp_path: Path) -> None:
    with RemoteFactory(written(tmp_path)) as factory:
        factory.introduce()
        assert factory.capabilities == AllocatorCapabilities(prefix_caching=False)
        assert factory.version == "simple 1"
        assert run(factory, RIGHT) is None
        assert run(factory, UNLUCKY) is None
    assert imports(tmp_path) == 1


@pytest.mark.parametrize(
    ("does", "how", "time_limit_s"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"^was killed by SIGSEGV: (.|\n)*append", 20.0),
        ("import ctypes; ctypes.string_at(0)", r"^was killed by SIGSEGV: (.|\n)*append", 20.0),
        ("print('last words'); os._exit(3)", "^ended with code 3: last words$", 20.0),
        ("os._exit(0)", "^ended with code 0$", 20.0),
        ("os.abort()", "^was killed by SIGABRT", 20.0),
        ("raise SystemExit(2)", "^ended with code ", 20.0),
        ("time.sleep(3600)", r"^gave no answer within 1 s: (.|\n)*append", 1.0),
        ("while True: pass", r"^gave no answer within 1 s: (.|\n)*append", 1.0),
    ],
)
def test_a_death_is_a_finding_and_the_next_program_runs(
    tmp_path: Path, does: str, how: str, time_limit_s: float
) -> None:
    with RemoteFactory(written(tmp_path, does), time_limit_s=time_limit_s) as factory:
        factory.introduce()
        # Whoever hangs does so once: a busy machine needs the second for the answers of the others.
        for _ in range(3 if time_limit_s > 1 else 1):
            finding = run(factory, UNLUCKY)
            assert finding is not None
            assert (finding.check, finding.program, finding.at_the_end) == ("died", UNLUCKY, False)
            with pytest.raises(AllocatorDied, match=how):
                raise AllocatorDied(finding.message, timed_out=False)
            assert run(factory, RIGHT) is None
    assert imports(tmp_path) == 1, "importing an engine takes seconds"


def test_a_hang_is_told_from_a_crash(tmp_path: Path) -> None:
    for does, timed_out in (("time.sleep(3600)", True), ("os._exit(1)", False)):
        limit_s = 1.0 if timed_out else 20.0
        with RemoteFactory(written(tmp_path, does), time_limit_s=limit_s) as factory:
            allocator = factory(4, 2, prefix_caching=False, window=None)
            allocator.admit("a", [1], num_tokens=1, salt="")
            with pytest.raises(AllocatorDied) as died:
                allocator.append("a", [13])
            assert died.value.timed_out == timed_out


def test_what_a_call_raises_is_told_with_its_place(tmp_path: Path) -> None:
    with RemoteFactory(written(tmp_path, "raise ValueError('no luck')")) as factory:
        factory.introduce()
        finding = run(factory, UNLUCKY)
        assert finding is not None
        assert finding.check == "answer"
        assert finding.message.startswith("raised ValueError: no luck (simple.py:")
        assert run(factory, RIGHT) is None


def test_what_making_one_raises_is_told(tmp_path: Path) -> None:
    more = """
    def make(num_blocks, block_size, **_):
        raise MemoryError(f"{num_blocks} blocks")
    """
    with RemoteFactory(written(tmp_path, more=more)) as factory:
        with pytest.raises(AllocatorRaised, match=r"^MemoryError: 4 blocks "):
            factory(4, 2, prefix_caching=False, window=None)
        finding = run(factory, RIGHT)
        assert finding is not None
        assert (finding.check, finding.program.steps) == ("answer", ())


def test_an_allocator_that_prints_and_reads_is_as_right_as_a_quiet_one(tmp_path: Path) -> None:
    does = 'print("{}\\n" * 9000); sys.stderr.write("noise"); assert sys.stdin.read() == ""'
    with RemoteFactory(written(tmp_path, does)) as factory:
        factory.introduce()
        assert run(factory, UNLUCKY) is None
        assert run(factory, UNLUCKY) is None


@pytest.mark.parametrize(
    "line",
    [
        'print("imported")',
        "import os; os.close(0)",
        "import sys; sys.stdin.close()",
    ],
)
def test_what_importing_does_to_the_streams_does_no_harm(tmp_path: Path, line: str) -> None:
    with RemoteFactory(written(tmp_path, more=line)) as factory:
        factory.introduce()
        assert run(factory, RIGHT) is None


def test_numbers_of_numpy_and_tuples_are_plain_on_the_way(tmp_path: Path) -> None:
    more = """
    import numpy as np

    class Odd(Simple):
        def admit(self, *given, **named):
            return np.int64(super().admit(*given, **named))

        def append(self, *given):
            return np.bool_(super().append(*given))

        def slots(self, sequence):
            return np.array(super().slots(sequence), np.int32)

        def counts(self):
            return tuple(np.int32(count) for count in super().counts())

        def idle_blocks(self):
            return {np.int64(3)}

        def take_copies(self):
            return ((np.int32(0), 1),)

        def swap_out(self, sequence):
            return np.array([[0, 1]])

        def swap_in(self, sequence):
            return None

        def reset(self):
            return object()

    def make(num_blocks, block_size, **_):
        return Odd(num_blocks, block_size)

    make.capabilities = {"eviction": "lru"}
    """
    with RemoteFactory(written(tmp_path, more=more)) as factory:
        factory.introduce()
        allocator = factory(4, 2, prefix_caching=True, window=None)
        assert (allocator.counts(), allocator.idle_blocks()) == ((4, 0, 0), [3])
        hit = allocator.admit("a", [1, 2, 3], num_tokens=3, salt="")
        assert type(hit) is int
        assert allocator.append("a", [4]) is True
        assert allocator.append("a", list(range(9))) is False
        assert (allocator.slots("a"), allocator.counts()) == ([6, 7, 4, 5], (2, 0, 2))
        assert allocator.take_copies() == [(0, 1)]
        assert allocator.swap_out("a") == [(0, 1)]
        assert allocator.swap_in("a") is None
        assert str(allocator.reset()).startswith("<object object")
    with RemoteFactory(written(tmp_path, more=more)) as factory:
        assert run(factory, RIGHT) is None


def test_there_is_one_allocator_at_a_time(tmp_path: Path) -> None:
    with RemoteFactory(written(tmp_path)) as factory:
        first = factory(4, 2, prefix_caching=False, window=None)
        first.admit("a", [1], num_tokens=1, salt="")
        second = factory(8, 2, prefix_caching=False, window=None)
        assert second.counts() == (8, 0, 0)
        with pytest.raises(AllocatorRaised, match=r"^KeyError: 'a'"):
            second.append("a", [1])


# Names and declarations that lead nowhere


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("simple", "'simple' names no allocator: use module:function"),
        ("no_such_module:make", "cannot import 'no_such_module' from .*ModuleNotFoundError"),
        ("no/such/file.py:make", "no/such/file.py is not a file"),
        ("simple.py:wrong", r"simple.py:wrong: capability eviction: 'mru'; use lru"),
        ("broken.py:make", "cannot import broken.py: ZeroDivisionError: division by zero"),
        ("rooms.py:make", "cannot import rooms.py: .*; here 'paged' is pagedbench's own package"),
        ("exits.py:make", "importing exits.py:make: the process ended with code 7: no licence"),
    ],
)
def test_a_name_that_leads_to_no_allocator_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    more = """
    def wrong(): ...
    wrong.capabilities = {"eviction": "mru"}
    """
    written(tmp_path, more=more)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "rooms.py").write_text("import paged.no_such_module")
    (tmp_path / "exits.py").write_text("import os; print('no licence', flush=True); os._exit(7)")
    with RemoteFactory(name) as factory, pytest.raises(SubjectError, match=words):
        factory.introduce()


def test_a_declaration_of_ours_is_told_as_well_as_a_mapping() -> None:
    with RemoteFactory("paged.subject:paged_allocator") as factory:
        factory.introduce()
        assert factory.capabilities == capabilities_of_factory(paged_allocator)
        assert factory.version == ""


# Another interpreter


def wrapper(folder: Path, *, does: str = "", options: str = "") -> str:
    """An interpreter that leaves a mark."""
    script = folder / "python"
    mark = folder / "mark"
    script.write_text(
        f'#!/bin/sh\n{does}\ntouch "{mark}"\nexec "{sys.executable}" {options} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_another_interpreter_runs_it(tmp_path: Path) -> None:
    with RemoteFactory(written(tmp_path), python=wrapper(tmp_path)) as factory:
        factory.introduce()
        assert run(factory, RIGHT) is None
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("ours", [True, False])
def test_our_rooms_are_importable_in_our_interpreter_only(tmp_path: Path, *, ours: bool) -> None:
    # An engine may have packages of the same names. Without site: we may be installed there.
    more = """
    make.version = repr([*sys.path, *sys.modules])
    """
    python = None if ours else wrapper(tmp_path, options="-S")
    with RemoteFactory(written(tmp_path, more=more), python=python) as factory:
        factory.introduce()
        assert (f"'{HOME}'" in factory.version) == ours
        assert ("'reference'" in factory.version) == ours


def test_an_interpreter_that_is_not_there_says_nothing_about_the_allocator(tmp_path: Path) -> None:
    python = str(tmp_path / "no-python")
    with (
        RemoteFactory(written(tmp_path), python=python) as factory,
        pytest.raises(NotStarted, match=r"no-python.*No such file"),
    ):
        factory.introduce()
    with (
        RemoteFactory(written(tmp_path), python=wrapper(tmp_path, does="exit 4")) as factory,
        pytest.raises(NotStarted, match="ended with code 4"),
    ):
        factory.introduce()


# The same as in process


MISTAKEN = """
from paged.allocator import PagedAllocator
from paged.subject import PagedSubject, paged_allocator

class Mistaken(PagedSubject):
    {}

def make(num_blocks, block_size, *, prefix_caching, window):
    allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
    return Mistaken(allocator, window=window)

make.capabilities = paged_allocator.capabilities
"""


@pytest.mark.parametrize(
    ("check", "mistake", "steps"),
    [
        ("hit", "admit = lambda self, *a, **k: PagedSubject.admit(self, *a, **k) and 0", None),
        ("refusal", "append = lambda self, sequence, tokens: False", None),
        ("window", "commit = lambda self, sequence: None", None),
        ("promise", "can_admit = lambda self, tokens, **_: True", None),
        ("reset", "reset = lambda self: True", None),
        ("table", "slots = lambda self, s: PagedSubject.slots(self, s)[::-1]", None),
        ("conservation", "counts = lambda self: (1, 2, 3)", ()),
        ("answer", "append = lambda self, sequence, tokens: 1", None),
        ("answer", "append = lambda self, sequence, tokens: None", None),
        ("none", "pass", None),
    ],
)
def test_a_mistake_is_the_same_finding_here_and_there(
    tmp_path: Path, check: str, mistake: str, steps: tuple[Step, ...] | None
) -> None:
    path = tmp_path / "mistaken.py"
    path.write_text(MISTAKEN.format(mistake))
    namespace: dict[str, object] = {}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    cached = check in ("hit", "promise", "reset")
    pool = Pool(num_blocks=4, block_size=2, window=None if cached else 2)
    if steps is None:
        steps = (
            Step("admit", "a", tokens=(0, 1, 2, 3, 4)),
            Step("admit", "b", tokens=(0, 1, 2)),
            Step("append", "a", tokens=(5, 6)),
            Step("free", "a"),
            Step("admit", "c", tokens=tuple(range(100, 108))),
            Step("reset"),
        )
    program = Program(pool, steps)
    here = run_program(namespace["make"], program)
    with RemoteFactory(f"{path}:make") as factory:
        factory.introduce()
        there = run(factory, program)
    assert there == here
    assert (here.check if here is not None else "none") == check


# Words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3 << 8, {"died": "ended with code 3", "timed_out": False}),
        (11, {"died": "was killed by SIGSEGV", "timed_out": False}),
        (14, {"died": "gave no answer within 1.5 s", "timed_out": True}),
    ],
)
def test_a_status_is_put_into_words(status: int, words: dict[str, object]) -> None:
    assert death(status, 1.5) == words


def test_capabilities_travel_as_json(tmp_path: Path) -> None:
    can = replace(
        capabilities_of_factory(paged_allocator),
        hostile=frozenset({"free_twice"}),
        block_sizes=frozenset({16, 2}),
    )
    more = f"""
    import json
    make.capabilities = json.loads({json.dumps(can.as_json())!r})
    """
    with RemoteFactory(written(tmp_path, more=more)) as factory:
        factory.introduce()
        assert factory.capabilities == can


def test_what_breaks_looking_is_blamed_and_not_what_comes_after(tmp_path: Path) -> None:
    more = """
    class Breaks(Simple):
        broken = False

        def free(self, sequence):
            self.broken = sequence not in self.tables
            super().free(sequence)

        def counts(self):
            if self.broken:
                raise RuntimeError("no counts any more")
            return super().counts()

    def make(num_blocks, block_size, **_):
        return Breaks(num_blocks, block_size)

    make.capabilities = {"prefix_caching": False}
    """
    hostile = Program(POOL, (A, Step("free_unknown"), Step("append", "a", tokens=(4,))))
    with RemoteFactory(written(tmp_path, more=more)) as factory:
        factory.introduce()
        finding = run(factory, hostile)
    assert finding is not None
    assert finding.program.steps == hostile.steps[:2]
    assert finding.check == "answer"
    assert finding.message.startswith("counts raised RuntimeError: no counts any more (simple.py:")
