"""What must be true of a paged-attention kernel: the answer, and laws that need no answer.

`memory` looks at which memory is touched, where that can be seen; `truth` compares with float64.
The laws compare the kernel with itself on problems whose answers are related; they hold whatever
the tolerance, and some hold bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from reference.attention.contract import AttentionKernel, PagedBatch, capabilities_of
from reference.attention.inputs import Inputs, make_inputs
from reference.attention.placement import CANARY, Placement, Poison, place
from reference.attention.problem import AttentionProblem, Request
from reference.attention.tolerance import lse_allowance, out_allowance, worst_excess
from reference.attention.truth import Truth, attend
from reference.attention.verdict import Status, Verdict
from reference.errors import described

MAX_GROWTH: Final = 5
"""Tokens that the growth law feeds one at a time."""


Findings = list[str]


class KernelRaised(Exception):
    """A kernel under test raised an exception; the message says which."""


class NotRun(Exception):
    """A check cannot see what it judges; the message says why."""


Watch = Callable[[AttentionKernel, PagedBatch], Findings | None]
"""Calls a kernel on a batch and says what it touched that is not its to touch, one sentence each;
None where nothing of it can be seen. `kernels.interpreter` has one for interpreted Triton."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel on a device, with what it declares about poison, and who can watch its accesses."""

    kernel: AttentionKernel
    device: str
    poison: Poison
    gives_lse: bool
    watch: Watch | None = None

    def answer(
        self,
        inputs: Inputs,
        *,
        seed: int | None = None,
        spare_blocks: int = 3,
        share_prefix: bool = True,
        with_lse: bool = True,
    ) -> Placement:
        """Lay inputs out in pages and call the kernel on them. Raises KernelRaised: whatever it
        raises.
        """
        placement = place(
            inputs,
            seed=seed,
            poison=self.poison,
            with_lse=with_lse and self.gives_lse,
            share_prefix=share_prefix,
            spare_blocks=spare_blocks,
        )
        try:
            self.kernel(placement.batch)
            if self.device == "cuda":
                # A launch returns at once: without this an illegal access would surface later, in
                # a problem that has nothing to do with it.
                torch.cuda.synchronize()
        except Exception as error:
            raise _raised(error) from error
        return placement

    def touch(self, inputs: Inputs) -> Findings:
        """Lay inputs out, call the kernel and have it watched. Raises KernelRaised, NotRun."""
        if self.watch is None:
            raise NotRun("only Triton kernels in the interpreter can be watched")
        placement = place(inputs, poison=self.poison, with_lse=self.gives_lse)
        try:
            findings = self.watch(self.kernel, placement.batch)
        except Exception as error:
            raise _raised(error) from error
        if findings is None:
            raise NotRun("the kernel launched no Triton kernel")
        return findings


def _raised(error: Exception) -> KernelRaised:
    return KernelRaised(f"raised {described(error)}")


@dataclass(frozen=True, slots=True)
class Check:
    """A named check."""

    name: str
    """As printed, and as chosen on the command line."""
    law: str
    """One sentence: what must hold."""
    applies: Callable[[AttentionProblem], bool]
    """Whether a problem can show it."""
    run: Callable[[Subject, AttentionProblem], Findings]
    """What is wrong, one sentence each; empty if nothing."""


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
    poison: Poison = "large" if capabilities.needs_finite_cache else "nan"
    try:
        gives_lse = "lse" in capabilities.variants
        subject = Subject(kernel, device, poison, gives_lse=gives_lse, watch=watch)
        findings = check.run(subject, problem)
    except KernelRaised as error:
        return Verdict(check.name, Status.FAILED, (str(error),))
    except NotRun as reason:
        return Verdict(check.name, Status.NOT_RUN, (str(reason),))
    return Verdict(check.name, Status.FAILED if findings else Status.PASSED, tuple(findings))


def applicable(problem: AttentionProblem) -> list[Check]:
    """The laws that a problem can show."""
    return [check for check in LAWS if check.applies(problem)]


def judge(problem: AttentionProblem, truth: Truth, placement: Placement) -> Findings:
    """Hold an answer against the truth, and the rest of memory against what it was."""
    findings = list(placement.overwritten())
    batch = placement.batch
    lse = None if batch.lse is None else batch.lse.cpu()
    if excess := worst_excess(problem, truth, batch.out.cpu(), lse):
        findings.append(str(excess))
    return findings


def _memory(subject: Subject, problem: AttentionProblem) -> Findings:
    return subject.touch(_inputs(subject, problem))


