"""Each check of the allocator machine fails on a wrong allocator, and on the right one it passes.

Programs are written by hand, a few steps each: what they show is shown by nothing else in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import pytest

from helpers.swapping import SwappingSubject, swapping_allocator
from helpers.wrong_allocators import BUGS, Bug, keys
from helpers.wrong_allocators.catalogue import (
    CHAIN_OF_TWO,
    COPY_ON_WRITE,
    NO_CACHE,
    ONE_IDLE,
    SIX_BY_TWO,
    TAKE_FIVE,
    TWO_IDLE,
    WINDOW_OF_TWO,
    A,
    admit,
    append,
    fork,
    free,
    wrong_calls,
)
from paged.allocator import PagedAllocator
from paged.pool import BlockPool
from paged.subject import PagedSubject, paged_allocator
from reference.allocator.contract import (
    HOSTILE_CALLS,
    AllocatorCapabilities,
    AllocatorFactory,
    capabilities_of_factory,
    declares_allocator,
)
from reference.allocator.machine import (
    CHECKS,
    MAX_RUNNING,
    NEEDS,
    NOBODY,
    AllocatorMachine,
    CheckFailed,
    Finding,
    find_fault,
    run_program,
)
from reference.allocator.programs import Pool, Program, Step

PAGED = capabilities_of_factory(paged_allocator)
SWAPPING = capabilities_of_factory(swapping_allocator)

# Five blocks of six are in use after this.
FIVE = admit("a", *range(10))
SHOWN = [bug for bug in BUGS.values() if bug.example]


# Allocators that are right


class Right(PagedSubject):
    """Every call is a method that can be overridden."""

    can = PAGED

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        del self.free, self.take_copies

    def free(self, sequence: str) -> None:
        self.allocator.free(sequence)

    def take_copies(self) -> list[tuple[int, int]]:
        return self.allocator.take_copies()


class RightWithAHost(SwappingSubject):
    can = SWAPPING


class AllAtOnce(BlockPool):
    """Evicts everything as soon as anything has to be."""

    def allocate(self, count: int, *, tenant: int = 0) -> list[int]:
        if self.num_free < count <= self.num_free + self.num_cached_idle:
            self.evict_idle()
        return super().allocate(count, tenant=tenant)


class RightAllAtOnce(Right):
    can = replace(PAGED, eviction="all")

    def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
        allocator.pool = AllAtOnce(allocator.num_blocks, on_evict=allocator._forget)
        allocator._references = allocator.pool.reference_counts
        super().__init__(allocator, **options)


class RightButForResetsWhileRunning(Right):
    """As engines do it that can forget only while nothing runs."""

    def reset(self) -> bool:
        return not self.allocator._tables and super().reset()


class RightWithSpareBlocks(Right):
    """As engines do it that keep a block back."""

    can = replace(PAGED, spare_blocks=1, can_admit=False)

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        if self.allocator.num_free + self.allocator.num_cached_idle <= len(tokens) // 2:
            return None
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)


def factory_of(kind: type, can: AllocatorCapabilities | None = None) -> AllocatorFactory:
    @declares_allocator(can or kind.can)
    def make(
        num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
    ) -> object:
        allocator = PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching)
        return kind(allocator) if window is None else kind(allocator, window=window)

    return make


# Each check finds what is wrong


@pytest.mark.parametrize("bug", SHOWN, ids=attrgetter("name"))
def test_the_wrong_one_fails_just_this_check_and_the_right_one_none(bug: Bug) -> None:
    example = bug.example
    with bug.planted():
        finding = run_program(bug.factory, example.program, capabilities=bug.capabilities)
    assert finding is not None
    assert finding.check == example.check, str(finding)
    assert finding.at_the_end == example.at_the_end, str(finding)
    # It shows in the last step and not before; none was left out.
    assert finding.program == example.program
    with pytest.raises(CheckFailed, match=f"^{example.finding}"):
        raise CheckFailed(finding.check, finding.message)
    right = run_program(bug.factory, example.program, capabilities=bug.capabilities)
    assert right is None


def test_every_check_fails_in_one_of_them() -> None:
    assert {bug.example.check for bug in SHOWN} == CHECKS.keys()


def test_an_allocator_that_cannot_be_made_is_a_finding() -> None:
    class CannotBeMade(Right):
        def __init__(self, allocator: PagedAllocator, **_: Any) -> None:
            raise RuntimeError(f"no pool of {allocator.num_blocks}")

    finding = run_program(factory_of(CannotBeMade), Program(SIX_BY_TWO, ()))
    assert (finding.check, finding.message) == ("answer", "raised RuntimeError: no pool of 6")


def test_a_reset_that_is_refused_must_not_forget() -> None:
    class RefusedResetForgets(RightButForResetsWhileRunning):
        def reset(self) -> bool:
            self.allocator.reset_prefix_cache()
            return super().reset()

    steps = (*ONE_IDLE, admit("b", 100), Step("reset"))
    finding = run_program(factory_of(RefusedResetForgets), Program(SIX_BY_TWO, steps))
    assert finding.check == "trace"
    assert finding.message.startswith("a reset that was refused: there were 4 free, 1 idle")


def test_an_allocator_that_evicts_all_at_once_has_to_evict_all() -> None:
    class NotAllAreEvicted(RightAllAtOnce):
        def __init__(self, allocator: PagedAllocator, **options: Any) -> None:
            super().__init__(allocator, **options)
            allocator.pool.evict_idle = lambda: None

    program = Program(SIX_BY_TWO, (*TWO_IDLE, TAKE_FIVE))
    finding = run_program(factory_of(NotAllAreEvicted), program)
    assert (finding.check, finding.message) == ("eviction", "block 0 evicted, and block 1 not")
    assert run_program(factory_of(RightAllAtOnce), program) is None


def test_what_a_check_needs_is_a_capability() -> None:
    fields = AllocatorCapabilities().as_json()
    assert {need for need in NEEDS.values() if need not in fields} == set()
    assert NEEDS.keys() < CHECKS.keys()


# Answers of another shape


@pytest.mark.parametrize(
    ("call", "answer", "words"),
    [
        ("admit", "0", "admit returned '0', neither a number nor None"),
        ("admit", True, "admit returned True, neither a number nor None"),
        ("append", None, "append returned None, neither True nor False"),
        ("append", 1, "append returned 1, neither True nor False"),
        ("fork", "yes", "fork returned 'yes', neither"),
        ("reset", None, "reset returned None, neither"),
        ("can_admit", None, "can_admit returned None, neither"),
        ("counts", None, "counts returned None, of another shape"),
        ("counts", (1, 2), r"counts returned \(1, 2\), of another shape"),
        ("counts", (6.0, 0, 0), r"counts returned \(6.0, 0, 0\), of another shape"),
        ("slots", None, "slots returned None, of another shape"),
        ("slots", [[0], [1, 2]], r"slots returned \[\[0\], \[1, 2\]\], of another shape"),
        ("slots", [[0]], r"slots returned \[\[0\]\], of another shape"),
        ("slots", ["0"], r"slots returned \['0'\], of another shape"),
        ("idle_blocks", None, "idle_blocks returned None, of another shape"),
        ("take_copies", None, "take_copies returned None, of another shape"),
        ("take_copies", [0, 1], r"take_copies returned \[0, 1\], of another shape"),
        ("swap_out", [(0, 0, 0)], r"swap_out returned \[\(0, 0, 0\)\], of another shape"),
        ("swap_in", 3, "swap_in returned 3, of another shape"),
    ],
)
def test_an_answer_of_another_shape_is_a_finding(call: str, answer: object, words: str) -> None:
    base = RightWithAHost if "swap" in call else Right
    wrong = wrong_calls(base, {call: lambda *_, **__: answer})
    steps = (admit("a", 0), append("a", 1), fork("b", "a"), Step("reset"))
    if base is RightWithAHost:
        steps = (admit("a", 0), Step("swap_out", "a"), Step("swap_in", "a"))
    finding = run_program(factory_of(wrong), Program(SIX_BY_TWO, steps))
    assert finding is not None
    assert finding.check == "answer"
    with pytest.raises(CheckFailed, match=words):
        raise CheckFailed(finding.check, finding.message)


def test_numbers_of_numpy_are_numbers() -> None:
    class Numpy(Right):
        def admit(self, *given: Any, **named: Any) -> np.int64:
            return np.int64(super().admit(*given, **named))

        def append(self, *given: Any) -> np.bool_:
            return np.bool_(super().append(*given))

        def can_admit(self, *given: Any, **named: Any) -> np.bool_:
            return np.bool_(super().can_admit(*given, **named))

        def counts(self) -> Any:
            return np.array(super().counts())

        def slots(self, sequence: str) -> Any:
            return np.array(super().slots(sequence), np.int32)

        def take_copies(self) -> Any:
            return np.array(super().take_copies(), np.int32).reshape(-1, 2)

    assert run_program(factory_of(Numpy), Program(SIX_BY_TWO, COPY_ON_WRITE)) is None


# What is left out


def made(kind: type, *steps: Step, pool: Pool = SIX_BY_TWO, **declared: Any) -> AllocatorMachine:
    """A machine that has run these steps."""
    machine = AllocatorMachine(factory_of(kind, replace(kind.can, **declared)), pool)
    for step in steps:
        machine.run(step)
    return machine


B = admit("b", 100)


@pytest.mark.parametrize(
    ("before", "step", "declared"),
    [
        ((A,), A, {}),
        ((), append("a", 1), {}),
        ((), free("a"), {}),
        ((A, free("a")), free("a"), {}),
        ((), Step("preempt", "a"), {}),
        ((), fork("b", "a"), {}),
        ((A, B), fork("b", "a"), {}),
        ((A,), fork("b", "a"), {"fork": False}),
        ((A,), Step("settle"), {}),
        ((), Step("reset"), {"reset": False}),
        ((A,), Step("reset"), {"reset_while_running": False}),
        ((), admit("a"), {"empty_calls": False}),
        ((A,), append("a"), {"empty_calls": False}),
        ((), admit("a", 0, first=2), {}),
        ((), admit("a", 0, first=-1), {}),
        ((), Step("free_twice"), {}),
        ((A, free("a"), A), Step("free_twice"), {}),
        ((A, free("a")), Step("free_twice"), {"hostile": frozenset({"free_unknown"})}),
        ((A,), Step("fork_onto_live", "a", parent="a"), {}),
        ((A,), Step("fork_onto_live", "a", parent="b"), {}),
        ((A, B), Step("fork_onto_live", "a", parent="b"), {"fork": False}),
        ((), Step("fork_unknown"), {"fork": False}),
        ((), Step("admit_live", "a", tokens=(0,)), {}),
        ((), Step("admit_negative", NOBODY, tokens=(0,)), {"chunked_prefill": False}),
        ((), Step("admit_oversized", NOBODY, tokens=(0,)), {"chunked_prefill": False}),
    ],
    ids=str,
)
def test_a_step_that_makes_no_sense_where_it_stands_is_left_out(
    before: tuple[Step, ...], step: Step, declared: dict[str, Any]
) -> None:
    machine = made(Right, *before, step, **declared)
    assert machine.steps == list(before)
    assert not machine.can_run(step)
    machine.finish()


def test_a_swapped_sequence_is_neither_admitted_nor_forked_onto_nor_swapped_out_again() -> None:
    machine = made(RightWithAHost, A, B, Step("swap_out", "a"))
    for step in (A, fork("a", "b"), Step("swap_out", "a"), append("a", 0), free("a")):
        assert not machine.can_run(step), step
    assert machine.can_run(Step("swap_in", "a"))
    assert not made(RightWithAHost, A, swap=False).can_run(Step("swap_out", "a"))
    assert not made(RightWithAHost, A).can_run(Step("swap_in", "a"))
    machine.finish()  # which frees what is swapped out, too


def test_a_preempted_sequence_may_come_back_under_its_name() -> None:
    machine = made(Right, A, Step("preempt", "a"))
    assert machine.waiting.keys() == {"a"}
    machine.run(A)
    assert machine.lives.keys() == {"a"}
    assert not machine.waiting
    assert machine.lives["a"].tokens == [0, 1, 2]
    machine.finish()


def test_no_more_than_so_many_sequences_run_at_once() -> None:
    many = [admit(f"s{number}", number) for number in range(MAX_RUNNING)]
    pool = replace(SIX_BY_TWO, num_blocks=32)
    machine = made(RightWithAHost, A, Step("swap_out", "a"), *many, pool=pool)
    assert len(machine.lives) == MAX_RUNNING
    for step in (admit("more", 7), fork("more", "s0"), Step("swap_in", "a")):
        assert not machine.can_run(step), step
    machine.run(free("s1"))
    for step in (admit("more", 7), fork("more", "s0"), Step("swap_in", "a")):
        assert machine.can_run(step), step
    machine.finish()


def test_what_an_allocator_does_not_declare_is_left_out_of_any_program() -> None:
    least = AllocatorCapabilities(prefix_caching=False, hostile=frozenset())
    steps = (
        A,
        fork("b", "a"),
        Step("swap_out", "a"),
        Step("reset"),
        Step("free_unknown"),
        free("a"),
    )
    machine = made(Right, pool=NO_CACHE)
    machine.can = least
    for step in steps:
        machine.run(step)
    assert machine.steps == [A, free("a")]


# Calls that make no sense


HOSTILE_STEPS = tuple(
    {
        "fork_onto_live": Step("fork_onto_live", "b", parent="a"),
        "admit_live": Step("admit_live", "a", tokens=(0, 1)),
        "admit_negative": Step("admit_negative", NOBODY, tokens=(0, 1)),
        "admit_oversized": Step("admit_oversized", NOBODY, tokens=(0, 1)),
    }.get(call, Step(call))
    for call in HOSTILE_CALLS
)


class DoesNothing(Right):
    """Where ours raises, this one looks away."""

    def free(self, sequence: str) -> None:
        if sequence in self.allocator._tables:
            super().free(sequence)

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        return sequence in self.allocator._tables and super().append(sequence, tokens)

    def fork(self, parent: str, child: str) -> bool:
        known = self.allocator._tables
        return parent in known and child not in known and super().fork(parent, child)

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        if sequence in self.allocator._tables or not 0 <= num_tokens <= len(tokens):
            return None
        return super().admit(sequence, tokens, num_tokens=num_tokens, salt=salt)


@pytest.mark.parametrize("kind", [Right, DoesNothing])
def test_a_call_that_makes_no_sense_may_raise_or_do_nothing(kind: type) -> None:
    machine = made(kind, A, B, admit("c", 5), free("c"), *HOSTILE_STEPS)
    assert machine.steps[-len(HOSTILE_STEPS) :] == list(HOSTILE_STEPS)
    assert {call: machine.calls[call] for call in HOSTILE_CALLS} == dict.fromkeys(HOSTILE_CALLS, 1)
    machine.finish()


@pytest.mark.parametrize("step", HOSTILE_STEPS, ids=str)
def test_a_call_that_makes_no_sense_must_change_nothing(step: Step) -> None:
    class Takes(Right):
        """Takes a block whenever ours raises."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in ("admit", "append", "fork", "free"):
                return found

            def call(*given: Any, **named: Any) -> Any:
                try:
                    return found(*given, **named)
                except Exception:
                    self.allocator.pool.allocate(1)
                    raise

            return call

    steps = (A, B, admit("c", 5), free("c"), step)
    finding = run_program(factory_of(Takes), Program(SIX_BY_TWO, steps))
    assert finding is not None
    assert finding.check == "trace"
    assert finding.message.startswith(f"{step.call}: there were 3 free")
    assert finding.program.steps == steps


