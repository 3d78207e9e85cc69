"""The server that is simulated: its pool, its clock and what is asked of it, from the options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, get_args

from bench.waste.clocks import (
    HOST_BYTES_PER_S,
    ROUND_FIGURES,
    Clock,
    read_clock,
    read_slo,
    roofline,
)
from bench.waste.gpus import Gpu, cache_bytes, read_bytes, read_gpu
from bench.waste.models import Model, read_model
from bench.waste.plan import pool_slots
from bench.waste.record import Rank
from paged.clock import PS_PER_NS
from paged.latency import Slo
from paged.tiers import Tier
from reference.errors import BadInput

FIT: Final = "fit:"
"""What --clock begins with where a file follows."""

_TIER_WORDS: Final = (
    "give its name and size, and bytes that are read and written a second: "
    "host=64GiB,read=25GB,write=20GB, and overlap=1 if reads are hidden behind the computing"
)

DEFAULT_POOL: Final = "12GiB"
DEFAULT_BYTES_PER_TOKEN: Final = 819_200
"""OPT-13B in 16 bits: 2 x 40 layers x 5120 x 2 bytes (Kwon et al., SOSP 2023, section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the options say of a server's memory; None: nothing."""

    slots: int | None
    pool: str | None
    bytes_per_token: int | None
    model: str | None
    cache_dtype: str
    tensor_parallel: int
    pipeline_parallel: int
    gpu: str | None
    memory: str | None
    utilization: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the options come to."""

    slots: int
    bytes_per_token: int
    clock: Clock
    """What is typed, or where it is fitted, what it is pulled to."""
    fit: Path | None
    """What it is fitted to."""
    slo: Slo | None
    model: Model | None
    """None: only the bytes of a slot are known."""
    gpu: Gpu | None


def read_server(
    sizes: Sizes,
    *,
    clock: str | None,
    step_ms: float | None,
    prefill_rate: float | None,
    slo: str | None,
) -> Server:
    """Read the options. Raises BadInput: one is wrong, or two exclude each other."""
    model = _model(sizes)
    gpu = None if sizes.gpu is None else read_gpu(sizes.gpu)
    fit = None
    if clock is not None and clock.startswith(FIT):
        fit, clock = Path(clock.removeprefix(FIT)), None
    slot_bytes = sizes.bytes_per_token or DEFAULT_BYTES_PER_TOKEN
    if model is not None:
        slot_bytes = model.uniform_bytes_per_token
    return Server(
        slots=_slots(sizes, model, gpu, slot_bytes),
        bytes_per_token=slot_bytes,
        clock=_clock(clock, step_ms, prefill_rate, model, gpu),
        fit=fit,
        slo=None if slo is None else read_slo(slo),
        model=model,
        gpu=gpu,
    )


def read_tiers(texts: Sequence[str], server: Server) -> tuple[Tier, ...]:
    """Read --tier, as host=64GiB,read=25GB,write=20GB,overlap=1, one for each tier."""
    return tuple(_tier(text, server.bytes_per_token) for text in texts)


def _tier(text: str, slot_bytes: int) -> Tier:
    (name, size), *options = (
        [word.strip() for word in part.partition("=")[::2]] for part in text.split(",")
    )
    given = dict(options)
    if not (name.isidentifier() and size) or len(given) < len(options):
        raise BadInput(f"--tier {text}: {_TIER_WORDS}")
    if wrong := [each for each in given if each not in ("read", "write", "overlap")]:
        raise BadInput(f"--tier {text}: {wrong[0]!r} is unknown; {_TIER_WORDS}")
    rates = dict.fromkeys(("read", "write"), HOST_BYTES_PER_S)
    for way in rates:
        said = given.get(way, given.get("read"))
        if said is not None:
            rates[way] = read_bytes("--tier", said.removesuffix("/s"))
    if min(rates.values()) <= 0:
        raise BadInput(f"--tier {text}: give more than 0 bytes a second")
    overlap = given.get("overlap", "0")
    if re.fullmatch(r"0|1|[01]?\.\d+", overlap) is None or float(overlap) > 1:
        raise BadInput(f"--tier {text}: overlap={overlap}; give a share from 0 to 1")
    return Tier(
        name=name,
        slots=read_bytes("--tier", size) // slot_bytes,
        load_ps_per_token=round(slot_bytes / rates["read"] * 1e9 * PS_PER_NS),
        store_ps_per_token=round(slot_bytes / rates["write"] * 1e9 * PS_PER_NS),
        overlap=float(overlap),
    )


def read_rank(rank: str | None, slo: Slo | None) -> Rank:
    """Read --rank."""
    if rank is None:
        return "requests" if slo is None else "goodput"
    known: tuple[Rank, ...] = tuple(each for each in get_args(Rank) if each != "steps")
    for each in known:
        if each == rank:
            return each
    raise BadInput(f"--rank {rank}: choose one of {', '.join(known)}")


def _model(sizes: Sizes) -> Model | None:
    if sizes.model is None:
        if sizes.cache_dtype != "auto" or sizes.tensor_parallel * sizes.pipeline_parallel > 1:
            raise BadInput(
                "--cache-dtype, --tensor-parallel and --pipeline-parallel: name the model, as in "
                "--model 32x8x128"
            )
        return None
    if sizes.bytes_per_token is not None:
        raise BadInput(
            f"--bytes-per-token {sizes.bytes_per_token} and --model {sizes.model}: give one of them"
        )
    return read_model(
        sizes.model,
        cache_dtype=sizes.cache_dtype,
        ranks=sizes.tensor_parallel,
        stages=sizes.pipeline_parallel,
    )


def _slots(sizes: Sizes, model: Model | None, gpu: Gpu | None, slot_bytes: int) -> int:
    given = {
        "--slots": sizes.slots,
        "--pool": sizes.pool,
        "--memory": sizes.memory,
    }
    asked = [f"{option} {value}" for option, value in given.items() if value is not None]
    if len(asked) > 1:
        raise BadInput(f"{' and '.join(asked)}: give one of them")
    if sizes.slots is not None:
        return sizes.slots
    if sizes.pool is not None:
        return pool_slots(sizes.pool, slot_bytes)
    if sizes.memory is None and gpu is None:
        return pool_slots(DEFAULT_POOL, slot_bytes)
    said = f"--memory {sizes.memory}" if sizes.memory is not None else f"--gpu {sizes.gpu}"
    if model is None:
        raise BadInput(f"{said}: name the model whose weights it holds, as in --model Llama-3.1-8B")
    memory = 0
    if sizes.memory is not None:
        memory = read_bytes("--memory", sizes.memory)
    elif gpu is not None:
        memory = gpu.memory_bytes
    return cache_bytes(memory, sizes.utilization, model, said=said) // slot_bytes


def _clock(
    clock: str | None,
    step_ms: float | None,
    prefill_rate: float | None,
    model: Model | None,
    gpu: Gpu | None,
) -> Clock:
    if clock is not None:
        if step_ms is not None or prefill_rate is not None:
            raise BadInput(
                "--clock with --step-ms or --prefill-rate: the clock says both; leave them"
            )
        return read_clock(clock)
    found = ROUND_FIGURES
    if model is not None and gpu is not None:
        found = roofline(model, gpu) or ROUND_FIGURES
    if step_ms is None and prefill_rate is None:
        return found
    time = found.time
    if step_ms is not None:
        time = replace(time, step_ns=round(step_ms * 1e6))
    if prefill_rate is not None:
        time = replace(time, prefill_ns_per_token=round(1e9 / prefill_rate))
    return Clock(time=time, source="as given")