def _truth(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = make_inputs(problem)
    placement = subject.answer(_to(inputs, subject.device))
    return judge(problem, attend(inputs), placement)


def _relabelled(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    one = subject.answer(inputs, seed=problem.seed)
    other = subject.answer(inputs, seed=problem.seed + 1, spare_blocks=5)
    return _same_bits(one, other, "after the pages were relabelled")


def _repeated(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    return _same_bits(subject.answer(inputs), subject.answer(inputs), "when called again")


def _without_lse(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    # First: memory that the other call gave back may hold its log-sum-exp, and hide that it lacks.
    without = subject.answer(inputs, with_lse=False)
    with_lse = subject.answer(inputs)
    if bool((without.guarded_lse != CANARY).any()):
        return ["wrote a log-sum-exp that was not asked for"]
    return _bits("out", with_lse.batch.out, without.batch.out, "without a log-sum-exp")


def _shared_prefix(subject: Subject, problem: AttentionProblem) -> Findings:
    inputs = _inputs(subject, problem)
    shared = subject.answer(inputs)
    private = subject.answer(inputs, share_prefix=False)
    return _same_bits(shared, private, "with private copies of the shared prefix")


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
            findings += _close_rows(subject, single, together, rows, what)
    return findings


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
    if problem.quantised:
        doubled = replace(inputs, problem=problem.replace(v_scale=2 * problem.v_scale))
    else:
        doubled = replace(inputs, values=2 * inputs.values)
    twice = subject.answer(doubled).batch
    findings = _close(doubled, twice.out, None, 2 * plain.out, None, "twice the values")
    if plain.lse is not None and twice.lse is not None:
        findings += _bits("lse", plain.lse, twice.lse, "with twice the values")
    return findings


def _inputs(subject: Subject, problem: AttentionProblem) -> Inputs:
    return make_inputs(problem, device=subject.device)


def _to(inputs: Inputs, device: str) -> Inputs:
    names = ("query", "keys", "values", "alibi_slopes", "sinks")
    tensors = {name: getattr(inputs, name) for name in names}
    moved = {name: each.to(device) for name, each in tensors.items() if each is not None}
    return replace(inputs, **moved)


def _close_rows(
    subject: Subject, single: Inputs, whole: PagedBatch, rows: slice | Tensor, what: str
) -> Findings:
    """The kernel's answer to a part of a problem, and those rows of its answer to the whole."""
    part = subject.answer(single).batch
    lse = None if whole.lse is None else whole.lse[rows]
    return _close(single, part.out, part.lse, whole.out[rows], lse, what)


def _same_bits(one: Placement, other: Placement, when: str) -> Findings:
    findings = _bits("out", one.batch.out, other.batch.out, when)
    if one.batch.lse is not None and other.batch.lse is not None:
        findings += _bits("lse", one.batch.lse, other.batch.lse, when)
    return findings


def _bits(what: str, one: Tensor, other: Tensor, when: str) -> Findings:
    if torch.equal(one, other):
        return []
    row = (one != other).reshape(one.shape[0], one.shape[1], -1).any(-1).nonzero()[0].tolist()
    differing = int((one != other).sum())
    return [
        f"{what} changed {when}: {differing} elements, the first in token {row[0]}, head {row[1]}"
    ]


def _close(
    inputs: Inputs,
    out: Tensor,
    lse: Tensor | None,
    other: Tensor,
    other_lse: Tensor | None,
    what: str,
) -> Findings:
    """Two answers to one problem may differ by what both are allowed."""
    truth = attend(_to(inputs, "cpu"))
    findings = []
    difference = (out.cpu().double() - other.cpu().double()).abs()
    beyond = ~(difference <= 2 * out_allowance(inputs.problem, truth).unsqueeze(-1))
    if bool(beyond.any()):
        worst = float(difference.nan_to_num(nan=torch.inf).max())
        findings.append(f"{what}: outputs differ by {worst:.3g}, more than rounding explains")
    if lse is not None and other_lse is not None:
        one, two = lse.cpu().double(), other_lse.cpu().double()
        gap = torch.where(one == two, 0.0, (one - two).abs())
        if bool((~(gap <= 2 * lse_allowance(truth))).any()):
            worst = float(gap.nan_to_num(nan=torch.inf).max())
            findings.append(f"{what}: log-sum-exps differ by {worst:.3g}")
    return findings


def _has_rows(problem: AttentionProblem) -> bool:
    return problem.num_tokens > 0


def _has_prefill(problem: AttentionProblem) -> bool:
    return problem.causal and problem.max_query_len > 1


MEMORY: Final = Check(
    "memory",
    "Every program reads and writes only what is its own, and what was written.",
    lambda _: True,
    _memory,
)

TRUTH: Final = Check(
    "truth", "The answer is that of float64, and nothing else is written.", lambda _: True, _truth
)

LAWS: Final = (
    Check("relabelled-pages", "Where the pages lie changes no bit.", _has_rows, _relabelled),
    Check("repeated", "The same call gives the same bits.", _has_rows, _repeated),
    Check("without-lse", "Not asking for the log-sum-exp changes no bit.", _has_rows, _without_lse),
    Check(
        "shared-prefix", "Sharing the blocks of a common prefix changes no bit.",
        lambda problem: problem.shares_blocks and _has_rows(problem), _shared_prefix,
    ),
    Check(
        "alone", "A sequence's answer does not depend on its neighbours.",
        lambda problem: sum(r.query_len > 0 for r in problem.requests) > 1, _alone,
    ),
    Check("last-row", "Decode gives the last row of prefill.", _has_prefill, _last_row),
    Check(
        "growth", "Growing one token at a time gives what all tokens at once give.",
        _has_prefill, _growth,
    ),
    Check(
        "scaled-values", "Twice the values give twice the output and the same log-sum-exp.",
        _has_rows, _scaled_values,
    ),
)  # fmt: skip

CHECKS: Final = (MEMORY, TRUTH, *LAWS)
"""In the order in which they are run: what touches foreign memory may crash the next."""