# The engine's part


class Written(Right):
    """Writes down what is asked of it, looking aside."""

    LOOKING = ("counts", "slots", "idle_blocks")

    def __init__(self, *given: Any, **named: Any) -> None:
        self.asked: list[str] = []
        super().__init__(*given, **named)

    def __getattribute__(self, name: str) -> Any:
        if name in ("admit", "append", "fork", "free", "preempt", "commit", "take_copies", "reset"):
            self.asked.append(name)
        return super().__getattribute__(name)

    def preempt(self, sequence: str) -> None:
        self.allocator.free(sequence)


BATCHING = replace(SIX_BY_TWO, batching=True)


FULL, PART = admit("a", 0, 1, 2), admit("a", 0)
A_BATCH = (A, B, append("a", 3), Step("settle"), Step("settle"))


@pytest.mark.parametrize(
    ("steps", "pool", "declared", "calls"),
    [
        # Each call is followed by copies and commits,
        ((A,), SIX_BY_TWO, {}, "admit commit"),
        ((A, append("a", 3)), SIX_BY_TWO, {}, "admit commit append take_copies commit"),
        ((A, fork("b", "a")), SIX_BY_TWO, {}, "admit commit fork take_copies commit"),
        # but only where they are declared.
        ((A, append("a", 3)), SIX_BY_TWO, {"commit": False, "fork": False}, "admit append"),
        # A batch waits for settle, a parent is written before it is forked,
        (A_BATCH[:3], BATCHING, {}, "admit admit append"),
        (A_BATCH, BATCHING, {}, "admit admit append take_copies commit commit"),
        ((A, fork("b", "a")), BATCHING, {}, "admit commit fork"),
        # and full blocks before they are freed.
        ((FULL, free("a")), BATCHING, {}, "admit commit free"),
        ((PART, free("a")), BATCHING, {}, "admit free"),
        ((FULL, free("a")), replace(BATCHING, prefix_caching=False), {}, "admit free"),
        ((FULL, free("a")), BATCHING, {"abort_before_write": True}, "admit free"),
        # Preemption is asked for by name where that is declared.
        (
            (A, Step("preempt", "a")),
            SIX_BY_TWO,
            {"preempt": True},
            "admit commit preempt take_copies",
        ),
        ((A, Step("preempt", "a")), SIX_BY_TWO, {}, "admit commit free take_copies"),
    ],
)
def test_calls_come_in_the_order_of_an_engine(
    steps: tuple[Step, ...], pool: Pool, declared: dict[str, Any], calls: str
) -> None:
    machine = made(Written, *steps, pool=pool, can_admit=False, **declared)
    assert machine._allocator.asked == calls.split()


