"""Prints what LLVM says of occupancy beside what we compute; run with a target's name."""

import json
import re
import sys

from kernels.compiled.batch import engine_batch
from kernels.compiled.capture import capture, install
from kernels.compiled.hosts import decode, prefill, split_decode
from kernels.compiled.measure import measure
from kernels.compiled.targets import SIMDS, TARGETS, occupancy
from reference.attention.problem import AttentionProblem

target = TARGETS[sys.argv[1]]
install(target)
rows = []
for host, spec in (
    (split_decode, "4x(q1 k1024) h8 g4 d128 b16 bf16"),
    (decode, "4x(q1 k64) h8 g4 d128 b16 fp32"),
    (prefill, "4x(q8 k64) h8 g4 d64 b16 fp16"),
):
    for launch in capture(host, engine_batch(AttentionProblem.parse(spec))).launches:
        figures = measure(launch, target)
        # LLVM counts waves one by one, and does not know the shared memory of a launch.
        held = occupancy(
            target,
            num_warps=1,
            registers=figures.registers,
            shared_bytes=0,
            scalar_registers=figures.scalar_registers,
        )
        said = re.search(r"; Occupancy: (\d+)", launch.compiled.asm["amdgcn"])
        rows.append((figures.kernel, int(said[1]), held.warps // SIMDS))
sys.stdout.write(json.dumps(rows) + "\n")
