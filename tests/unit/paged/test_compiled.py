"""The server in machine code: made where it can be, and to be done without where it cannot."""

import os
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest

from helpers.serving import OURS, check_agreement, stream
from paged import compiled, counting
from paged.accounting import IdentityBroken
from paged.arrivals import Request
from paged.clock import StepTime
from paged.compiled import CompiledServer, built, can_serve
from paged.counted import Setting
from paged.counting import serve_by_counts
from paged.errors import BadSize
from paged.policy import PagedPolicy

SOURCE = Path(compiled.__file__).with_name("counting.c")
needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="there is no C compiler")

SMALL = Setting(policy=PagedPolicy(), slots=16, time=StepTime())

# Two that wait to come back, budget, look-ahead and swap, all at work.
BUSY = stream(
    *((7, 19), (8, 8), (5, 18), (15, 3)),
    policy=PagedPolicy(block_size=3, look_ahead=1, token_budget=11, preemption="swap"),
    slots=39,
)


@needs_compiler
def test_a_policy_without_a_prefix_cache_is_served_in_machine_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(counting.CountingServer, "take_steps")
    assert serve_by_counts([Request(3, 3)], PagedPolicy(), slots=16).total.completed == 1
    with pytest.raises(AttributeError):
        serve_by_counts([Request(3, 3)], PagedPolicy(prefix_caching=True), slots=16)


def test_without_a_compiler_python_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CC", compiler)
        assert built(SOURCE, tmp_path) is None
    monkeypatch.setattr(compiled, "library", lambda: None)
    monkeypatch.delattr(counting, "CompiledServer")
    assert serve_by_counts([Request(3, 3)], PagedPolicy(), slots=16).total.completed == 1


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "slow-cc"
    slow.write_text("#!/bin/sh\nsleep 600\n")
    slow.chmod(0o700)
    monkeypatch.setenv("CC", str(slow))
    monkeypatch.setattr(compiled, "LIMIT_S", 0.05)
    assert built(SOURCE, tmp_path / "home") is None
    assert not [*(tmp_path / "home").iterdir()]


@needs_compiler
@pytest.mark.parametrize("writable", ["the folder", "the library"])
def test_what_another_could_have_put_there_is_not_loaded(writable: str, tmp_path: Path) -> None:
    assert built(SOURCE, tmp_path) is not None
    (made,) = tmp_path.glob("*.so")
    before = made.stat().st_ino
    (tmp_path if writable == "the folder" else made).chmod(0o777)
    again = built(SOURCE, tmp_path)
    if writable == "the folder":
        assert again is None
    else:
        assert made.stat().st_ino != before
        assert not made.stat().st_mode & 0o022


@needs_compiler
def test_someone_elses_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert built(SOURCE, tmp_path) is not None
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert built(SOURCE, tmp_path) is None


@needs_compiler
def test_a_damaged_library_is_made_anew(tmp_path: Path) -> None:
    assert built(SOURCE, tmp_path / "first") is not None
    (made,) = (tmp_path / "first").glob("*.so")
    damaged = tmp_path / "second" / made.name
    damaged.parent.mkdir(mode=0o700)
    damaged.write_bytes(b"not a library")
    damaged.chmod(0o700)
    assert built(SOURCE, damaged.parent) is not None


def test_a_compiler_that_cannot_be_read_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", 'cc "')
    assert built(SOURCE, tmp_path) is None


@needs_compiler
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert built(SOURCE, tmp_path / "new") is not None
    (made,) = (tmp_path / "new").iterdir()
    before = made.stat().st_mtime_ns
    assert built(SOURCE, tmp_path / "new") is not None
    assert made.stat().st_mtime_ns == before
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert compiled.library.__wrapped__() is None


# Each would go unseen if the server in machine code were not held to the others.
BUGS = {
    "room for the next token is asked for": (
        "i64 needed = (i64)most_blocks(s, target);",
        "i64 needed = (i64)most_blocks(s, target + 1);",
    ),
    "the phase of growth is off by one": (
        "(from - base) % of->size",
        "(from - 1 - base) % of->size",
    ),
    "who gave way comes back last": (
        "i64 again = s->num_preempted - 1 - at,",
        "i64 again = s->num_preempted > at ? at : -1,",
    ),
    "swapping takes no time": ("s->swapped * rules->swap_ps", "0 * rules->swap_ps"),
    "a token after a preemption counts from the first": (
        "s->clock - group->left, 1",
        "s->clock - group->first, 1",
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = BUGS[name]
    text = SOURCE.read_text()
    assert text.count(right) == 1
    changed = tmp_path / "counting.c"
    changed.write_text(text.replace(right, wrong))
    library = built(changed, tmp_path)
    assert library is not None
    monkeypatch.setattr(compiled, "library", lambda: library)
    with pytest.raises((AssertionError, IdentityBroken)):
        check_agreement(OURS, **BUSY)


def test_the_right_one_passes() -> None:
    check_agreement(OURS, **BUSY)


@needs_compiler
def test_streams_are_read_as_they_are_served_and_their_errors_come_through() -> None:
    server = CompiledServer(chain([Request(1, 1)] * 5000, [Request(1, 0)]), SMALL)
    assert server.take_steps(10, None) is True
    with pytest.raises(BadSize, match="request 5001 "):
        server.take_steps(10**9, None)
    endless = CompiledServer(repeat(Request(1, 1)), SMALL)
    endless.take_steps(10, None)
    assert endless.step == 10


def test_numbers_beyond_64_bits_are_refused_or_left_to_python() -> None:
    huge = [Request(2**70, 1), Request(1, 2**63 - 1), Request(3, 3)]
    total = serve_by_counts(huge, PagedPolicy(), slots=16).total
    assert (total.refused, total.completed) == (2, 1)
    assert not can_serve(replace(SMALL, slots=2**70))
    assert not can_serve(replace(SMALL, time=StepTime(step_ns=2**62)))
    with pytest.raises(BadSize, match="146 years"):
        serve_by_counts([Request(1, 1, 2**62)], PagedPolicy(), slots=16)


@needs_compiler
def test_a_clock_of_many_years_does_not_run_over() -> None:
    late = [Request(1, 3, 2**62 - 1)]
    check_agreement(OURS, **stream(policy=PagedPolicy(), slots=16) | {"requests": late})
