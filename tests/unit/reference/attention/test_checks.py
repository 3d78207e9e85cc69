"""The laws: the right kernel passes them all, a wrong one fails exactly those that it breaks."""

import gc
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor

from helpers.profiles import examples
from paged.attention import paged_attention
from reference.attention.catalogue import CHECKS, FREE_SLOTS, LAWS, MEMORY, TRUTH, Check, applicable
from reference.attention.checks import Watch, judge, run_check
from reference.attention.contract import (
    VARIANTS,
    AttentionKernel,
    Capabilities,
    PagedBatch,
    declares,
)
from reference.attention.inputs import make_inputs
from reference.attention.placement import CANARY, GUARD_ROWS, place
from reference.attention.problem import LAYOUTS, AttentionProblem
from reference.attention.strategies import problems
from reference.attention.truth import attend
from reference.attention.verdict import Status, Verdict

Maker = Callable[[], AttentionKernel]
BY_NAME = {check.name: check for check in CHECKS}


def failed_by_new(make: Maker, spec: str) -> dict[str, tuple[str, ...]]:
    """The checks that a kernel, made anew for each, fails on a problem, with what they found."""
    problem = AttentionProblem.parse(spec)
    checks = (TRUTH, *applicable(problem))
    verdicts = [run_check(check, promising(make()), problem) for check in checks]
    return {verdict.check: verdict.findings for verdict in verdicts if verdict.wrong}


def promising(kernel: AttentionKernel) -> AttentionKernel:
    """The kernel, which promises what it can only be held to if it does."""
    if hasattr(kernel, "capabilities"):
        return kernel

    @declares(Capabilities(promises=frozenset({"deterministic", "relabelling"})))
    def promised(batch: PagedBatch) -> None:
        kernel(batch)

    return promised


def failed(kernel: AttentionKernel, spec: str) -> dict[str, tuple[str, ...]]:
    return failed_by_new(lambda: kernel, spec)


def nudge(tensor: Tensor) -> None:
    """Move every element to the next number away from zero: wrong in bits, right in value."""
    whole = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    tensor.view(whole).add_(1)


# Sums differ from CPU to CPU, so these may pass elsewhere.
@examples(50)
@given(problems())
def test_paged_attention_passes_every_law(problem: AttentionProblem) -> None:
    for check in (TRUTH, *applicable(problem)):
        verdict = run_check(check, paged_attention, problem)
        assert verdict == Verdict(check.name, Status.PASSED), f"{problem}: {verdict}"


# The tolerance once rejected a right kernel on these.
@pytest.mark.parametrize(
    "spec",
    [
        "(q1 k1) d256 b16 fp32 kv=e5m2 inputs=needle seed=2",
        "(q74 k74) h2 g2 d16 b16 fp32 kv=e5m2 kscale=1.7 inputs=sunken seed=417",
        "(q7 k63) 2x(q50 k50) h2 g4 d128 b32 fp32 shared=46 inputs=sunken seed=482",
        "(q19 k100) (q1 k85) (q50 k50) (q31 k31) g20 d64 b16 fp32 shared=49 sinks inputs=loud "
        "seed=554",
    ],
)
def test_paged_attention_is_not_rejected(spec: str) -> None:
    assert failed(paged_attention, spec) == {}


# --- wrong kernels, each with one defect ---------------------------------------------------------


def depends_on_physical_pages(batch: PagedBatch) -> None:
    paged_attention(batch)
    if int(batch.block_table[0, 0]) < int(batch.block_table[0, 1]):
        nudge(batch.out)


def writes_a_log_sum_exp_that_depends_on_physical_pages(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is not None and int(batch.block_table[0, 0]) < int(batch.block_table[0, 1]):
        nudge(batch.lse)


class FlipsOnRepetition:
    """Answers the same call differently the second time, as a kernel that tunes itself may."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, batch: PagedBatch) -> None:
        paged_attention(batch)
        if batch.lse is None:
            return
        again = self.last is not None and torch.equal(self.last, batch.block_table)
        self.last = None if again else batch.block_table.clone()
        if again:
            nudge(batch.out)


class NeverTheSame:
    """Adds up in another order in every call, as atomics do."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: PagedBatch) -> None:
        paged_attention(batch)
        self.calls += 1
        if self.calls % 2:
            nudge(batch.out)


class RemembersLengths:
    """Plans for the lengths that it saw first in a tensor, as a captured graph does."""

    def __init__(self) -> None:
        self.plans: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, batch: PagedBatch) -> None:
        key = (batch.seq_lens.data_ptr(), batch.max_seq_len, *batch.query.shape)
        lengths = self.plans.setdefault(key, batch.seq_lens.clone())
        paged_attention(batch.replace(seq_lens=lengths))


