"""What is known of a compiled launch: records, without Triton."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Counts = dict[str, int]
"""How often each of some named things occurs."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class LoopFigures(_Record):
    """The main loop: the one around the most matrix instructions, or else multiply-adds."""

    instructions: int
    """From its label to the branch back, all of them, for one warp."""
    keys: int | None
    """KV tokens of one iteration, from the constexpr that says so; None where none does."""
    classes: Counts
    matrix: Counts
    memory: Counts
    sources: dict[str, Counts]
    """As in `LaunchFigures`, of the loop alone."""

    @property
    def instructions_per_key(self) -> float | None:
        """Instructions that a warp issues for one KV token; None if the keys are not known."""
        return self.instructions / self.keys if self.keys else None


class LaunchFigures(_Record):
    """One kernel as one launch compiled it. Registers and stack are those of one thread."""

    kernel: str
    """Name of the `@triton.jit` function."""
    launches: int
    """How often the host function launched it so."""
    constexprs: dict[str, bool | int | float | str | None]
    """Its constexpr arguments, by name."""
    arguments: dict[str, str]
    """Its other arguments: type, and after a colon what the compiler was told of the value, as in
    `*bf16:16` (a pointer divisible by 16), `i32:1` (the constant 1), `i32` (nothing)."""
    num_warps: int
    num_stages: int
    """Launch options. `num_warps` is what is launched: warp specialisation adds to it."""
    register_limit: int
    """`maxnreg` where the launch sets it, else the most that the target has."""
    registers: int
    """NVIDIA: registers. AMD: VGPRs, AGPRs included."""
    accumulation_registers: int | None = None
    scalar_registers: int | None = None
    """AGPRs and SGPRs; None on NVIDIA."""
    spill_instructions: int
    """NVIDIA: loads and stores of local memory (LDL, STL). AMD: of scratch memory."""
    spill_bytes: int
    """NVIDIA: what `ptxas -v` calls spill stores. AMD: four times the spilled VGPRs."""
    scalar_spills: int | None = None
    """SGPRs that were spilled to lanes of VGPRs; None on NVIDIA."""
    stack_bytes: int
    """NVIDIA: the stack frame. AMD: scratch memory."""
    shared_bytes: int
    shared_limit: int
    """Shared memory (LDS) of one program, and the most that the target allows."""
    tensor_columns: int = 0
    """Columns of tensor memory of one program."""
    blocks: int
    warps: int
    max_warps: int
    """Of one processor: `warps / max_warps` is the occupancy."""
    limited_by: str
    """See `kernels.compiled.targets.Occupancy`."""
    instructions: int
    """All of them but padding."""
    classes: Counts
    """Instructions by class, such as `matrix`, `multiply-add`, `conversion`; see `sass`, `amdgcn`.
    """
    matrix: Counts
    """Matrix instructions by name, such as HMMA."""
    memory: Counts
    """Accesses to global memory by kind and width, such as `async copy 16 B`."""
    sources: dict[str, Counts]
    """The loads among them, by the variable that the kernel's source gives them to."""
    loop: LoopFigures | None
    """The main loop; None where there is no loop that multiplies."""

    @property
    def fits(self) -> bool:
        """Whether a processor can hold one program."""
        return self.blocks > 0

    @property
    def occupancy(self) -> float:
        """Share of a processor's warps that are resident, 0 to 1."""
        return self.warps / self.max_warps


class VariantFigures(_Record):
    """What became of one variant on one target."""

    problem: str
    """The spec of the batch that was launched."""
    launches: tuple[LaunchFigures, ...] = ()
    """Each different launch, in order; empty where compiling failed."""
    failure: str | None = None
    """The compiler's message, or that it took too long; None where all is well."""
    notes: tuple[str, ...] = ()
    """What a reader should know, such as that an autotuner did not choose."""
