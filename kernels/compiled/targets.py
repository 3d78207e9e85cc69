"""The GPUs that kernels are compiled for, and how many programs fit on a processor of each.

A processor is a streaming multiprocessor (NVIDIA) or a compute unit (AMD). Occupancy is computed
from its limits; it is not compared with a driver's answer, because there is no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from reference.errors import BadInput

KIB: Final = 1024

WARPS_GRANULE: Final = 4
"""NVIDIA: warps that the register file holds are counted in fours, one for each of the four
schedulers (CUDA occupancy calculator: warp allocation granularity 4)."""

REGISTERS_GRANULE: Final = 256
"""NVIDIA: registers of a warp are allocated in such units (CUDA occupancy calculator)."""

SHARED_GRANULE: Final = 128
"""NVIDIA: bytes in which shared memory is allocated (CUDA occupancy calculator)."""

RESERVED_SHARED: Final = KIB
"""NVIDIA, from sm_80: shared memory that the system keeps for itself in each block, bytes (CUDA
C++ Programming Guide, shared memory of compute capability 8.x and later)."""

SIMDS: Final = 4
"""AMD: SIMDs of a compute unit, each with a register file of its own."""

VECTOR_REGISTERS_GRANULE: Final = 8
"""AMD, gfx90a and later: VGPRs of a wave are allocated in such units (LLVM AMDGPUUsage)."""

MAX_WORKGROUPS: Final = 16
"""AMD: workgroups of more than one wave on a compute unit, one barrier each (LLVM AMDGPU back end,
getMaxWorkGroupsPerCU)."""

SCALAR_LIMITS: Final = ((100, 8), (10**6, 7))
"""AMD: (SGPRs at most, waves on a SIMD) of gfx9 (LLVM AMDGPU back end, occupancy by SGPRs)."""


class UnknownTarget(BadInput):
    """A target that is not in `TARGETS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A GPU to compile for."""

    name: str
    """As on the command line."""
    backend: Literal["cuda", "hip"]
    """Triton's: `cuda` or `hip`."""
    arch: int | str
    """Triton's: 90, or "gfx942"."""
    warp_size: int
    """Threads of a warp, or of a wave."""
    max_warps: int
    max_blocks: int
    """Of one processor."""
    registers: int
    """32-bit registers of one processor (NVIDIA), or VGPRs and AGPRs of one lane of a SIMD (AMD).
    """
    max_registers: int
    """Of one thread."""
    shared_bytes: int
    shared_limit: int
    """Shared memory (LDS) of one processor, and the most that one program may have."""
    shared_granule: int
    """Bytes in which it is allocated."""
    processors: int
    """How many a common product has, for host functions that size a grid by it. Figures do not
    depend on it unless a kernel's constexprs do."""
    tensor_columns: int = 0
    """Tensor memory of one processor; 0 where there is none."""

    @property
    def is_nvidia(self) -> bool:
        """Whether the machine code is SASS; AMD's is amdgcn."""
        return self.backend == "cuda"


def _nvidia(
    arch: int, *, warps: int, blocks: int, shared_kib: int, processors: int, tensor_columns: int = 0
) -> Target:
    # CUDA C++ Programming Guide, appendix "Compute Capabilities", technical specifications.
    return Target(
        name=f"sm_{arch}",
        backend="cuda",
        arch=arch,
        warp_size=32,
        max_warps=warps,
        max_blocks=blocks,
        registers=64 * 1024,
        max_registers=255,
        shared_bytes=shared_kib * KIB,
        shared_limit=(shared_kib - 1) * KIB,
        shared_granule=SHARED_GRANULE,
        processors=processors,
        tensor_columns=tensor_columns,
    )


def _amd(arch: str, *, shared_kib: int, shared_granule: int, processors: int) -> Target:
    # LLVM, "User Guide for AMDGPU Backend" and the back end's subtarget features: eight waves on
    # each of four SIMDs, 512 unified VGPRs a lane, LDS allocated in 128 or 320 words.
    return Target(
        name=arch,
        backend="hip",
        arch=arch,
        warp_size=64,
        max_warps=8 * SIMDS,
        max_blocks=MAX_WORKGROUPS,
        registers=512,
        max_registers=512,
        shared_bytes=shared_kib * KIB,
        shared_limit=shared_kib * KIB,
        shared_granule=shared_granule,
        processors=processors,
    )


TARGETS: Final = {
    target.name: target
    for target in (
        _nvidia(80, warps=64, blocks=32, shared_kib=164, processors=108),
        _nvidia(89, warps=48, blocks=24, shared_kib=100, processors=142),
        _nvidia(90, warps=64, blocks=32, shared_kib=228, processors=132),
        _nvidia(100, warps=64, blocks=32, shared_kib=228, processors=148, tensor_columns=512),
        _nvidia(120, warps=48, blocks=24, shared_kib=100, processors=170),
        _amd("gfx942", shared_kib=64, shared_granule=512, processors=304),
        _amd("gfx950", shared_kib=160, shared_granule=1280, processors=256),
    )
}
"""By name, in the order in which they are shown. Processors are those of A100, L40S, H100 SXM,
B200, RTX 5090, MI300X and MI355X, from their makers' data sheets; tensor memory has 512 columns
(PTX ISA, tcgen05.alloc)."""


def find_target(name: str) -> Target:
    """The target of that name. Raises UnknownTarget: with the names that there are."""
    if name not in TARGETS:
        raise UnknownTarget(f"--target {name}: choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How many programs are resident on one processor."""

    blocks: int
    """Programs; 0 if one alone does not fit."""
    warps: int
    """Warps (waves) of these programs."""
    limited_by: str
    """What keeps one more out: `warps`, `blocks`, `registers`, `shared memory` or `tensor memory`.
    The first in this order, if several."""


def occupancy(
    target: Target,
    *,
    num_warps: int,
    registers: int,
    shared_bytes: int,
    scalar_registers: int = 0,
    tensor_columns: int = 0,
) -> Occupancy:
    """How many programs fit on one processor.

    Registers are those of a thread, on AMD VGPRs, AGPRs included; shared memory (LDS), static and
    dynamic, and columns of tensor memory those of one program; SGPRs those of a wave, AMD only.
    """
    limits = {
        "warps": target.max_warps // num_warps,
        # A wave by itself needs no barrier, of which AMD's limit of workgroups is the number.
        "blocks": target.max_blocks if target.is_nvidia or num_warps > 1 else target.max_warps,
        "registers": _by_registers(target, num_warps, registers, scalar_registers),
        "shared memory": _by_shared_memory(target, shared_bytes),
    }
    if tensor_columns:
        limits["tensor memory"] = target.tensor_columns // tensor_columns
    limited_by = min(limits, key=lambda limit: limits[limit])
    blocks = limits[limited_by]
    return Occupancy(blocks, blocks * num_warps, limited_by)


def _by_registers(target: Target, num_warps: int, registers: int, scalar_registers: int) -> int:
    if target.is_nvidia:
        of_a_warp = _round_up(max(registers, 1) * target.warp_size, REGISTERS_GRANULE)
        warps = target.registers // of_a_warp // WARPS_GRANULE * WARPS_GRANULE
        return warps // num_warps
    vectors = target.registers // _round_up(max(registers, 1), VECTOR_REGISTERS_GRANULE)
    scalars = next(waves for most, waves in SCALAR_LIMITS if scalar_registers <= most)
    return min(vectors, scalars) * SIMDS // num_warps


def _by_shared_memory(target: Target, shared_bytes: int) -> int:
    if shared_bytes > target.shared_limit:
        return 0
    reserved = RESERVED_SHARED if target.is_nvidia else 0
    taken = _round_up(shared_bytes + reserved, target.shared_granule)
    return target.shared_bytes // taken if taken else target.max_warps


def _round_up(amount: int, granule: int) -> int:
    return -(-amount // granule) * granule
