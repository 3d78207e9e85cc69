"""GPUs by name, and how many blocks of a model's cache fit beside its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from bench.waste.models import Model
from reference.errors import BadInput

GIB: Final = 2**30

RUNTIME_BYTES: Final = int(1.15 * GIB)
"""What activations, graphs and the runtime take beside weights and cache: that of vLLM 0.19 with
Llama-3.1-8B on an RTX 4090, 2,588 blocks at a utilization of 0.9. Other engines and models differ.
"""

_UNITS: Final = {
    "B": 1,
    **{unit: 1000**power for power, unit in enumerate(("kB", "MB", "GB", "TB"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), start=1)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU's data sheet."""

    name: str
    memory_bytes: int
    bandwidth: float
    """Bytes a second."""
    flops: float
    """Dense 16-bit operations a second."""


def _gpu(name: str, gib: float, gb_per_s: float, tflops: float) -> tuple[str, Gpu]:
    gpu = Gpu(name=name, memory_bytes=int(gib * GIB), bandwidth=gb_per_s * 1e9, flops=tflops * 1e12)
    return name.lower(), gpu


GPUS: Final = dict(
    (
        _gpu("T4-16GB", 15.0, 320, 65),
        _gpu("A10-24GB", 22.5, 600, 125),
        _gpu("L4-24GB", 22.5, 300, 121),
        _gpu("L40S-48GB", 44.5, 864, 362),
        _gpu("RTX-3090-24GB", 23.5, 936, 71),
        _gpu("RTX-4090-24GB", 23.5, 1_008, 165),
        _gpu("A100-40GB", 39.4, 1_555, 312),
        _gpu("A100-80GB", 79.2, 2_039, 312),
        _gpu("H100-80GB", 79.2, 3_350, 989),
        _gpu("H200-141GB", 139.8, 4_800, 989),
        _gpu("B200-180GB", 178.0, 7_670, 2_250),
        _gpu("GB200-186GB", 184.0, 8_000, 2_500),
        _gpu("MI300X-192GB", 191.5, 5_300, 1_307),
    )
)
"""GPUs by name, in small letters: memory that a program sees, bandwidth and dense 16-bit rate of
the data sheets; the B200's bandwidth is what its driver states."""


def read_gpu(text: str) -> Gpu:
    """Find a GPU by its name, the memory left out where only one has it. Raises BadInput."""
    asked = text.strip().lower().replace(" ", "-").replace("_", "-")
    matches = [gpu for name, gpu in GPUS.items() if asked in (name, name.rpartition("-")[0])]
    if len(matches) == 1:
        return matches[0]
    near = get_close_matches(asked, GPUS, n=1, cutoff=0.5)
    meant = f"did you mean {GPUS[near[0]].name}? " if near else ""
    raise BadInput(
        f"--gpu {text}: {meant}choose one of {', '.join(gpu.name for gpu in GPUS.values())}, or "
        f"give --memory"
    )


def read_bytes(option: str, text: str) -> int:
    """Read a number of bytes with its unit. Raises BadInput, which names the option."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]+)", text.strip())
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise BadInput(f"{option} {text}: give a number and one of {', '.join(_UNITS)}: 12GiB")
    return int(float(match[1]) * units[match[2].lower()])


def cache_bytes(memory: int, utilization: float, model: Model, *, said: str) -> int:
    """Bytes that are left for the cache beside a model's weights. Raises BadInput: none is."""
    if model.weights is None:
        raise BadInput(
            f"{said} with --model {model.name}: a shape does not say what the weights take; name "
            f"a config.json or a model, or give --pool"
        )
    left = int(memory * utilization - model.weights - RUNTIME_BYTES)
    if left < model.bytes_per_token:
        raise BadInput(
            f"{said}: {utilization:g} of {memory / GIB:.1f} GiB, less "
            f"{model.weights / GIB:.1f} GiB of weights and {RUNTIME_BYTES / GIB:.2f} GiB for the "
            f"runtime, leaves no room for a cache; give more memory or --tensor-parallel"
        )
    return left
