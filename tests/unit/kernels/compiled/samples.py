"""Figures that look like those of the decode kernel on sm_90, for tests that change one thing."""

from __future__ import annotations

from kernels.compiled.figures import LaunchFigures, LoopFigures, VariantFigures

COPIES = {
    "block": {"async copy 4 B": 2},
    "keys": {"async copy 16 B": 8},
    "values": {"async copy 16 B": 8},
}


def loop_of(**changes) -> LoopFigures:
    fields = {
        "instructions": 436,
        "keys": 64,
        "classes": {"integer": 200, "matrix": 32, "multiply-add": 24},
        "matrix": {"HMMA": 32},
        "memory": {"async copy 16 B": 16, "async copy 4 B": 2},
        "sources": COPIES,
    }
    return LoopFigures(**(fields | changes))


def launch_of(*, loop: LoopFigures | None = None, **changes) -> LaunchFigures:
    fields = {
        "kernel": "decode_kernel",
        "launches": 1,
        "constexprs": {"BLOCK_N": 64},
        "arguments": {"query": "*bf16:16", "stride_slot_k": "i32:16", "sinks": "None"},
        "num_warps": 4,
        "num_stages": 3,
        "register_limit": 255,
        "registers": 124,
        "spill_instructions": 0,
        "spill_bytes": 0,
        "stack_bytes": 0,
        "shared_bytes": 39_424,
        "shared_limit": 232_448,
        "blocks": 4,
        "warps": 16,
        "max_warps": 64,
        "limited_by": "registers",
        "instructions": 2_039,
        "classes": {"integer": 1_000, "matrix": 64, "multiply-add": 48},
        "matrix": {"HMMA": 64},
        "memory": {"async copy 16 B": 32, "store 16 B": 1},
        "sources": COPIES,
    }
    return LaunchFigures(**(fields | changes), loop=loop or loop_of())


def without_loop(**changes) -> LaunchFigures:
    fields = launch_of(**changes).model_dump()
    return LaunchFigures.model_validate(fields | {"loop": None, "matrix": {}})


def variant_of(*launches: LaunchFigures, **changes) -> VariantFigures:
    fields = {"problem": "(q1 k16) d64 b16 bf16", "launches": launches or (launch_of(),)}
    return VariantFigures(**(fields | changes))
