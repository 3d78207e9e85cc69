"""What must be true of a paged-attention kernel: the answer, and laws that need no answer.

`memory` looks at which memory is touched, where that can be seen; `truth` compares with float64.
The laws compare the kernel with itself on problems whose answers are related; they hold whatever
the tolerance, and bit for bit where the kernel promises bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor

from reference.attention.caches import bytes_or_self, filler
from reference.attention.catalogue import FREE_SLOTS, LAWS, REST_OF_A_BLOCK, Check
from reference.attention.chosen_laws import (
    all_chosen,
    causal_each,
    chain_mask,
    chosen_order,
    siblings,
)
from reference.attention.codecs import twice_the_numbers
from reference.attention.comparing import (
    Findings,
    changed_bits,
    close,
    close_lse,
    same,
    to_device,
)
from reference.attention.contract import (
    AttentionKernel,
    Capabilities,
    PagedBatch,
    capabilities_of,
)
from reference.attention.far import NoRoom, lacked_memory, no_room_for_copies
from reference.attention.hints import hints
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.kinds import STORES
from reference.attention.merge_laws import as_of_all_keys, grouped, one_part, other_order, shards
from reference.attention.placement import CANARY, Placement, Poison, place, place_parts, unwritten
from reference.attention.problem import AttentionProblem, Request
from reference.attention.raised import said_of
from reference.attention.records import scaled_as_a_whole
from reference.attention.store_laws import other_order as order_of_stores
from reference.attention.store_laws import read_back, stored, written_over
from reference.attention.stores import Stored, place_stores
from reference.attention.tolerance import worst_excess
from reference.attention.truth import Parts, Truth, attend, parts_of
from reference.attention.verdict import Status, Verdict
from reference.stack import with_stack_room

MAX_GROWTH: Final = 5
"""Tokens that the growth law feeds one at a time."""


class KernelRaised(Exception):
    """A kernel under test raised an exception; the message says which."""


class NotRun(Exception):
    """A check cannot see what it judges; the message says why."""


Watch = Callable[[AttentionKernel, PagedBatch], Findings | str | None]
"""Calls a kernel on a batch and says what it touched that is not its to touch, one sentence each;
why nothing of it could be seen, or None, where it could not. `kernels.interpreter` has one for
interpreted Triton."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel on a device, with what it declares, and who can watch its accesses."""

    kernel: AttentionKernel
    device: str
    able: Capabilities
    watch: Watch | None = None

    @property
    def poison(self) -> Poison:
        """What slots hold that no sequence owns."""
        return "large" if self.able.needs_finite_cache else "nan"

    def with_a_finite_cache(self) -> Subject:
        """The same, as if it had declared that it needs one."""
        return replace(self, able=replace(self.able, needs_finite_cache=True))

    def promises(self, bits: str) -> str:
        """Certain bits, if the kernel promises them; otherwise nothing."""
        return bits if bits in self.able.promises else ""

    def place(
        self,
        inputs: Inputs,
        *,
        seed: int | None = None,
        spare_blocks: int = 3,
        share_prefix: bool = True,
        with_lse: bool = True,
        far: bool = True,
    ) -> Placement:
        """Lay inputs out in pages, with `far` where the problem says so. Raises NotRun."""
        if inputs.problem.kind in STORES:
            return cast("Placement", self.place_stores(inputs.problem, far=far))
        if inputs.problem.kind == "merge":
            parts = parts_of(to_device(inputs, "cpu"))
            return self.place_parts(inputs.problem, parts, with_lse=with_lse)
        try:
            return place(
                inputs,
                seed=seed,
                poison=self.poison,
                with_lse=with_lse and "lse" in self.able.variants,
                share_prefix=share_prefix,
                spare_blocks=spare_blocks,
                far=far,
            )
        except NoRoom as reason:
            raise NotRun(f"pool={inputs.problem.pool} does not fit here: {reason}") from None

    def place_parts(
        self, problem: AttentionProblem, parts: Parts, *, with_lse: bool = True
    ) -> Placement:
        """Lay out what is to be merged."""
        with_lse = with_lse and "lse" in self.able.variants
        base = self.able.lse_base
        return place_parts(problem, parts, device=self.device, base=base, with_lse=with_lse)

    def merge(self, problem: AttentionProblem, parts: Parts) -> Placement:
        """Merge some parts of a problem. Raises KernelRaised."""
        placement = self.place_parts(problem, parts)
        self.call(placement.batch)
        return placement

    def place_stores(
        self, problem: AttentionProblem, *, far: bool = True, order_seed: int | None = None
    ) -> Stored:
        """Lay out what is to be written or copied. Raises NotRun."""
        inputs = make_inputs(problem, device=self.device)
        try:
            return place_stores(inputs, far=far, order_seed=order_seed)
        except NoRoom as reason:
            raise NotRun(f"pool={problem.pool} does not fit here: {reason}") from None

    def call(self, batch: PagedBatch, *, far: bool = False) -> None:
        """Call the kernel. Raises KernelRaised: whatever it raises. Raises NotRun: it copies a pool
        that lies far.
        """
        try:
            with no_room_for_copies() if far and self.device == "cpu" else nullcontext():
                self.kernel(batch)
            if self.device == "cuda":
                # A launch returns at once: without this an illegal access would surface later, in
                # a problem that has nothing to do with it.
                torch.cuda.synchronize()
        except NoRoom as reason:  # where the kernel runs, which may be another process
            raise NotRun(f"the pool does not fit here: {reason}") from None
        except Exception as error:
            if far and lacked_memory(error):
                raise NotRun(
                    "the kernel asks for memory as for a copy of the pool, which lies far: let it "
                    "decline `pool`"
                ) from None
            raise KernelRaised(said_of(error)) from error
        lse = getattr(batch, "lse", None)
        if lse is not None and self.able.lse_base == "2":
            lse.mul_(math.log(2))

    def answer(
        self,
        inputs: Inputs,
        *,
        seed: int | None = None,
        spare_blocks: int = 3,
        share_prefix: bool = True,
        with_lse: bool = True,
    ) -> Placement:
        """Lay inputs out in pages and call the kernel on them. Raises KernelRaised, NotRun."""
        placement = self.place(
            inputs,
            seed=seed,
            spare_blocks=spare_blocks,
            share_prefix=share_prefix,
            with_lse=with_lse,
        )
        self.call(placement.batch, far=inputs.problem.pool is not None)
        return placement

    def touch(self, inputs: Inputs) -> Findings:
        """Lay inputs out, call the kernel and have it watched. Raises NotRun.

        An exception is no finding about memory: `truth` has it, unless it comes only from watching.
        """
        if self.watch is None:
            raise NotRun("only Triton kernels in the interpreter can be watched")
        placement = self.place(inputs, far=False)
        try:
            findings = self.watch(self.kernel, placement.batch)
        except Exception as error:
            said = said_of(error)
            try:
                self.call(self.place(inputs, far=False, with_lse=False).batch)
            except KernelRaised:
                raise NotRun(f"the kernel {said}") from None
            return [f"{said}, only where undefined lanes hold no zeros"]
        if findings is None or isinstance(findings, str):
            raise NotRun(findings or "the kernel launched no Triton kernel")
        if self.able.needs_finite_cache:
            findings = [each for each in findings if REST_OF_A_BLOCK not in each]
        return findings


