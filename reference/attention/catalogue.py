"""The checks of a paged-attention kernel by name: what must hold, and which problems can show it.

`checks` runs them. Nothing here needs torch, as pages and tables of what a run has shown do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from reference.attention.contract import KINDS, Capabilities
from reference.attention.kinds import STORES
from reference.attention.problem import AttentionProblem

FREE_SLOTS: Final = "in slots that no sequence owns"
"""In a finding about what lies there and reaches the answer. Other checks are then made with finite
numbers there: they are about something else."""

REST_OF_A_BLOCK: Final = "in its last block"
"""In a finding about a load of what follows a sequence's last token, in its own block."""


@dataclass(frozen=True, slots=True)
class Check:
    """A named check."""

    name: str
    """As printed, and as chosen on the command line."""
    law: str
    """One sentence: what must hold."""
    shown_by: Callable[[AttentionProblem], bool]
    """Whether a problem of its kinds can show it."""
    needs: str = ""
    """One of `contract.ADDITIONS` or `VARIANTS`: it says nothing of kernels without it."""
    kinds: tuple[str, ...] = ("attention", "latent")
    """Those of `contract.KINDS` that it is for."""

    def applies(self, problem: AttentionProblem) -> bool:
        """Whether a problem can show it."""
        return problem.kind in self.kinds and self.shown_by(problem)

    def concerns(self, able: Capabilities) -> bool:
        """Whether it says anything of such a kernel."""
        able_to = able.also | able.variants
        return able.kind in self.kinds and (not self.needs or self.needs in able_to)


def applicable(problem: AttentionProblem, able: Capabilities | None = None) -> list[Check]:
    """The laws that a problem can show, of those that concern a kernel if one is given."""
    concerned = [check for check in LAWS if able is None or check.concerns(able)]
    return [check for check in concerned if check.applies(problem)]


def _has_rows(problem: AttentionProblem) -> bool:
    return problem.num_tokens > 0


def _has_prefill(problem: AttentionProblem) -> bool:
    several = problem.causal and problem.max_query_len > 1
    return several and not (problem.query_mask or problem.causal_each)


def _scales_alone(problem: AttentionProblem) -> bool:
    return _has_rows(problem) and problem.kind == "attention"


def _masks(problem: AttentionProblem) -> bool:
    return bool(problem.query_mask) and problem.max_query_len > 1


def _chooses(problem: AttentionProblem) -> bool:
    return problem.topk is not None and _has_rows(problem)


def _parted(problem: AttentionProblem) -> bool:
    """Decode to whose keys no place belongs: those of any share count as they do in the whole."""
    placed = (problem.window, problem.chunk, problem.topk, problem.pool)
    plain = all(each is None for each in placed) and not (problem.alibi or problem.sinks)
    return plain and problem.max_query_len == 1 and problem.max_seq_len > 1


def _several(problem: AttentionProblem) -> bool:
    return _has_rows(problem) and (problem.parts or 1) > 1


_MERGE: Final = ("merge",)
_STORES: Final = tuple(STORES)
_ANSWERS: Final = ("attention", "latent", "merge")

MEMORY: Final = Check(
    "memory",
    "Every program reads and writes only what is its own, and what was written.",
    lambda _: True,
    kinds=KINDS,
)

TRUTH: Final = Check(
    "truth",
    "The answer is that of float64, and nothing else is written.",
    lambda _: True,
    kinds=KINDS,
)

LAWS: Final = (
    Check("history", "Earlier calls change nothing.", _has_rows),
    Check("relabelled-pages", "Where the pages lie changes nothing.", _has_rows),
    Check("repeated", "The same call gives the same answer.", _has_rows, kinds=_ANSWERS),
    Check(
        "without-lse", "Asking for no log-sum-exp changes nothing.",
        _has_rows, needs="lse", kinds=_ANSWERS,
    ),
    Check(
        "shared-prefix", "Sharing the blocks of a common prefix changes nothing.",
        lambda problem: problem.shares_blocks and _has_rows(problem),
    ),
    Check(
        "alone", "A sequence's answer does not depend on its neighbours.",
        lambda problem: sum(r.query_len > 0 for r in problem.requests) > 1,
    ),
    Check("last-row", "Decode gives the last row of prefill.", _has_prefill),
    Check(
        "growth", "Growing one token at a time gives what all tokens at once give.",
        _has_prefill,
    ),
    Check(
        "scaled-values", "Twice the values give twice the output and the same log-sum-exp.",
        _scales_alone,
    ),
    Check(
        "chain-mask", "A mask that is a chain gives what causal attention gives.",
        _masks, needs="query_mask",
    ),
    Check(
        "siblings", "Tokens of a tree in another order give their rows in that order.",
        _masks, needs="query_mask",
    ),
    Check(
        "causal-each", "Each sequence gets what it gets where all are causal, or none.",
        lambda problem: problem.causal_each and _has_rows(problem), needs="causal_each",
    ),
    Check(
        "shards", "Attention to shares of the keys, merged, is attention to all.",
        _parted, needs="lse",
    ),
    Check(
        "chosen-order", "The order of the chosen keys changes nothing.",
        _chooses, needs="sparse",
    ),
    Check(
        "all-chosen", "All keys chosen give what attention to all of them gives.",
        _chooses, needs="sparse",
    ),
    Check("one-part", "One part merged is itself.", _has_rows, kinds=_MERGE),
    Check(
        "part-order", "The order of the parts changes nothing.",
        _several, kinds=_MERGE,
    ),
    Check(
        "grouping", "Merging some parts first changes nothing.",
        _several, needs="lse", kinds=_MERGE,
    ),
    Check("all-keys", "The parts merged are attention to all keys.",
        _has_rows, kinds=_MERGE,
    ),
    Check(
        "any-order", "The order of tokens, and of pairs of blocks, changes nothing.",
        _has_rows, kinds=_STORES,
    ),
    Check(
        "written-over", "What was stored there before changes nothing.",
        _has_rows, kinds=_STORES,
    ),
    Check(
        "read-back", "What is stored step by step reads as contiguous tokens do.",
        _has_rows, kinds=("write",),
    ),
)  # fmt: skip

CHECKS: Final = (MEMORY, TRUTH, *LAWS)
"""In the order in which they are run: what touches foreign memory may crash the next."""
