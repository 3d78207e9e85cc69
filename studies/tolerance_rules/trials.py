"""Wrong and right kernels on problems that do not depend on the rules which judge the answers.

Each harness of the planted bugs gives its problems: drawn ones, asked in every working type and
with every kind of inputs, and a ladder of long contexts. Slots that no sequence owns hold stale
keys and values here, not NaN: poison is a detector of its own, and with it any rule looks sharp.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from hypothesis import Phase, given, seed, settings
from torch import Tensor

from bench.search.drawing import only_our_constants
from helpers.mutants import Harness, Kernels, as_on_a_gpu, programs_in_reverse
from paged.attention import paged_attention
from reference.attention.chunked import attend_in_chunks
from reference.attention.contract import AttentionKernel, PagedBatch
from reference.attention.inputs import Inputs, make_inputs, quantise
from reference.attention.placement import place
from reference.attention.problem import (
    INPUT_KINDS,
    QUERY_DTYPES,
    AttentionProblem,
    InvalidProblem,
    Request,
)
from studies.tolerance_rules.rules import Answer, Yardsticks, rejecting, yardsticks

DRAWN: Final = 4
"""Problems of each harness, spread over the sample; each is asked in every dtype and with every
kind of inputs."""

SAMPLE: Final = 30
"""The first problems of each harness. From so many it shows what the harness demands."""

CONTEXTS: Final = (64, 256, 1024, 2048)
"""Tokens in the cache of the long problems."""

SEEDS: Final = 2
"""Draws of the numbers of each long problem."""

LONG_QUERY: Final = 4
"""Query tokens of a long problem, unless the harness draws decode only."""

ORIGINAL: Final = "Triton"
"""The right implementation that the bugs are planted in."""

CONTIGUOUS_CHUNK: Final = 16
"""Keys that the contiguous implementation adds up at a time; the paged one in torch takes 64."""

# Problems


def drawn(harness: Harness, count: int) -> list[AttentionProblem]:
    """Problems of a harness, the same in every run: the first that ask for something.

    Fewer than `count` if a harness has fewer, and none if it wants contexts longer than ours.
    """
    found: dict[str, AttentionProblem] = {}

    @seed(0)
    @settings(max_examples=10 * count, phases=[Phase.generate], database=None, deadline=None)
    @given(harness.examples)
    def collect(problem: AttentionProblem) -> None:
        if problem.num_tokens and 0 < problem.max_seq_len <= CONTEXTS[-1]:
            found.setdefault(str(problem), problem)

    with only_our_constants():
        collect()
    return list(found.values())[:count]


def cast(problem: AttentionProblem, *, dtype: str, inputs: str) -> AttentionProblem:
    """The same problem in another working type; a float8 cache stays one."""
    kv_dtype = problem.kv_dtype if problem.quantised else dtype
    return problem.replace(dtype=dtype, kv_dtype=kv_dtype, inputs=inputs)


PLAIN: Final = AttentionProblem(
    requests=(Request(1, 1),), num_kv_heads=1, group_size=4, head_dim=64, block_size=16
)
"""What the long problems are like, apart from what a harness demands."""


SHAPE: Final = ("num_kv_heads", "group_size", "block_size")
VARIANT: Final = (
    "head_dim", "causal", "softcap", "alibi", "sinks", "scale", "kv_dtype", "k_scale", "v_scale"
)  # fmt: skip


def lengthened(problems: list[AttentionProblem], tokens: int) -> AttentionProblem:
    """What a harness demands of its problems, on flat inputs, over one long context.

    A shape is demanded if all of them have it, a variant if none of them goes without. What is
    not demanded is left out: a window or ALiBi hides what is far away, and with it the length. A
    window that is demanded becomes half of the context.
    """
    first = problems[0]
    demanded = {
        name: getattr(first, name)
        for name in SHAPE
        if all(getattr(problem, name) == getattr(first, name) for problem in problems)
    } | {
        name: getattr(first, name)
        for name in VARIANT
        if all(_differs(problem, name) for problem in problems)
    }
    if all(problem.window is not None for problem in problems):
        demanded["window"] = tokens // 2
    prefill = any(problem.max_query_len > 1 for problem in problems)
    waits = all(problem.requests[0].query_len == 0 for problem in problems)
    requests = (
        *([first.requests[0]] if waits else []),
        Request(LONG_QUERY if prefill else 1, tokens),
    )
    return PLAIN.replace(requests=requests, **demanded)


def _differs(problem: AttentionProblem, name: str) -> bool:
    if name == "kv_dtype":
        return problem.quantised
    return bool(getattr(problem, name) != getattr(PLAIN, name))


# Answers


@contextmanager
def surroundings(harness: Harness) -> Iterator[None]:
    """Where a harness runs its kernels."""
    with ExitStack() as stack:
        stack.enter_context(as_on_a_gpu())
        if harness.backwards:
            stack.enter_context(programs_in_reverse())
        yield


def among_stale(inputs: Inputs) -> PagedBatch:
    """Lay a problem out in pages; what nobody owns holds keys and values of others, long gone.

    The pool lies between two more of its size, so that a page that is far off is also only stale.
    """
    problem = inputs.problem
    placement = place(inputs)
    rng = torch.Generator().manual_seed(problem.seed + 1)
    rooms = [_with_stale(bits, problem, rng) for bits in placement.storages]
    batch = placement.batch
    return batch.replace(
        key_cache=_in_the_middle(batch.key_cache, rooms[0]),
        value_cache=_in_the_middle(batch.value_cache, rooms[-1]),
    )


def _with_stale(bits: Tensor, problem: AttentionProblem, rng: torch.Generator) -> Tensor:
    """Three times a storage, the middle one with its owned slots, and stale numbers elsewhere."""
    stale = torch.randn(3, *bits.shape, generator=rng)
    if problem.quantised:
        stored = quantise(stale, problem.torch_kv_dtype, problem.k_scale)
    else:
        stored = stale.to(problem.torch_kv_dtype)
    room = stored.view(bits.dtype)  # as bits: float8 has few kernels
    owned = ~bits.view(problem.torch_kv_dtype).float().isnan()
    room[1] = torch.where(owned, bits, room[1])
    return room.view(problem.torch_kv_dtype)


def _in_the_middle(cache: Tensor, room: Tensor) -> Tensor:
    at = cache.storage_offset() + room[0].numel()
    return room.as_strided(cache.shape, cache.stride(), at)


def ask(kernel: AttentionKernel, batch: PagedBatch) -> Answer:
    """Have a kernel fill outputs that hold NaN."""
    assert batch.lse is not None
    batch.out.fill_(torch.nan)
    batch.lse.fill_(torch.nan)
    kernel(batch)
    return Answer(batch.out.clone(), batch.lse.clone())


def contiguous(inputs: Inputs) -> AttentionKernel:
    """Attention over the contiguous keys, added up in another order than by the paged ones."""
    problem = inputs.problem

    def rows(cache: Tensor, sequences: Tensor, start: int, stop: int) -> Tensor:
        parts = [_padded(cache, problem, s, start, stop) for s in sequences.tolist()]
        return torch.stack(parts)

    def fetch(sequences: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        span = (sequences, start, stop)
        return rows(inputs.keys, *span), rows(inputs.values, *span)

    return partial(
        attend_in_chunks, fetch=fetch, num_kv_heads=problem.num_kv_heads, chunk=CONTIGUOUS_CHUNK
    )


def _padded(
    cache: Tensor, problem: AttentionProblem, sequence: int, start: int, stop: int
) -> Tensor:
    """Keys or values of a sequence in float32, zero past its end, [stop - start, heads, dim]."""
    first = problem.cache_starts[sequence]
    last = first + problem.requests[sequence].seq_len
    own = cache[min(first + start, last) : min(first + stop, last)].float()
    return torch.cat([own, own.new_zeros(stop - start - len(own), *own.shape[1:])])


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two answers agree to the last bit, NaN with NaN."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


# Judging


@dataclass(frozen=True, slots=True)
class Case:
    """A problem as it is asked and counted; `context` is its tokens if it is one of the long."""

    problem: AttentionProblem
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rules said of one answer."""

    subject: str
    """A bug, or a right implementation."""
    case: Case
    out_differs: bool
    """Whether `out` has other bits than that of the right kernels, launched alike."""
    rejected: frozenset[str]
    """Names of the rules that rejected the answer."""