def test_a_second_settle_is_left_out() -> None:
    assert made(Right, *A_BATCH, pool=BATCHING).steps == list(A_BATCH[:4])


def test_between_call_and_settle_the_content_may_lag_behind() -> None:
    # Of two that are admitted at once the second may be told of a hit that nobody has written yet.
    steps = (A, admit("b", 0, 1, 5))
    machine = made(Right, *steps, pool=BATCHING)
    assert machine.lives["b"].written == 2
    assert not machine.shadow.prefixes.any()
    machine.run(Step("settle"))
    assert machine.lives["a"].written == machine.lives["b"].written == 3
    machine.finish()


def test_the_rest_of_a_prompt_comes_before_new_tokens() -> None:
    machine = made(Right, admit("a", 9, 8, 7, 6, first=2))
    assert (machine.lives["a"].tokens, machine.lives["a"].rest) == ([9, 8], [7, 6])
    machine.run(append("a", 1, 2, 3))
    assert (machine.lives["a"].tokens, machine.lives["a"].rest) == ([9, 8, 7, 6, 3], [])
    machine.finish()


def test_a_cached_prefix_and_one_token_more_are_admitted_in_any_case() -> None:
    machine = made(Right, admit("a", 0, 1, 2, 3, 4), admit("b", 0, 1, 2, 3, 4, 5, 6, first=1))
    assert (machine.lives["b"].tokens, machine.lives["b"].rest) == ([0, 1, 2, 3, 4], [5, 6])
    assert machine.lives["b"].written == 5
    machine.finish()