def _nan_from_free_slots(subject: Subject, problem: AttentionProblem) -> str:
    """The first row of an answer that is NaN, and is not where the cache is finite; or none."""
    if subject.poison != "nan" or problem.kind in STORES:
        return ""
    inputs = _inputs(subject, problem)
    spoilt = subject.answer(inputs).batch.out
    if not bool((spoilt.isnan() & ~unwritten(spoilt).unsqueeze(-1)).any()):
        return ""
    finite = subject.with_a_finite_cache().answer(inputs).batch.out
    through = spoilt.isnan() & ~finite.isnan()
    if not bool(through.any()) or bool((finite.isnan() & ~unwritten(finite).unsqueeze(-1)).any()):
        return ""
    token, head, _ = through.nonzero()[0].tolist()
    return f"out[token {token}, head {head}]"


@with_stack_room
def run_check(
    check: Check,
    kernel: AttentionKernel,
    problem: AttentionProblem,
    *,
    device: str = "cpu",
    watch: Watch | None = None,
) -> Verdict:
    """Run one check of a kernel on one problem.

    An exception that the kernel raises is a finding; a problem outside its capabilities is not run
    and not passed either, nor is `memory` where nobody watches.
    """
    capabilities = capabilities_of(kernel)
    refusal = capabilities.refusal(problem)
    if refusal is not None:
        return Verdict(check.name, Status.NOT_SUPPORTED, (refusal,))
    if not check.concerns(capabilities):
        return Verdict(check.name, Status.NOT_SUPPORTED, (f"without {check.needs}",))
    subject = Subject(kernel, device, capabilities, watch=watch)
    run = _RUN[check.name]
    try:
        findings = run(subject, problem)
        if findings and check.name != "memory" and (row := _nan_from_free_slots(subject, problem)):
            through = f"{row} is nan, of NaN {FREE_SLOTS}: with finite numbers there it is not"
            findings = [through] if check.name == "truth" else []
            findings += run(subject.with_a_finite_cache(), problem)
        elif check in LAWS and any(" by inf" in each for each in findings):
            # A law asks for smaller problems as well, which NaN may come through in alone.
            finite = run(subject.with_a_finite_cache(), problem)
            law = f"NaN {FREE_SLOTS} comes through: with finite numbers there the law holds"
            findings = findings if finite else [law]
    except KernelRaised as error:
        return Verdict(check.name, Status.FAILED, (str(error),))
    except NotRun as reason:
        return Verdict(check.name, Status.NOT_RUN, (str(reason),))
    return Verdict(check.name, Status.FAILED if findings else Status.PASSED, tuple(findings))


