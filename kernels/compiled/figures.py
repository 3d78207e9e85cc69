"""What is known of a compiled launch: records, without Triton."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Counts = dict[str, int]
"""How often each of some named things occurs."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class LoopFigures(_Record):
    """The main loop: of the backward branches, the one around the most matrix instructions.

    Where a kernel has no matrix instructions, around the most multiply-adds.

    Attributes
    ----------
    instructions
        From its label to the branch back, all of them, for one warp.
    keys
        KV tokens of one iteration, from the constexpr that says so; None where none does.
    classes, matrix, memory, sources
        As in `LaunchFigures`, of the loop alone.
    """

    instructions: int
    keys: int | None
    classes: Counts
    matrix: Counts
    memory: Counts
    sources: dict[str, Counts]

    @property
    def instructions_per_key(self) -> float | None:
        """Instructions that a warp issues for one KV token; None if the keys are not known."""
        return self.instructions / self.keys if self.keys else None


class LaunchFigures(_Record):
    """One kernel as one launch compiled it. Registers and stack are those of one thread.

    Attributes
    ----------
    kernel
        Name of the `@triton.jit` function.
    launches
        How often the host function launched it so.
    constexprs
        Its constexpr arguments, by name.
    arguments
        Its other arguments: type, and after a colon what the compiler was told of the value, as in
        `*bf16:16` (a pointer divisible by 16), `i32:1` (the constant 1), `i32` (nothing).
    num_warps, num_stages
        Launch options. `num_warps` is what is launched: warp specialisation adds to it.
    register_limit
        `maxnreg` where the launch sets it, else the most that the target has.
    registers
        NVIDIA: registers. AMD: VGPRs, AGPRs included.
    accumulation_registers, scalar_registers
        AGPRs and SGPRs; None on NVIDIA.
    spill_instructions
        NVIDIA: loads and stores of local memory (LDL, STL). AMD: of scratch memory.
    spill_bytes
        NVIDIA: what `ptxas -v` calls spill stores. AMD: four times the spilled VGPRs.
    scalar_spills
        SGPRs that were spilled to lanes of VGPRs; None on NVIDIA.
    stack_bytes
        NVIDIA: the stack frame. AMD: scratch memory.
    shared_bytes, shared_limit
        Shared memory (LDS) of one program, and the most that the target allows.
    tensor_columns
        Columns of tensor memory of one program.
    blocks, warps, limited_by
        See `kernels.compiled.targets.Occupancy`.
    max_warps
        Of one processor: `warps / max_warps` is the occupancy.
    instructions
        All of them but padding.
    classes
        Instructions by class, such as `matrix`, `multiply-add`, `conversion`; see `sass`, `amdgcn`.
    matrix
        Matrix instructions by name, such as HMMA.
    memory
        Accesses to global memory by kind and width, such as `async copy 16 B`.
    sources
        The loads among them, by the variable that the kernel's source gives them to.
    loop
        The main loop; None where there is no loop that multiplies.
    """

    kernel: str
    launches: int
    constexprs: dict[str, bool | int | float | str | None]
    arguments: dict[str, str]
    num_warps: int
    num_stages: int
    register_limit: int
    registers: int
    accumulation_registers: int | None = None
    scalar_registers: int | None = None
    spill_instructions: int
    spill_bytes: int
    scalar_spills: int | None = None
    stack_bytes: int
    shared_bytes: int
    shared_limit: int
    tensor_columns: int = 0
    blocks: int
    warps: int
    max_warps: int
    limited_by: str
    instructions: int
    classes: Counts
    matrix: Counts
    memory: Counts
    sources: dict[str, Counts]
    loop: LoopFigures | None

    @property
    def fits(self) -> bool:
        """Whether a processor can hold one program."""
        return self.blocks > 0

    @property
    def occupancy(self) -> float:
        """Share of a processor's warps that are resident, 0 to 1."""
        return self.warps / self.max_warps


class VariantFigures(_Record):
    """What became of one variant on one target.

    Attributes
    ----------
    problem
        The spec of the batch that was launched.
    launches
        Each different launch, in order; empty where compiling failed.
    failure
        The compiler's message, or that it took too long; None where all is well.
    notes
        What a reader should know, such as that an autotuner did not choose.
    """

    problem: str
    launches: tuple[LaunchFigures, ...] = ()
    failure: str | None = None
    notes: tuple[str, ...] = ()