def test_copies_are_carried_out_in_the_other_order() -> None:
    copies = []
    machine = made(Right, admit("a", 0, 1, 2), fork("b", "a"), fork("c", "a"), pool=BATCHING)
    machine.run(append("b", 3))
    machine.run(append("c", 4))
    copy = machine.shadow.copy
    machine.shadow.copy = lambda *pair: (copies.append(pair), copy(*pair))
    machine.run(Step("settle"))
    assert copies == [(1, 3), (1, 2)]
    assert machine.calls["copy"] == 2
    machine.finish()


def test_the_end_frees_everything_forgets_and_fills_the_pool_once() -> None:
    machine = made(Written, A, B, can_admit=False)
    machine._allocator.asked.clear()
    machine.finish()
    calls = [call for call in machine._allocator.asked if call not in ("commit", "take_copies")]
    assert calls == ["free", "free", "reset", "admit", "free"]
    assert machine.ending
    assert machine.steps[:4] == [A, B, free("a"), free("b")]
    assert [step.call for step in machine.steps[4:]] == ["reset", "admit", "free"]


def test_what_the_end_shows_of_an_empty_pool_has_its_steps() -> None:
    bug = BUGS["whole_pool_is_never_given"]
    with bug.planted():
        program = Program(Pool(num_blocks=26, block_size=4), ())
        finding = run_program(bug.factory, program, capabilities=bug.capabilities)
        assert finding is not None
        assert [step.call for step in finding.program.steps] == ["reset", "admit"]
        assert not finding.at_the_end
        again = run_program(bug.factory, finding.program, capabilities=bug.capabilities)
    assert again == finding


