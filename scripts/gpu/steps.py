"""What `make gpu` runs: each step a command of some minutes, with a record of its own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

OURS: Final = (
    "triton", "triton-latent", "triton-cascade", "triton-merge", "triton-write", "triton-copy",
)  # fmt: skip
PEERS: Final = (
    "flex",
    "flashinfer",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "flash-mla",
    "vllm-unified",
    "vllm-mla",
)
GPU_TESTS: Final = ("decode", "kernels", "cascade", "throughput", "gate")

RECORD: Final = "RECORD"
"""Stands in a command for the file that the step writes its own record to."""

MACHINE: Final = """\
import json, pathlib
from bench.machine.environment import describe_environment
from bench.machine.gpu import GpuReader
from bench.machine.timing import CudaDevice
uuid = CudaDevice().describe()["uuid"]
known = describe_environment("cuda").model_dump()
clocks = GpuReader(uuid).clocks()
pathlib.Path("RECORD").write_text(json.dumps(known | {"clocks": clocks}))
print(known["device"], clocks)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One command, and what it is for."""

    name: str
    what: str
    """In a sentence."""
    command: tuple[str, ...]
    """Words after `python`."""
    limit_s: float = 540.0
    absent: bool = False
    """Whether exit code 2 says that what it needs is not here, which is no fault."""


def _pagedbench(name: str, what: str, *words: str, absent: bool = False) -> Step:
    return Step(name, what, ("-m", "pagedbench", *words, "--json", RECORD), absent=absent)


def _on_the_gpu(kernel: str) -> tuple[str, ...]:
    return ("check", "--kernel", kernel, "--device", "cuda", "--no-timing")


STEPS: Final = (
    Step("machine", "Device, driver, versions and clocks.", ("-c", MACHINE), limit_s=60.0),
    *(
        Step(
            f"tests of {name}",
            "What only a compiled kernel can show: tests/gpu.",
            ("-m", "pytest", "-q", f"tests/gpu/test_{name}_on_a_gpu.py"),
        )
        for name in GPU_TESTS
    ),
    *(
        _pagedbench(f"check of {name}", "Our kernel, compiled, by default.", *_on_the_gpu(name))
        for name in OURS
    ),
    Step(
        "sanitizer",
        "Planted memory bugs under compute-sanitizer, beside our memory checker.",
        ("-m", "studies.sanitizer", "--json", RECORD),
    ),
    _pagedbench(
        "bars",
        "Every figure that is asked for.",
        *("throughput", "--device", "cuda", "--preset", "bars"),
    ),
    _pagedbench(
        "splits",
        "Our choice of splits beside others.",
        *(
            "throughput",
            "--device",
            "cuda",
            "--batch",
            "1x131072",
            "--batch",
            "16x32768",
            "--subject",
            "triton",
        ),
        *("--splits", "auto,1,2,4,8,16,32,64"),
    ),
    _pagedbench(
        "invariance",
        "The price of batch invariance.",
        *(
            "throughput",
            "--device",
            "cuda",
            "--batch",
            "64x4096",
            "--batch",
            "azure-conv:32",
            "--subject",
            "triton",
        ),
        *("--subject", "kernels.attention:batch_invariant_attention"),
    ),
    _pagedbench(
        "gate, same code",
        "The gate on identical code; and cache writes and copies against the copy bandwidth.",
        *("gate", "--aa", "--device", "cuda", "--benchmark", "gpu/", "--time-limit", "7"),
    ),
    _pagedbench(
        "gate, planted",
        "The gate on code that was slowed down.",
        *("gate", "--plant", "5%", "--device", "cuda", "--benchmark", "gpu/decode"),
        *("--time-limit", "7"),
    ),
    *(
        _pagedbench(f"check of {name}", "A peer, compiled.", *_on_the_gpu(name), absent=True)
        for name in PEERS
    ),
)


def typed(command: Sequence[str]) -> str:
    """A step's command as one types it."""
    if command[0] == "-c":
        return "python -c ... (asks torch and NVML)"
    words = ["pagedbench", *command[2:]] if command[:2] == ("-m", "pagedbench") else command
    front = "" if words[0] == "pagedbench" else "PYTHONPATH=.:tests python "
    shown = [word for word in words if word not in {"--json", RECORD}]
    return front + shlex.join(shown)