def judge(problem: AttentionProblem, truth: Truth, placement: Placement) -> Findings:
    """Hold an answer against the truth, and the rest of memory against what it was."""
    findings = list(placement.overwritten())
    batch = placement.batch
    out, lse = batch.out.cpu(), None if batch.lse is None else batch.lse.cpu()
    for name, answer in (("out", out), ("lse", lse)):
        missing = None if answer is None else unwritten(answer)
        if missing is not None and bool(missing.any()):
            findings.append(_not_written(name, missing))
    # What was not written is said once; the others are held to the truth.
    out = _where_written(out, truth.out)
    lse = None if lse is None else _where_written(lse, truth.lse)
    if excess := worst_excess(problem, truth, out, lse):
        findings.append(str(excess))
    return findings


def _not_written(name: str, missing: Tensor) -> str:
    token, head = missing.nonzero()[0].tolist()
    rows = f"{int(missing.sum()):,} of {missing.numel():,} rows"
    return f"{name} is not written: {rows}, the first at token {token}, head {head}"


def _where_written(answer: Tensor, truth: Tensor) -> Tensor:
    missing = unwritten(answer)
    if not bool(missing.any()):
        return answer
    missing = missing if answer.dim() == 2 else missing.unsqueeze(-1)
    return torch.where(missing, truth.to(answer.dtype), answer)


def _memory(subject: Subject, problem: AttentionProblem) -> Findings:
    return subject.touch(_inputs(subject, problem))


def _truth(subject: Subject, problem: AttentionProblem) -> Findings:
    if problem.kind in STORES:
        return stored(subject, problem)
    inputs = make_inputs(problem)
    placement = subject.answer(to_device(inputs, subject.device))
    truth = attend(inputs)
    findings = judge(problem, truth, placement)
    return [*findings, *hints(inputs, truth, placement.batch)] if findings else []


