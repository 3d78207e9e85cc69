"""The server's clock, as typed, or from the data sheets of a model and a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final

from bench.waste.gpus import Gpu
from bench.waste.models import Model
from paged.clock import StepTime
from paged.latency import Slo
from reference.errors import BadInput

MEMORY_SHARE: Final = 0.85
"""Share of the peak bandwidth at which weights and cache are read: FlashMLA's decode on an H100,
2.79 to 2.83 of 3.35 TB/s, is the best published."""

COMPUTE_SHARE: Final = 0.6
"""Share of the peak rate at which prompts are computed."""

STEP_OVERHEAD_NS: Final = 3_000_000
"""What a step takes beside that: launches, sampling, the scheduler."""

HOST_BYTES_PER_S: Final = 25e9
"""At which blocks are copied to the host and back: PCIe 4.0 x16, 32 GB/s less what is lost."""

MODEL_ERROR: Final = 0.02
"""Difference, as a share, below which no change is recommended: what the simulation misses a
measured run's makespan by with a clock fitted to its first third, doubled."""

_UNITS: Final = {"s": 10**12, "ms": 10**9, "us": 10**6, "µs": 10**6, "ns": 10**3, "ps": 1}
_PARTS: Final = ("base", "prompt", "kv", "swap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A step's duration, and where it is from."""

    time: StepTime
    source: str
    """In words."""
    error: float = MODEL_ERROR
    """Difference, as a share, that it cannot tell from none."""
    errors: dict[str, float] = field(default_factory=dict)
    """Of a clock that was fitted: what it misses each figure by that was measured, as shares."""


ROUND_FIGURES: Final = Clock(time=StepTime(), source="round figures, not a measurement")


def at_part(option: str, text: str, part: str) -> str:
    """Begin a refusal of an option, with the part of its value that is wrong where it has more."""
    return f"{option} {text}: " + ("" if part.strip() == text.strip() else f"{part!r}; ")


def read_clock(text: str) -> Clock:
    """Read `base=25ms,prompt=89us,kv=0.1us,swap=5us`; what is left out takes no time."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        number = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?(s|ms|us|µs|ns|ps)", value)
        if name not in _PARTS or not equals or number is None or name in found:
            raise BadInput(
                f"{at_part('--clock', text, part)}give {', '.join(_PARTS)} once each, as in "
                f"base=25ms,prompt=89us,kv=0.1us: a step, and for each prompt token, cached token "
                f"read and token swapped"
            )
        found[name] = round(float(number[1]) * _UNITS[number[2]])
    if found.get("base", 0) < 1000:
        raise BadInput(f"--clock {text}: a step takes time; give base, as in base=25ms")
    return Clock(
        time=StepTime(
            step_ns=round(found["base"] / 1000),
            prefill_ns_per_token=round(found.get("prompt", 0) / 1000),
            kv_ps_per_token=found.get("kv", 0),
            swap_ns_per_token=round(found.get("swap", 0) / 1000),
        ),
        source="as given",
    )


def roofline(model: Model, gpu: Gpu, *, read: float | None = None) -> Clock | None:
    """Estimate from data sheets; None where the model's weights are not known.

    `read` is the bandwidth in bytes a second where it was measured. A step reads the weights and
    the cache, and computes its prompts, one after the other.
    """
    if model.weights is None or model.parameters is None:
        return None
    read = read or gpu.bandwidth * MEMORY_SHARE
    active = model.active or model.parameters
    # Of experts, a batch of some size meets all.
    return Clock(
        time=StepTime(
            step_ns=round(model.weights / read * 1e9) + STEP_OVERHEAD_NS,
            prefill_ns_per_token=round(
                2 * active / model.ranks / (gpu.flops * COMPUTE_SHARE) * 1e9
            ),
            kv_ps_per_token=round(model.lasting_bytes_per_token / read * 1e12),
            swap_ns_per_token=round(model.bytes_per_token / HOST_BYTES_PER_S * 1e9),
        ),
        source=(
            f"data sheets: {model.name} on {gpu.name}, {read / gpu.bandwidth:.0%} of the "
            f"bandwidth, {COMPUTE_SHARE:.0%} of the compute, {STEP_OVERHEAD_NS / 1e6:g} ms a step"
        ),
    )


def measured_bandwidth(
    kv_bytes: int, seconds: float, model: Model | None, gpu: Gpu | None, *, name: str
) -> Clock:
    """Read weights and cache as fast as a kernel was measured to read the cache. Raises BadInput:
    the model's weights, or the GPU, are not known.
    """
    given = None if model is None or gpu is None else roofline(model, gpu, read=kv_bytes / seconds)
    if given is None:
        raise BadInput(
            f"--clock fit:{name}: it says how fast a cache is read, not what is in it; give "
            f"--model, by name or config.json, and --gpu"
        )
    return replace(given, source=f"{given.source}; read as in {name}")


def clock_words(time: StepTime) -> str:
    """Say what a step takes."""
    parts = [
        f"{time.step_ns / 1e6:.4g} ms a step",
        f"{time.prefill_ns_per_token / 1e3:.4g} us a prompt token",
        f"{time.kv_ps_per_token / 1e6:.3g} us a token read",
    ]
    if time.swap_ns_per_token:
        parts.append(f"{time.swap_ns_per_token / 1e3:.3g} us a token swapped")
    return ", ".join(part for part in parts if not part.startswith("0 us"))


def read_slo(text: str) -> Slo:
    """Read `ttft=2,tpot=0.05,e2e=30`, in seconds."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        number = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?(s|ms)?", value)
        if name not in ("ttft", "tpot", "e2e") or not equals or number is None or name in found:
            raise BadInput(
                f"{at_part('--slo', text, part)}give ttft, tpot or e2e once each, in seconds, as "
                f"in ttft=2,tpot=0.05"
            )
        found[name] = round(float(number[1]) * (1e6 if number[2] == "ms" else 1e9))
    try:
        return Slo(**{f"{name}_ns": limit for name, limit in found.items()})
    except ValueError as error:
        raise BadInput(f"--slo {text}: {error}") from None