# What is known to be cached


EVICTED = (*ONE_IDLE, admit("b", *range(100, 112)), free("b"))


def test_what_is_evicted_need_not_be_found_and_what_is_computed_again_must_be() -> None:
    again = (admit("c", 0, 1, 2), free("c"), admit("d", 0, 1, 9))
    machine = made(Right, *EVICTED, *again)
    assert machine.lives["d"].written == 3
    assert machine.evictions
    machine.finish()
    for name in ("nothing_is_found_after_an_eviction", "nothing_is_published_after_an_eviction"):
        finding = finding_of(name, *EVICTED, *again)
        assert finding is not None, name
        assert finding.check == "hit"
        assert finding.message == "0 tokens found cached, although 2 are that were not evicted"


def test_without_idle_blocks_nothing_is_asked_of_what_may_have_been_evicted() -> None:
    again = (admit("c", 0, 1, 2), free("c"), admit("d", 0, 1, 9))
    name = "nothing_is_found_after_an_eviction"
    finding = finding_of(name, *EVICTED, *again, eviction=None)
    assert finding is not None, "it was computed again, and there was room"
    assert finding.program.steps[-1].sequence == "d"
    assert finding_of(name, *EVICTED, admit("d", 0, 1, 9), eviction=None) is None


@pytest.mark.parametrize("kind", ["PrefixIndex", "EqualBlocksAreKept"])
def test_an_equal_block_that_is_kept_stands_in_for_one_that_is_evicted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two fill equal blocks: both may be kept, or only the first.
    steps = (
        *(admit("a", 0), admit("b", 0), append("a", 1), append("b", 1), free("a"), free("b")),
        admit("c", *range(100, 110)),
        free("c"),
        admit("d", 0, 1, 9),
    )
    finding = finding_of("eviction_forgets_the_equal_block", *steps)
    if kind == "EqualBlocksAreKept":
        monkeypatch.setattr("paged.allocator.PrefixIndex", keys.EqualBlocksAreKept)
    assert run_program(factory_of(Right), Program(SIX_BY_TWO, steps)) is None
    assert (finding.check, finding.program.steps[-1].sequence) == ("hit", "d")