def _history(subject: Subject, problem: AttentionProblem) -> Findings:
    """Two calls before this one: a larger one of poison, and one in the same tensors."""
    inputs = make_inputs(problem)
    placement = subject.place(to_device(inputs, subject.device))
    batch = placement.batch
    twice = problem.replace(requests=problem.requests * 2, pool=None, spare=None)
    larger = _inputs(subject, twice)
    keys, values = (_filled(each, subject, twice) for each in (larger.keys, larger.values))
    spoilt = replace(larger, keys=keys, values=values)
    lengths = batch.seq_lens.clone()
    # Chosen keys are of these lengths, and would lie beyond shorter ones.
    part = 2 if problem.topk is None else 1
    shorter = [min(max(r.query_len, r.seq_len // part), r.seq_len) for r in problem.requests]
    far = problem.pool is not None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of poison that is asked for
        if subject.able.refusal(twice) is None:
            subject.answer(spoilt)
        batch.seq_lens.copy_(torch.tensor(shorter))
        subject.call(batch, far=far)
    batch.seq_lens.copy_(lengths)
    placement.reset()
    subject.call(batch, far=far)
    seen = judge(problem, attend(inputs), placement)
    if not seen or judge(
        problem, attend(inputs), subject.answer(to_device(inputs, subject.device))
    ):
        return []  # what is wrong by itself is no matter of earlier calls
    return [f"after calls on another batch and other lengths: {finding}" for finding in seen]


def _relabelled(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    one = subject.answer(inputs, seed=problem.seed)
    other = subject.answer(inputs, seed=problem.seed + 1, spare_blocks=5)
    bits = subject.promises("relabelling")
    return same(inputs, one, other, "after the pages were relabelled", promised=bits)


def _repeated(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    one, other = subject.answer(inputs), subject.answer(inputs)
    bits = subject.promises("deterministic")
    return same(inputs, one, other, "when called again", promised=bits)


def _without_lse(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    # First: memory that the other call gave back may hold its log-sum-exp, and hide that it lacks.
    without = subject.answer(inputs, with_lse=False)
    with_lse = subject.answer(inputs)
    if bool((without.guarded_lse != CANARY).any()):
        return ["wrote a log-sum-exp that was not asked for"]
    bits = subject.promises("deterministic")
    return same(inputs, with_lse, without, "without a log-sum-exp", promised=bits)


def _shared_prefix(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    shared = subject.answer(inputs)
    private = subject.answer(inputs, share_prefix=False)
    bits = subject.promises("relabelling")
    return same(inputs, shared, private, "with private copies of the shared prefix", promised=bits)


def _alone(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    together = subject.answer(inputs).batch
    starts = problem.query_starts
    findings: Findings = []
    for index, request in enumerate(problem.requests):
        if request.query_len:
            rows = slice(starts[index], starts[index + 1])
            single = inputs.select([(index, request)])
            what = f"sequence {index} alone and in its batch"
            if promised := subject.promises("batch_invariant"):
                part, when = subject.answer(single).batch, f"{ALONE} {index}"
                findings += changed_bits("out", together.out[rows], part.out, when, promised)
                if part.lse is not None and together.lse is not None:
                    lse = together.lse[rows]
                    findings += changed_bits("lse", lse, part.lse, when, promised)
            else:
                findings += _close_rows(subject, single, together, rows, what)
    return findings


ALONE: Final = "without its neighbours in sequence"


def _last_row(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    long = [s for s, request in enumerate(problem.requests) if request.query_len > 1]
    last = torch.tensor([problem.query_starts[s + 1] - 1 for s in long], device=subject.device)
    prefill = subject.answer(inputs).batch
    single = inputs.select([(s, Request(1, problem.requests[s].seq_len)) for s in long])
    return _close_rows(subject, single, prefill, last, "decode and the last row of prefill")


def _growth(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    at_once = subject.answer(inputs).batch
    index = max(range(len(problem.requests)), key=lambda s: problem.requests[s].query_len)
    request = problem.requests[index]
    findings: Findings = []
    for back in range(min(request.query_len, MAX_GROWTH)):
        length = request.seq_len - back
        end = problem.query_starts[index + 1] - back
        single = inputs.select([(index, Request(1, length))])
        what = f"sequence {index} at {length} tokens, grown and all at once"
        findings += _close_rows(subject, single, at_once, slice(end - 1, end), what)
    return findings


def _scaled_values(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    plain = subject.answer(inputs).batch
    if problem.quantised or scaled_as_a_whole(problem.codec):
        doubled = replace(inputs, problem=problem.replace(v_scale=2 * problem.v_scale))
    elif inputs.v_scales is not None:
        doubled = replace(inputs, v_scales=2 * inputs.v_scales)
    elif problem.codec:
        doubled = replace(
            inputs, values=twice_the_numbers(problem.codec, inputs.values, problem.value_size)
        )
    else:
        doubled = replace(inputs, values=2 * inputs.values)
    twice = subject.answer(doubled).batch
    findings = close(doubled, twice.out, None, 2 * plain.out, None, "twice the values")
    promised = subject.promises("deterministic")
    if plain.lse is not None and twice.lse is not None and promised:
        findings += changed_bits("lse", plain.lse, twice.lse, "with twice the values", promised)
    elif plain.lse is not None and twice.lse is not None:
        findings += close_lse(doubled, twice.lse, plain.lse, "twice the values")
    return findings


def _inputs(subject: Subject, problem: AttentionProblem) -> Inputs:
    return make_inputs(problem, device=subject.device)


def _close_rows(
    subject: Subject, single: Inputs, whole: PagedBatch, rows: slice | Tensor, what: str
) -> Findings:
    """The kernel's answer to a part of a problem, and those rows of its answer to the whole."""
    part = subject.answer(single).batch
    lse = None if whole.lse is None else whole.lse[rows]
    return close(single, part.out, part.lse, whole.out[rows], lse, what)


def _filled(tensor: Tensor, subject: Subject, problem: AttentionProblem) -> Tensor:
    filled = torch.empty_like(tensor)
    bytes_or_self(filled)[...] = bytes_or_self(filler(problem, subject.poison, tensor.device))
    return filled


_RUN: Final[Mapping[str, Callable[[Subject, AttentionProblem], Findings]]] = {
    "memory": _memory,
    "truth": _truth,
    "history": _history,
    "relabelled-pages": _relabelled,
    "repeated": _repeated,
    "without-lse": _without_lse,
    "shared-prefix": _shared_prefix,
    "alone": _alone,
    "last-row": _last_row,
    "growth": _growth,
    "scaled-values": _scaled_values,
    "chain-mask": chain_mask,
    "siblings": siblings,
    "causal-each": causal_each,
    "shards": shards,
    "chosen-order": chosen_order,
    "all-chosen": all_chosen,
    "one-part": one_part,
    "part-order": other_order,
    "grouping": grouped,
    "all-keys": as_of_all_keys,
    "any-order": order_of_stores,
    "written-over": written_over,
    "read-back": read_back,
}
"""What is wrong, one sentence each, none where nothing is: by the names of `catalogue`."""
