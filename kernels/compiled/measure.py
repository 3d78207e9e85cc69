"""Reads the figures of a compiled launch from its machine code.

Registers and stack come from `cuobjdump`, instructions from `nvdisasm`, bytes of spills from
`ptxas -v`, all of them the tools that Triton brings along; on AMD everything is in the assembly and
the metadata that Triton keeps. `CompiledKernel.n_regs` and `n_spills` need a driver.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import subprocess
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import triton
import triton.backends.nvidia
from triton.compiler.compiler import make_backend

from kernels.compiled import amdgcn, sass
from kernels.compiled.capture import Launch
from kernels.compiled.disassembly import (
    Instruction,
    count_classes,
    count_matrix,
    count_memory,
    count_sources,
    main_loop,
)
from kernels.compiled.figures import LaunchFigures, LoopFigures
from kernels.compiled.targets import Target, occupancy

KEY_NAMES: Final = ("BLOCK_N", "TILE_SIZE", "BLOCK_KV")
"""Constexprs that may hold the keys of one iteration of the main loop, by common usage."""

LONGEST_NAME: Final = 40
"""Characters of a statement that assigns to no variable, as its name."""

_TOOLS: Final = Path(triton.backends.nvidia.__file__).parent / "bin"
_ASSIGNED = re.compile(r"\s*(\w+)\s*(?::[^=]*)?[-+*|&]?=(?!=)")


class ToolsDisagree(RuntimeError):
    """Two readings of one kernel differ: the figures could not be trusted."""


def toolchain(target: Target) -> str:
    """The assembler that makes the machine code: with another one the figures are others."""
    if not target.is_nvidia:
        return "llvm of triton"
    from triton.backends.nvidia.compiler import get_ptxas

    return f"ptxas {get_ptxas(target.arch).version}"


def measure(
    launch: Launch, target: Target, *, key_names: Collection[str] = KEY_NAMES
) -> LaunchFigures:
    """The figures of a launch; the first of `key_names` that is a constexpr says the keys of a
    tile.

    Raises ToolsDisagree: if assembling Triton's PTX again gives another binary than Triton's.
    """
    read = _read_sass if target.is_nvidia else _read_amdgcn
    instructions, loop, resources = read(launch, target)
    name_of = _statement_names(launch.function)
    metadata = launch.compiled.metadata
    held = occupancy(
        target,
        num_warps=metadata.num_warps,
        registers=resources["registers"],
        shared_bytes=metadata.shared,
        scalar_registers=resources.get("scalar_registers", 0),
        tensor_columns=getattr(metadata, "tmem_size", None) or 0,
    )
    keys = next(
        (value for name in key_names if isinstance(value := launch.constexprs.get(name), int)), None
    )
    return LaunchFigures(
        kernel=launch.function.fn.__name__,
        launches=launch.count,
        constexprs=launch.constexprs,
        arguments=launch.arguments,
        num_warps=metadata.num_warps,
        num_stages=metadata.num_stages,
        register_limit=getattr(metadata, "maxnreg", None) or target.max_registers,
        **resources,
        shared_bytes=metadata.shared,
        shared_limit=target.shared_limit,
        tensor_columns=getattr(metadata, "tmem_size", None) or 0,
        blocks=held.blocks,
        warps=held.warps,
        max_warps=target.max_warps,
        limited_by=held.limited_by,
        instructions=len(instructions),
        **_counted(instructions, name_of),
        loop=LoopFigures(instructions=len(loop), keys=keys, **_counted(loop, name_of))
        if loop
        else None,
    )


def _counted(
    instructions: tuple[Instruction, ...], name_of: Callable[[tuple[str, int]], str]
) -> dict[str, Any]:
    return {
        "classes": count_classes(instructions),
        "matrix": count_matrix(instructions),
        "memory": count_memory(instructions),
        "sources": count_sources(instructions, name_of),
    }


_Reading = tuple[tuple[Instruction, ...], tuple[Instruction, ...], dict[str, int]]
"""All instructions, those of the main loop, and the fields of `LaunchFigures` that are left."""


def _read_sass(launch: Launch, target: Target) -> _Reading:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.compiled.asm["cubin"])
        file.flush()
        usage = sass.read_resources(_run("cuobjdump", "--dump-resource-usage", file.name))
        listing = sass.parse_sass(
            _run("nvdisasm", "-c", "-g", file.name),
            sass.read_shifted_lines(launch.compiled.asm["ptx"]),
        )
    spills = sum(each.kind == "spill" for each in listing.instructions)
    resources = {
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"],
        "spill_instructions": spills,
        # Where nothing reads or writes local memory, nothing was spilled there.
        "spill_bytes": _spill_bytes(launch, target) if spills else 0,
    }
    return listing.instructions, main_loop(listing), resources


def _read_amdgcn(launch: Launch, target: Target) -> _Reading:
    text = launch.compiled.asm["amdgcn"]
    listing = amdgcn.parse_amdgcn(text)
    counts = amdgcn.read_metadata(text)
    resources = {
        "registers": counts["vgpr_count"],
        "accumulation_registers": counts.get("agpr_count", 0),
        "scalar_registers": counts["sgpr_count"],
        "stack_bytes": counts["private_segment_fixed_size"],
        "spill_instructions": sum(each.kind == "spill" for each in listing.instructions),
        "spill_bytes": 4 * counts["vgpr_spill_count"],
        "scalar_spills": counts["sgpr_spill_count"],
    }
    return listing.instructions, main_loop(listing), resources


def _spill_bytes(launch: Launch, target: Target) -> int:
    """What `ptxas -v` says, called by Triton itself and so with Triton's options."""
    metadata = launch.compiled.metadata
    backend = make_backend(metadata.target)
    names = type(backend.parse_options({})).__dataclass_fields__
    kept = {name: getattr(metadata, name) for name in names if hasattr(metadata, name)}
    kept.pop("extern_libs", None)  # linked long before; a record has it in another form
    options = backend.parse_options(kept)
    said = io.StringIO()
    with triton.knobs.nvidia.scope(), contextlib.redirect_stdout(said):
        triton.knobs.nvidia.dump_ptxas_log = True
        again = backend.make_cubin(launch.compiled.asm["ptx"], {}, options, target.arch)
    if again != launch.compiled.asm["cubin"]:
        raise ToolsDisagree(
            f"{launch.function.fn.__name__} for {target.name}: assembling its PTX again gives "
            f"another binary; was it compiled with another ptxas? Empty Triton's cache"
        )
    return sass.read_spill_bytes(said.getvalue())


def _statement_names(function: Any) -> Callable[[tuple[str, int]], str]:
    """Names for statements: the variable that is assigned, else the line's text; numbers change."""
    home = Path(function.fn.__code__.co_filename).parent

    def name_of(source: tuple[str, int]) -> str:
        path, line = source
        if not line:
            return "unknown"
        # A cached binary may name another copy of the file; the one beside the kernel is meant.
        beside = home / Path(path).name
        text = linecache.getline(str(beside if beside.is_file() else path), line)
        assigned = _ASSIGNED.match(text)
        return assigned[1] if assigned else text.strip()[:LONGEST_NAME] or "unknown"

    return name_of


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [_TOOLS / tool, *arguments], capture_output=True, text=True, check=True
    ).stdout
