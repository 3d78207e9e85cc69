r"""Two programs of vLLM's unified attention write the same rows: how far apart their answers are.

From the checkout, in the environment that `make engine-vllm` builds:

    PYTHONPATH=. TRITON_INTERPRET=1 TRITON_DEFAULT_FP_FUSION=1 \
        .engines/vllm/bin/python -W ignore studies/vllm_two_programs.py

The launch is cut after some programs. What the last of them wrote of the next program's first token
is held against the whole launch, in which the next program wrote it again.

Exit codes: 0 the rows are the same, 1 they differ.
"""

import sys
from typing import Any

from torch import Tensor

from bench.check.subject import introduction
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from subjects.attention.peers import vllm_unified

QUERY_LEN = 60
PROBLEMS = (
    f"(q{QUERY_LEN} k60) g3 d32 b16 fp32",
    f"(q{QUERY_LEN} k60) g3 d32 b16 fp32 window=4",
    f"(q{QUERY_LEN} k60) g3 d64 b16 fp16 window=1 inputs=loud",
    f"(q{QUERY_LEN} k150) g5 d64 b16 fp16 window=30",
)
SEEDS = range(12)
BLOCK_M = 16
KERNEL = "kernel_unified_attention"


class FirstPrograms:
    """Launches some programs of a grid."""

    def __init__(self, kernel: Any, count: int) -> None:
        self._kernel = kernel
        self._count = count

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._kernel[(self._count, *grid[1:])]


def answer(attention: Any, spec: str, programs: int | None = None) -> Tensor:
    """Output of a launch, or of its first programs only."""
    module = vllm_unified._launcher.__globals__
    kernel = module[KERNEL]
    if programs is not None:
        module[KERNEL] = FirstPrograms(kernel, programs)
    try:
        batch = place(make_inputs(AttentionProblem.parse(spec))).batch
        attention(batch)
    finally:
        module[KERNEL] = kernel
    return batch.out.float()


def main() -> int:
    """Compare, for several problems; returns the exit code."""
    subject, said = introduction("vllm-unified")
    if subject is None:
        sys.exit(said["error"])
    found = 0
    for problem in PROBLEMS:
        group = AttentionProblem.parse(problem).group_size
        tokens = BLOCK_M // group
        apart = []
        for seed in SEEDS:
            spec = f"{problem} seed={seed}"
            whole = answer(subject.kernel, spec)
            for programs in range(1, QUERY_LEN // tokens):
                row = programs * tokens, slice(BLOCK_M - group * tokens)
                theirs = answer(subject.kernel, spec, programs)
                apart.append(float((theirs[row] - whole[row]).abs().max()))
        differ = sum(distance > 0 for distance in apart)
        print(f"{problem}: {differ} of {len(apart)} differ, by {max(apart):.2g} at most")
        found += differ
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