def test_what_is_free_is_not_found() -> None:
    class FindsWhatIsFree(Right):
        """Blocks that a reset made free still lead to what they held."""

        def admit(self, sequence: str, tokens: Sequence[int], **options: Any) -> int | None:
            hit = super().admit(sequence, tokens, **options)
            return 2 if sequence == "c" else hit

    steps = (*ONE_IDLE, Step("reset"), admit("c", 0, 1, 9))
    finding = run_program(factory_of(FindsWhatIsFree), Program(SIX_BY_TWO, steps))
    assert finding is not None
    assert finding.program.steps[-1].sequence == "c"
    assert finding.check in ("hit", "content")


@pytest.mark.parametrize(
    ("name", "steps", "words"),
    [
        (
            "tenants_share_their_prefixes",
            (A, admit("b", 0, 1, 2, salt="other")),
            "found the same tokens under another salt, '' instead of 'other'",
        ),
        (
            "sequences_publish_on_after_a_reset",
            (admit("a", 0), Step("reset"), append("a", 1), admit("b", 0, 1, 2)),
            "found the same tokens written before the reset",
        ),
        ("hash_without_its_parent", (admit("a", 0, 1, 2, 3, 4), admit("b", 2, 3, 9)), None),
    ],
)
def test_content_of_somebody_else_is_told_in_words(
    name: str, steps: tuple[Step, ...], words: str | None
) -> None:
    finding = finding_of(name, *steps)
    assert finding is not None
    assert finding.check == "content"
    assert (words or "expected token ") in finding.message
    assert str(2**20) not in finding.message