@dataclass(slots=True)
class Trials:
    """What was asked, and what came of it."""

    wrong: list[Judged] = field(default_factory=list)
    """Answers of bugs that differ in a bit from those of the right kernels."""
    right: list[Judged] = field(default_factory=list)
    """Answers of right implementations."""
    asked: set[str] = field(default_factory=set)
    raised: set[str] = field(default_factory=set)
    """Bugs that were asked anything, and those that raised an exception."""

    def add(self, other: Trials) -> None:
        """Take over another's."""
        self.wrong += other.wrong
        self.right += other.right
        self.asked |= other.asked
        self.raised |= other.raised


def cases_of(harness: Harness) -> Iterator[Case]:
    """Every problem that is asked of the bugs of a harness, drawn ones first."""
    chosen = drawn(harness, SAMPLE)
    if not chosen:
        return
    spread = chosen[:: -(-len(chosen) // DRAWN)]  # neighbours are often variations of each other
    for problem, dtype, kind in itertools.product(spread, QUERY_DTYPES, INPUT_KINDS):
        yield Case(cast(problem, dtype=dtype, inputs=kind))
    for tokens, dtype, number in itertools.product(CONTEXTS, QUERY_DTYPES, range(SEEDS)):
        long = cast(lengthened(chosen, tokens), dtype=dtype, inputs="flat")
        yield Case(long.replace(seed=number), tokens)


def try_bugs(
    harness: Harness, bugs: dict[str, Kernels], right: Kernels, cases: Iterable[Case]
) -> Trials:
    """Ask planted kernels, by the name of their bug, and right ones, and judge every answer."""
    trials = Trials()
    for case in cases:
        # In a long context the length alone is to make the difference, not how it is split.
        splits = harness.splits if case.context is None else harness.splits or 1
        launch = partial(Kernels.attention, num_splits=splits, tiles=harness.tiles)
        try:
            inputs = make_inputs(case.problem)
        except InvalidProblem:
            continue  # the scale that was drawn needs queries beyond float16
        with surroundings(harness):
            held = yardsticks(inputs)
            batch = among_stale(inputs)
            subjects = {
                ORIGINAL: launch(right),
                "torch": paged_attention,
                "contiguous": contiguous(inputs),
            }
            answers = {name: ask(kernel, batch) for name, kernel in subjects.items()}
            original = answers[ORIGINAL]
            for name, answer in answers.items():
                trials.right.append(_judged(name, case, answer, original, held))
            for name, planted in bugs.items():
                trials.asked.add(name)
                try:
                    answer = ask(launch(planted), batch)
                except Exception:  # a harness notices, whatever its tolerance
                    trials.raised.add(name)
                    continue
                judged = _judged(name, case, answer, original, held)
                if judged.out_differs or not same_numbers(answer.lse, original.lse):
                    trials.wrong.append(judged)
    return trials


def _judged(name: str, case: Case, answer: Answer, original: Answer, held: Yardsticks) -> Judged:
    differs = not same_numbers(answer.out, original.out)
    return Judged(name, case, out_differs=differs, rejected=rejecting(answer, held))