def answers_otherwise_without_lse(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is None:
        nudge(batch.out)


def needs_lse_to_answer(batch: PagedBatch) -> None:
    if batch.lse is not None:
        paged_attention(batch)


def dislikes_shared_blocks(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.block_table.shape[0] > 1 and int(batch.block_table[0, 0]) == int(
        batch.block_table[1, 0]
    ):
        nudge(batch.out)


def leaks_into_the_next_sequence(batch: PagedBatch) -> None:
    paged_attention(batch)
    batch.out[1:] += 0.05 * batch.out[:-1].clone()


def wrong_when_alone(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.seq_lens.numel() == 1:
        batch.out.mul_(1.05)


def wrong_lse_when_alone(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.seq_lens.numel() == 1 and batch.lse is not None:
        batch.lse.add_(0.01)


def wrong_in_the_last_row_of_prefill(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.max_query_len > 1:
        batch.out[batch.query_start_loc[1:].long() - 1] *= 1.05


def wrong_in_decode(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.max_query_len == 1:
        batch.out.mul_(1.05)


def wrong_while_it_grows(batch: PagedBatch) -> None:
    """Its decode is wrong at 7 tokens, before the sequence is as long as in the batch."""
    paged_attention(batch)
    if batch.max_query_len == 1 and batch.max_seq_len == 7 and batch.lse is not None:
        batch.lse.add_(0.01)


def counts_v_scale_into_the_lse(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is not None:
        batch.lse.add_(math.log(batch.v_scale))


def lets_v_scale_touch_the_lse(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is not None and batch.v_scale > 1:
        nudge(batch.lse)


def saturates(batch: PagedBatch) -> None:
    paged_attention(batch)
    batch.out.clamp_(-4, 4)


def forgets_v_scale(batch: PagedBatch) -> None:
    paged_attention(batch.replace(v_scale=1.0))


def gives_lse_in_base_two(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is not None:
        batch.lse.div_(math.log(2))


def forgets_the_sink_in_the_lse(batch: PagedBatch) -> None:
    paged_attention(batch.replace(sinks=None))
    paged_attention(batch.replace(lse=None))


def beyond(tensor: Tensor, row: int) -> Tensor:
    """A row before or after the tensor, as a pointer with the wrong sign or bound would find it."""
    start = tensor.storage_offset() + row * tensor.stride(0)
    return tensor.as_strided(tensor.shape[1:], tensor.stride()[1:], start)


def writes_past_out(batch: PagedBatch) -> None:
    paged_attention(batch)
    beyond(batch.out, batch.out.shape[0]).zero_()


def writes_before_lse(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.lse is not None:
        beyond(batch.lse, -1).zero_()


def writes_to_a_free_slot(batch: PagedBatch) -> None:
    paged_attention(batch)
    nan = batch.key_cache[:, :, 0, 0].isnan().nonzero()[0]
    batch.key_cache[nan[0], nan[1]] = 0.0


def scales_the_cache_in_place(batch: PagedBatch) -> None:
    paged_attention(batch)
    batch.value_cache[batch.block_table[0, 0]] *= 2


def raises(batch: PagedBatch) -> None:
    raise NotImplementedError(f"no kernel for head size {batch.query.shape[-1]}")


def writes_nothing(batch: PagedBatch) -> None:
    """Returns at once, as a launch that failed without a word."""


def writes_only_out(batch: PagedBatch) -> None:
    paged_attention(batch.replace(lse=None))


def loses_the_last_token(batch: PagedBatch) -> None:
    table, lens = batch.block_table, (batch.seq_lens - 1).clamp(min=1)
    paged_attention(batch.replace(seq_lens=lens, block_table=table, causal=False))


DECODE = "(q1 k21) (q1 k9) g2 d16 b4 fp32"
MIXED = "(q1 k21) (q3 k9) g2 d16 b4 fp32"
SHARED = "(q1 k21) (q1 k19) g2 d16 b4 fp32 shared=12"
BITWISE = {"relabelled-pages", "repeated", "without-lse"}
EVERYTHING = {check.name for check in (TRUTH, *LAWS) if check.concerns(Capabilities())}
"""That can be seen of a kernel in torch: `memory` needs somebody who watches, see below."""

# A kernel with one defect, a problem that shows it, and exactly the checks that must fail.
WRONG: list[tuple[Maker, str, set[str]]] = [
    (lambda: depends_on_physical_pages, DECODE, {"relabelled-pages"}),
    (lambda: writes_a_log_sum_exp_that_depends_on_physical_pages, DECODE, {"relabelled-pages"}),
    (FlipsOnRepetition, DECODE, {"repeated"}),
    (NeverTheSame, DECODE, BITWISE),
    (RemembersLengths, DECODE, {"history"}),
    (lambda: answers_otherwise_without_lse, DECODE, {"without-lse"}),
    (lambda: needs_lse_to_answer, DECODE, {"without-lse"}),
    (lambda: dislikes_shared_blocks, SHARED, {"shared-prefix"}),
    (lambda: leaks_into_the_next_sequence, DECODE, {"truth", "alone", "shards"}),
    (lambda: wrong_when_alone, DECODE, {"alone"}),
    (lambda: wrong_lse_when_alone, DECODE, {"alone"}),
    (lambda: wrong_in_the_last_row_of_prefill, MIXED, {"truth", "last-row", "growth", "alone"}),
    (lambda: wrong_in_the_last_row_of_prefill, "(q3 k9) d16 fp32", {"truth", "last-row", "growth"}),
    (lambda: wrong_in_decode, "(q3 k9) d16 fp32", {"last-row", "growth"}),
    (lambda: wrong_while_it_grows, "(q3 k9) d16 fp32", {"growth"}),
    (
        lambda: counts_v_scale_into_the_lse,
        DECODE + " kv=e4m3 vscale=0.5",
        {"truth", "scaled-values"},
    ),
    (lambda: lets_v_scale_touch_the_lse, DECODE + " kv=e4m3 vscale=0.75", {"scaled-values"}),
    (lambda: saturates, "(q1 k1) d128 fp32 seed=1", {"scaled-values"}),
    (lambda: forgets_v_scale, DECODE + " kv=e5m2 vscale=0.5", {"truth", "scaled-values"}),
    (lambda: gives_lse_in_base_two, DECODE, {"truth", "shards"}),
    (lambda: forgets_the_sink_in_the_lse, DECODE + " sinks", {"truth"}),
    (lambda: writes_past_out, MIXED, {"truth"}),
    (lambda: writes_before_lse, MIXED, {"truth"}),
    (lambda: writes_to_a_free_slot, MIXED, {"truth"}),
    (lambda: scales_the_cache_in_place, MIXED, {"truth"}),
    (lambda: loses_the_last_token, DECODE, {"truth", "shards"}),
    (lambda: raises, SHARED, EVERYTHING - {"last-row", "growth"}),
    (lambda: raises, MIXED, EVERYTHING - {"shared-prefix", "shards"}),
    # What is not written is for one check to say.
    (lambda: writes_nothing, SHARED, {"truth"}),
    (lambda: writes_nothing, MIXED, {"truth"}),
    (lambda: writes_only_out, DECODE, {"truth"}),
]


def kernel_name(maker: Maker) -> str:
    return getattr(maker, "__name__", "") if isinstance(maker, type) else maker().__name__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("maker", "spec", "laws"),
    WRONG,
    ids=[f"{kernel_name(maker)}-{number}" for number, (maker, *_) in enumerate(WRONG)],
)
def test_a_wrong_kernel_fails_exactly_the_checks_it_breaks(
    maker: Maker, spec: str, laws: set[str]
) -> None:
    assert failed(paged_attention, spec) == {}
    findings = failed_by_new(maker, spec)
    assert set(findings) == laws
    for found in findings.values():
        assert found
        # A kernel that breaks in another way than it should would prove nothing.
        assert all(sentence.startswith("raised ") == (maker() is raises) for sentence in found)


def test_every_check_is_broken_by_one_of_the_wrong_kernels_alone() -> None:
    # Each check tells something that no other does: there is a kernel that only it rejects.
    # For `shards` it stands with the additions, in `test_each_law_is_needed`.
    alone = {next(iter(laws)) for _, _, laws in WRONG if len(laws) == 1}
    assert alone == EVERYTHING - {"last-row", "shards"}
    # What breaks the last row breaks the first step of growth; without growth it would be alone.
    assert any(laws == {"last-row", "growth"} for _, _, laws in WRONG)


@pytest.mark.parametrize(
    ("kernel", "spec", "check", "finding"),
    [
        (raises, DECODE, "truth", "raised NotImplementedError: no kernel for head size 16"),
        (writes_past_out, DECODE, "truth", "wrote to the rows after `out`"),
        (writes_before_lse, DECODE, "truth", "wrote to the rows before `lse`"),
        (writes_to_a_free_slot, DECODE, "truth", "wrote to the key or value cache"),
        (wrong_when_alone, DECODE, "alone", "sequence 0 alone and in its batch: outputs differ by"),
        (wrong_lse_when_alone, DECODE, "alone", "sequence 0 alone and in its batch: log-sum-exps"),
        (
            wrong_while_it_grows,
            "(q3 k9) d16",
            "growth",
            "sequence 0 at 7 tokens, grown and all at once",
        ),
        (wrong_in_decode, "(q3 k9) d16", "last-row", "decode and the last row of prefill: outputs"),
        (
            writes_only_out,
            DECODE,
            "truth",
            "lse is not written: 4 of 4 rows, the first at token 0, head 0",
        ),
    ],
)
def test_a_finding_says_what_and_where(
    kernel: AttentionKernel, spec: str, check: str, finding: str
) -> None:
    verdict = run_check(BY_NAME[check], kernel, AttentionProblem.parse(spec))
    assert verdict.status is Status.FAILED
    assert verdict.wrong
    assert any(found.startswith(finding) for found in verdict.findings), verdict.findings


# --- memory: somebody watches, or nobody does -----------------------------------------------------


def test_what_nobody_watches_is_not_run_and_the_kernel_is_not_called() -> None:
    verdict = run_check(MEMORY, raises, AttentionProblem.parse(DECODE))
    assert verdict.status is Status.NOT_RUN
    assert verdict.findings == ("only Triton kernels in the interpreter can be watched",)
    assert not verdict.wrong


def sees(findings: list[str] | None) -> Watch:
    """Calls the kernel, and says that it saw this."""

    def watch(kernel: AttentionKernel, batch: PagedBatch) -> list[str] | None:
        kernel(batch)
        return findings

    return watch


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ([], Verdict("memory", Status.PASSED)),
        (["read block 9 of s2"], Verdict("memory", Status.FAILED, ("read block 9 of s2",))),
        (None, Verdict("memory", Status.NOT_RUN, ("the kernel launched no Triton kernel",))),
    ],
)
def test_the_verdict_on_memory_is_what_was_seen(seen: list[str] | None, verdict: Verdict) -> None:
    problem = AttentionProblem.parse(DECODE)
    assert run_check(MEMORY, paged_attention, problem, watch=sees(seen)) == verdict
    # Nobody looks at memory for the others: what is seen there is no fault in them.
    assert run_check(TRUTH, paged_attention, problem, watch=sees(seen)).status is Status.PASSED


def test_what_a_kernel_raises_is_no_matter_of_memory_unless_watching_makes_it() -> None:
    problem = AttentionProblem.parse(DECODE)
    verdict = run_check(MEMORY, raises, problem, watch=sees([]))
    assert verdict.status is Status.NOT_RUN
    assert "raised NotImplementedError: no kernel for head size 16 (at test_checks" in str(verdict)

    def watch(kernel: AttentionKernel, batch: PagedBatch) -> list[str]:
        raise IndexError("90 of 4")

    verdict = run_check(MEMORY, paged_attention, problem, watch=watch)
    assert verdict.status is Status.FAILED


def test_without_a_promise_a_changed_bit_is_no_fault_and_nan_is_no_change() -> None:
    problem = AttentionProblem.parse(DECODE)

    def gives_nan(batch: PagedBatch) -> None:
        paged_attention(batch)
        batch.out[0] = torch.nan

    for name in ("repeated", "relabelled-pages", "without-lse"):
        assert run_check(BY_NAME[name], NeverTheSame(), problem).status is Status.PASSED
        assert run_check(BY_NAME[name], promising(gives_nan), problem).status is Status.PASSED
    assert run_check(BY_NAME["truth"], gives_nan, problem).status is Status.FAILED


def test_who_promises_batch_invariance_is_held_to_bits() -> None:
    def by_batch(batch: PagedBatch) -> None:
        paged_attention(batch)
        if batch.seq_lens.numel() > 1:
            nudge(batch.out)

    problem = AttentionProblem.parse(DECODE)
    alone = BY_NAME["alone"]
    assert run_check(alone, by_batch, problem).status is Status.PASSED
    promised = declares(Capabilities(promises=frozenset({"batch_invariant"})))(by_batch)
    assert run_check(alone, promised, problem).status is Status.FAILED


@pytest.mark.parametrize(
    ("kernel", "hint"),
    [
        (gives_lse_in_base_two, "times 1.4427 (1 / log 2): in base 2"),
        (lambda batch: paged_attention(batch.replace(scale=1.0)), "times 4 (the root of the head"),
        (lambda batch: (paged_attention(batch), batch.out.mul_(1 + 2**-11)), "size of tf32"),
    ],
)
def test_known_constants_are_named(kernel: AttentionKernel, hint: str) -> None:
    verdict = run_check(TRUTH, kernel, AttentionProblem.parse(DECODE))
    assert hint in verdict.findings[-1]


def test_a_declared_base_of_the_log_sum_exp_is_taken_into_account() -> None:
    @declares(Capabilities(lse_base="2"))
    def kernel(batch: PagedBatch) -> None:
        gives_lse_in_base_two(batch)

    assert failed(kernel, MIXED) == {}


PLACES = "(q1 k21) (q3 k9) (q2 k30) h2 g2 d16 b4 fp32"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_right_kernel_is_right_in_every_layout_near_and_far(layout: str) -> None:
    spec = f"{PLACES} layout={layout} strides=table,lse,out,query spare=0"
    assert failed(paged_attention, spec) == {}
    assert failed(paged_attention, f"{spec} pool=40000000") == {}


def dense_heads(cache: Tensor) -> Tensor:
    strides = (cache.stride(0), cache.stride(1), cache.shape[-1], 1)
    return torch.as_strided(cache, cache.shape, strides, cache.storage_offset())


def takes_heads_for_dense(batch: PagedBatch) -> None:
    keys, values = dense_heads(batch.key_cache), dense_heads(batch.value_cache)
    paged_attention(batch.replace(key_cache=keys, value_cache=values))


def dense_rows(answer: Tensor) -> Tensor:
    strides = (answer.stride(0), *answer[0].contiguous().stride())
    return answer.as_strided(answer.shape, strides, answer.storage_offset())


def takes_lse_for_dense(batch: PagedBatch) -> None:
    lse = None if batch.lse is None else dense_rows(batch.lse)
    paged_attention(batch.replace(lse=lse))


def takes_columns_for_dense(batch: PagedBatch) -> None:
    table = batch.block_table
    flat = table.as_strided(table.shape, (table.stride(0), 1), table.storage_offset())
    paged_attention(batch.replace(block_table=flat % batch.key_cache.shape[0]))


def cut_to_16_bits(batch: PagedBatch) -> None:
    paged_attention(batch.replace(block_table=batch.block_table & 0xFFFF))


def cut_to_31_bits(batch: PagedBatch) -> None:
    offset = batch.block_table.long() * batch.key_cache.stride(0) % 2**31
    paged_attention(batch.replace(block_table=(offset // batch.key_cache.stride(0)).int()))


def rows_at_31_bits(answer: Tensor) -> list[Tensor]:
    """Where each row of an answer lies for whoever counts its offset in int32."""
    step, *rest = answer.stride()
    wrapped = [(row * step + 2**31) % 2**32 - 2**31 for row in range(len(answer))]
    base = answer.storage_offset()
    return [answer.as_strided(answer.shape[1:], rest, base + offset) for offset in wrapped]


def writes_rows_at_31_bits(batch: PagedBatch) -> None:
    whole = torch.empty(batch.out.shape, dtype=batch.out.dtype)
    paged_attention(batch.replace(out=whole))
    for row, result in zip(rows_at_31_bits(batch.out), whole, strict=True):
        row.copy_(result)


def merges_partial_results_at_31_bits(batch: PagedBatch) -> None:
    """Keeps the partial results in the rows of the answer, as kernels without scratch do."""
    paged_attention(batch)
    whole = batch.out.clone()
    batch.out.div_(2)
    halves = [half.clone() for half in rows_at_31_bits(batch.out)]
    for row, half, result in zip(batch.out, halves, whole, strict=True):
        row.copy_(half + result / 2)


def reads_past_the_table(batch: PagedBatch) -> None:
    table = batch.block_table
    past = table.as_strided((1,), (1,), table[-1, -1:].storage_offset() + 1)
    assert past.numel() == 1
    paged_attention(batch)


@pytest.mark.parametrize(
    ("kernel", "places"),
    [
        (takes_heads_for_dense, "layout=head-major"),
        (takes_heads_for_dense, "layout=packed"),
        (takes_heads_for_dense, "layout=padded"),
        (takes_lse_for_dense, "strides=lse"),
        (takes_columns_for_dense, "strides=table"),
        (cut_to_16_bits, "pool=40000000"),
        (cut_to_31_bits, "pool=40000000"),
        (writes_rows_at_31_bits, "pool=40000000"),
        (merges_partial_results_at_31_bits, "pool=40000000"),
        (reads_past_the_table, "spare=0"),
    ],
)
def test_a_wrong_place_is_shown_by_the_problem_that_has_it(
    kernel: AttentionKernel, places: str
) -> None:
    assert "truth" not in failed(kernel, PLACES)
    assert "truth" in failed(kernel, f"{PLACES} {places}")


def test_a_kernel_that_copies_the_pool_is_not_run_where_the_pool_is_far() -> None:
    def copies(batch: PagedBatch) -> None:
        paged_attention(batch.replace(key_cache=batch.key_cache.contiguous().clone()))

    problem = AttentionProblem.parse(f"{PLACES} pool=40000000")
    verdict = run_check(TRUTH, copies, problem)
    assert verdict.status is Status.NOT_RUN
    assert "decline `pool`" in verdict.findings[0]


def test_reading_the_rest_of_a_block_is_legal_for_who_needs_finite_numbers() -> None:
    problem = AttentionProblem.parse(DECODE)
    seen = ["not the program's own: load of key_cache: past the 9 tokens, in its last block"]
    assert run_check(MEMORY, paged_attention, problem, watch=sees(seen)).status is Status.FAILED

    @declares(Capabilities(needs_finite_cache=True))
    def finite(batch: PagedBatch) -> None:
        paged_attention(batch)

    assert run_check(MEMORY, finite, problem, watch=sees(seen)).status is Status.PASSED


def test_a_kernel_is_watched_on_what_it_declares() -> None:
    lses = []

    def watch(kernel: AttentionKernel, batch: PagedBatch) -> list[str]:
        lses.append(batch.lse)
        return []

    assert run_check(MEMORY, no_lse, AttentionProblem.parse(DECODE), watch=watch).findings == ()
    assert lses == [None]


# --- statuses ------------------------------------------------------------------------------------


@declares(Capabilities(block_sizes=frozenset({1, 2})))
def only_small_blocks(batch: PagedBatch) -> None:
    raise AssertionError("must not be called")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_what_a_kernel_cannot_do_is_neither_run_nor_passed(check: Check) -> None:
    verdict = run_check(check, only_small_blocks, AttentionProblem.parse(SHARED))
    assert verdict == Verdict(check.name, Status.NOT_SUPPORTED, ("block size 4",))
    assert not verdict.wrong


def test_capabilities_of_the_wrong_type_are_the_callers_error_and_no_verdict() -> None:
    def kernel(batch: PagedBatch) -> None:
        paged_attention(batch)

    kernel.capabilities = "everything"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="capabilities"):
        run_check(TRUTH, kernel, AttentionProblem.parse(DECODE))


@pytest.mark.parametrize("status", Status)
def test_failing_and_crashing_are_the_kernels_fault(status: Status) -> None:
    assert Verdict("truth", status).wrong == (status.value in {"failed", "crashed"})


@declares(Capabilities(variants=frozenset(VARIANTS) - {"lse"}))
def no_lse(batch: PagedBatch) -> None:
    """Cannot give a log-sum-exp and says so; it is an error to ask for one."""
    if batch.lse is not None:
        raise ValueError("this kernel gives no log-sum-exp")
    paged_attention(batch)


@pytest.mark.parametrize("spec", [DECODE, MIXED, SHARED])
def test_a_kernel_without_lse_is_not_asked_for_one(spec: str) -> None:
    assert failed(no_lse, spec) == {}


def test_a_log_sum_exp_that_nobody_asked_for_is_noticed() -> None:
    def stray(batch: PagedBatch) -> None:
        """Finds the memory of the log-sum-exp although it was not given it, as a pointer might."""
        paged_attention(batch)
        if batch.lse is None:
            for thing in gc.get_objects():
                if type(thing) is not Tensor or thing.ndim != 2 or thing.dtype != torch.float32:
                    continue
                if bool((thing == CANARY).all()):
                    thing[GUARD_ROWS:-GUARD_ROWS] = 0

    assert failed(stray, DECODE) == {"without-lse": ("wrote a log-sum-exp that was not asked for",)}


def zeroes_its_inputs(*names: str) -> AttentionKernel:
    def kernel(batch: PagedBatch) -> None:
        for name in names:
            getattr(batch, name).zero_()
        paged_attention(batch)

    return kernel


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_a_kernel_that_spoils_its_inputs_first_does_not_spoil_the_truth(name: str) -> None:
    # The answer is that of another problem, and the truth must not follow it there.
    findings = failed(zeroes_its_inputs(name), "(q1 k21) g2 d16 b4 fp32 alibi sinks")
    assert any(found.startswith("out[") for found in findings["truth"])


@pytest.mark.parametrize("name", ["query", "block_table", "seq_lens", "query_start_loc"])
def test_a_kernel_that_spoils_its_inputs_afterwards_is_wrong(name: str) -> None:
    def kernel(batch: PagedBatch) -> None:
        paged_attention(batch)
        getattr(batch, name).zero_()

    assert "truth" in failed(kernel, DECODE)


def test_an_error_of_the_harness_is_not_blamed_on_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(problem: AttentionProblem, **_: str) -> None:
        raise MemoryError("no room for the inputs")

    monkeypatch.setattr("reference.attention.checks.make_inputs", broken)
    with pytest.raises(MemoryError, match="no room for the inputs"):
        run_check(TRUTH, paged_attention, AttentionProblem.parse(DECODE))


# --- poison --------------------------------------------------------------------------------------


def dense_decode(batch: PagedBatch) -> None:
    """Reads whole blocks and weights what it does not own with zero: fine unless that is NaN."""
    longest = int(batch.seq_lens.max())
    columns = torch.arange(longest) // batch.block_size
    used = columns * batch.block_size < batch.seq_lens.unsqueeze(1)
    blocks = batch.block_table[:, columns].where(used, batch.block_table[:, :1]).long()
    offsets = torch.arange(longest) % batch.block_size
    keys, values = (
        batch.key_cache[blocks, offsets].float(),
        batch.value_cache[blocks, offsets].float(),
    )
    query = batch.query.float().unflatten(1, (batch.num_kv_heads, batch.group_size))
    logits = torch.einsum("shgd,skhd->shgk", query, keys) * batch.scale
    hidden = torch.arange(longest) >= batch.seq_lens.unsqueeze(1)
    logits.masked_fill_(hidden.view(len(hidden), 1, 1, -1), -torch.inf)
    out = torch.einsum("shgk,skhd->shgd", logits.softmax(-1), values)
    batch.out.copy_(out.flatten(1, 2))
    if batch.lse is not None:
        batch.lse.copy_(logits.logsumexp(-1).flatten(1, 2))


def test_a_kernel_that_multiplies_unowned_slots_by_zero_fails_unless_it_says_so() -> None:
    @declares(Capabilities(needs_finite_cache=True))
    def declared(batch: PagedBatch) -> None:
        dense_decode(batch)

    assert "truth" in failed(dense_decode, DECODE)
    assert failed(declared, DECODE) == {}


def test_a_kernel_that_says_so_and_weights_unowned_slots_still_fails() -> None:
    @declares(Capabilities(needs_finite_cache=True))
    def stale(batch: PagedBatch) -> None:
        dense_decode(batch.replace(seq_lens=batch.seq_lens + 1, max_seq_len=batch.max_seq_len + 1))

    assert "truth" in failed(stale, DECODE)


# --- what applies where --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "laws"),
    [
        ("(q1 k9)", {"shards", *BITWISE, "history", "scaled-values"}),
        ("2x(q1 k9)", {"shards", *BITWISE, "history", "scaled-values", "alone"}),
        ("(q1 k9) (q0 k5)", {"shards", *BITWISE, "history", "scaled-values"}),
        ("(q3 k9)", {*BITWISE, "history", "scaled-values", "last-row", "growth"}),
        ("(q3 k9) noncausal", {*BITWISE, "history", "scaled-values"}),
        (
            "2x(q1 k16) shared=16",
            {"shards", *BITWISE, "history", "scaled-values", "alone", "shared-prefix"},
        ),
        ("2x(q1 k16) shared=15", {"shards", *BITWISE, "history", "scaled-values", "alone"}),
        ("(q1 k16) (q1 k15) shared=16", {"shards", *BITWISE, "history", "scaled-values", "alone"}),
        ("(q0 k0)", set()),
        ("(q0 k16) (q0 k16) shared=16", set()),
    ],
)
def test_a_law_applies_where_it_can_show_something(spec: str, laws: set[str]) -> None:
    assert {check.name for check in applicable(AttentionProblem.parse(spec))} == laws


def test_checks_have_names_of_their_own_and_say_what_must_hold() -> None:
    assert list(CHECKS) == [MEMORY, TRUTH, *LAWS]
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.law.endswith(".") for check in CHECKS)


def test_judge_reports_memory_and_answer_together() -> None:
    problem = AttentionProblem.parse(DECODE)
    inputs = make_inputs(problem)
    placement, truth = place(inputs), attend(inputs)
    paged_attention(placement.batch)
    assert judge(problem, truth, placement) == []
    placement.guarded_out[0, 0] = 0
    placement.batch.out[1, 1, 5] += 1
    wrote, wrong = judge(problem, truth, placement)
    assert wrote == "wrote to the rows before `out`"
    assert wrong.startswith("out[token 1, head 1] is ")


@declares(Capabilities(variants=frozenset({"prefill", "lse"})))
def lets_nan_through(batch: PagedBatch) -> None:
    """A weight of 0 for each slot that nobody owns, and not left out."""
    paged_attention(batch)
    spoilt = batch.value_cache.float().isnan().any()
    if bool(spoilt):
        batch.out[0, 0] = torch.nan


def lets_nan_through_and_scales(batch: PagedBatch) -> None:
    lets_nan_through(batch)
    batch.out.mul_(1.5)


def lets_nan_through_in_decodes(batch: PagedBatch) -> None:
    paged_attention(batch)
    if batch.max_query_len == 1:
        block = batch.block_table[0, (batch.seq_lens[0] - 1) // batch.block_size]
        batch.out[0, 0] += 0 * batch.value_cache[block, :, 0].float().sum()


def test_nan_that_comes_through_in_a_smaller_problem_has_the_same_words() -> None:
    problem = AttentionProblem.parse("(q2 k9) d16 b16 fp32")
    growth = next(check for check in LAWS if check.name == "growth")
    assert run_check(TRUTH, lets_nan_through_in_decodes, problem).status is Status.PASSED
    verdict = run_check(growth, lets_nan_through_in_decodes, problem)
    said = f"NaN {FREE_SLOTS} comes through: with finite numbers there the law holds"
    assert verdict.findings == (said,)


def test_nan_from_free_slots_has_its_own_words_and_hides_nothing() -> None:
    problem = AttentionProblem.parse("(q1 k21) (q2 k9) g2 d16 b4 fp32")
    said = f"out[token 0, head 0] is nan, of NaN {FREE_SLOTS}: with finite numbers there it is not"
    verdict = run_check(TRUTH, lets_nan_through, problem)
    assert verdict.findings == (said,)
    through, off = run_check(TRUTH, lets_nan_through_and_scales, problem).findings
    assert through == said
    assert "off by" in off
    for law in (law for law in LAWS if law.applies(problem)):
        assert run_check(law, lets_nan_through, problem).status is Status.PASSED, law.name


def test_a_kernel_of_another_kind_is_told_what_to_declare():
    def merges(batch):
        batch.part_lse.amax(0)

    (said,) = run_check(TRUTH, merges, AttentionProblem.parse("(q1 k1) d16 b16 fp32")).findings
    assert said.startswith("raised AttributeError")
    assert said.endswith(': a kernel that needs it declares Capabilities(kind="merge")')