# How engines differ


class TakesOneTokenACall(Right):
    can = replace(PAGED, single_appends=True)

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        (token,) = tokens
        return super().append(sequence, [token])


class ReservesThePrompt(PagedSubject):
    """Room for all of a prompt at its admission; the chunks that follow take none."""

    can = replace(PAGED, reserves_prompt=True, prefix_caching=False, can_admit=False)

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.rest: dict[str, int] = {}

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        hit = super().admit(sequence, tokens, num_tokens=len(tokens), salt=salt)
        if hit is not None:
            self.rest[sequence] = len(tokens) - max(num_tokens, min(1, len(tokens)))
        return hit

    def fork(self, parent: str, child: str) -> bool:
        self.rest[child] = 0
        return super().fork(parent, child)

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        new = tokens[self.rest[sequence] :]
        if new and not super().append(sequence, list(new)):
            return False
        self.rest[sequence] -= len(tokens) - len(new)
        return True


@pytest.mark.parametrize("kind", [TakesOneTokenACall, ReservesThePrompt])
def test_an_engine_of_another_kind_says_so_and_is_right(kind: Any) -> None:
    steps = (
        *(admit("a", 0, 1, 2, 3, 4, first=2), append("a", 2), append("a", 3), append("a", 4)),
        *(append("a", 9), fork("b", "a"), append("b", 10), free("a")),
    )
    program = Program(SIX_BY_TWO, steps)
    assert run_program(factory_of(kind), program) is None
    silent = replace(kind.can, single_appends=False, reserves_prompt=False)
    more = Program(SIX_BY_TWO, (*steps, append("b", 11, 12)))
    finding = run_program(factory_of(kind, silent), more)
    assert finding is not None
    assert finding.check == ("answer" if kind is TakesOneTokenACall else "table")


def test_a_prompt_without_tokens_is_fine() -> None:
    steps = (admit("a"), append("a"), append("a", 0), fork("b", "a"), append("a", *range(1, 9)))
    assert run_program(factory_of(Right), Program(SIX_BY_TWO, steps)) is None


# What is declared is put up with


def test_a_reset_may_be_refused_while_something_runs() -> None:
    program = Program(SIX_BY_TWO, (A, Step("reset"), free("a"), Step("reset")))
    assert run_program(factory_of(RightButForResetsWhileRunning), program) is None


def test_spare_blocks_may_be_kept_back_if_that_is_declared() -> None:
    program = Program(SIX_BY_TWO, (FIVE, free("a"), admit("b", *range(100, 112))))
    assert run_program(factory_of(RightWithSpareBlocks), program) is None
    honest = factory_of(RightWithSpareBlocks, replace(RightWithSpareBlocks.can, spare_blocks=0))
    finding = run_program(honest, program)
    assert finding is not None
    assert finding.check == "capacity"


def finding_of(name: str, *steps: Step, pool: Pool = SIX_BY_TWO, **declared: Any) -> Finding | None:
    """What a program finds in a wrong allocator of the catalogue."""
    bug = BUGS[name]
    with bug.planted():
        can = replace(bug.capabilities, **declared)
        return run_program(bug.factory, Program(pool, steps), capabilities=can)


def test_a_window_may_be_left_late_by_its_slack() -> None:
    late, steps = "more_than_the_slack_is_kept", (admit("a", 0, 1, 2, 3),)
    assert finding_of(late, *steps, pool=WINDOW_OF_TWO)
    assert finding_of(late, *steps, pool=WINDOW_OF_TWO, window_slack=2) is None


@pytest.mark.parametrize(
    "name", ["most_recently_used_is_evicted_first", "parent_is_evicted_before_its_child"]
)
def test_an_order_that_is_not_declared_is_not_checked(name: str) -> None:
    steps = (*TWO_IDLE, TAKE_FIVE, free("c"), *CHAIN_OF_TWO, TAKE_FIVE)
    assert finding_of(name, *steps)
    assert finding_of(name, *steps, eviction=None) is None


def test_after_a_reset_new_sequences_find_nothing_of_the_old_weights() -> None:
    machine = made(Right, A, Step("reset"), admit("b", 0, 1, 2))
    assert machine.lives["b"].written == 3
    assert machine.lives["a"].origin != machine.lives["b"].origin
    machine.finish()


# Findings


def test_a_finding_says_when_it_showed() -> None:
    program = Program(SIX_BY_TWO, (A,))
    assert str(Finding("hit", "words", program, at_the_end=False)) == (
        "hit, in the last step: words"
    )
    assert str(Finding("drain", "words", program, at_the_end=True)) == (
        "drain, when everything was freed: words"
    )


def test_steps_behind_the_one_that_shows_it_are_not_in_the_finding() -> None:
    finding = finding_of("raises_on_a_legal_call", A, append("a", 1), free("a"), B)
    assert finding is not None
    assert finding.program.steps == (A, append("a", 1))


def test_capabilities_that_are_given_take_precedence() -> None:
    least = replace(PAGED, fork=False)
    seen = []

    def look(machine: AllocatorMachine) -> None:
        machine.on_step = lambda m: seen.append((m.steps[-1].call, len(m.lives)))
        for step in COPY_ON_WRITE:
            machine.run(step)

    assert find_fault(factory_of(Right), SIX_BY_TWO, look, capabilities=least) is None
    assert seen == [("admit", 1)]


def test_an_error_of_whoever_runs_the_machine_is_no_finding() -> None:
    def run(_: AllocatorMachine) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        find_fault(factory_of(Right), SIX_BY_TWO, run)


def test_states_are_equal_whatever_the_blocks_are_called() -> None:
    one = made(Right, A, B, free("b"))
    other = made(Right, B, A, free("b"))
    assert one.lives.keys() == other.lives.keys()
    assert one.state() == other.state()
    assert one.state() != made(Right, A, B).state()
