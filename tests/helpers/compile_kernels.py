"""Compiles the attention and cache kernels without a GPU; run as a script, prints JSON lines.

    python tests/helpers/compile_kernels.py ARCHITECTURE

A stub driver stands in for the GPU, and `warmup` specialises arguments as a launch would. The mode
of Triton is fixed when it is imported, so this runs in a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import MockTensor

from kernels.cache_ops import copy_kernel, write_kernel
from kernels.decode import decode_kernel
from kernels.launch import decode_tiles, prefill_tiles
from kernels.merge import merge_kernel
from kernels.prefill import prefill_kernel

HEADS, GROUP = 8, 4
TOOLS = Path(triton.backends.nvidia.__file__).parent / "bin"
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
EVERY_VARIANT = {"WINDOW": 100, "SOFTCAP": True, "ALIBI": True, "SINKS": True}
NO_VARIANT = {"WINDOW": 0, "SOFTCAP": False, "ALIBI": False, "SINKS": False}


class StubDriver(DriverBase):
    """Says that a GPU of some architecture is there, and nothing else."""

    def __init__(self, architecture):
        self.architecture = architecture

    @classmethod
    def is_active(cls):
        return False

    def get_current_target(self):
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise RuntimeError("nothing can run here")

    def map_python_to_cpp_type(self, ty):
        return ty


def shared(dtype, cache_dtype, head_dim, block_size, variant):
    """Arguments that decode and prefill have in common: a cache of one layer of Llama-3-8B."""
    slot = HEADS * head_dim
    return {
        "query": MockTensor(dtype),
        "key_cache": MockTensor(cache_dtype),
        "value_cache": MockTensor(cache_dtype),
        "block_table": MockTensor(torch.int32),
        "seq_lens": MockTensor(torch.int32),
        "query_start_loc": MockTensor(torch.int32),
        "lse": MockTensor(F32),
        "slopes": MockTensor(F32) if variant["ALIBI"] else None,
        "sinks": MockTensor(F32) if variant["SINKS"] else None,
        "logit_factor": 0.1,
        "cap_factor": 0.3,
        "value_scale": 1.0,
        "stride_token_q": slot * GROUP,
        "stride_head_q": head_dim,
        "stride_block_k": 2 * slot * block_size,
        "stride_slot_k": slot,
        "stride_head_k": head_dim,
        "stride_block_v": 2 * slot * block_size,
        "stride_slot_v": slot,
        "stride_head_v": head_dim,
        "stride_seq_t": 256,
        "stride_token_o": slot * GROUP,
        "stride_head_o": head_dim,
        "stride_token_l": HEADS * GROUP,
        "stride_head_l": 1,
        "GROUP": GROUP,
        "BLOCK_SIZE": block_size,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "WITH_LSE": True,
        **variant,
    }


def launch_options(tiles):
    """Tile sizes and Triton's own options."""
    return {
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def decode(dtype, cache_dtype, *, head_dim=128, block_size=16, variant=NO_VARIANT, direct=True):
    tiles = decode_tiles(group_size=GROUP, head_dim=head_dim, is_float32=dtype == F32)
    return decode_kernel.warmup(
        **shared(dtype, cache_dtype, head_dim, block_size, variant),
        **launch_options(tiles),
        out=MockTensor(dtype if direct else F32),
        lse_factor=0.69,
        stride_split_o=0 if direct else head_dim,
        stride_split_l=0 if direct else 1,
        grid=(1, 1, 1),
    )


def prefill(dtype, cache_dtype, *, head_dim=128, block_size=16, variant=NO_VARIANT, query_len=2048):
    tiles = prefill_tiles(
        group_size=GROUP, head_dim=head_dim, max_query_len=query_len, is_float32=dtype == F32
    )
    return prefill_kernel.warmup(
        **shared(dtype, cache_dtype, head_dim, block_size, variant),
        **launch_options(tiles),
        out=MockTensor(dtype),
        num_seqs=16,
        BLOCK_SEQS=16,
        CAUSAL=True,
        grid=(1, 1),
    )


def merge():
    f32 = MockTensor(F32)
    return merge_kernel.warmup(
        f32, f32, MockTensor(BF16), f32, f32, 8, 4096, 128, 32, 1,
        HEAD_DIM=128, BLOCK_D=128, BLOCK_SPLITS=8, SINKS=True, WITH_LSE=True, grid=(1,),
    )  # fmt: skip


def write(cache_dtype):
    strides = (1024, 128, 1024, 128, 32768, 1024, 128, 32768, 1024, 128)
    new, cache = MockTensor(BF16), MockTensor(cache_dtype)
    return write_kernel.warmup(
        new, new, cache, cache, MockTensor(torch.int64), 0.5, 0.5, 448.0, *strides,
        NUM_HEADS=8, HEAD_DIM=128, BLOCK_HEADS=8, BLOCK_D=128, BLOCK_SIZE=16,
        QUANTISE=cache_dtype in (E4M3, E5M2), grid=(1,),
    )  # fmt: skip


def copy():
    cache = MockTensor(torch.int16)
    return copy_kernel.warmup(
        cache, cache, MockTensor(torch.int64), 32768, 1024, 32768, 1024,
        SLOT_ELEMENTS=1024, BLOCK_ELEMENTS=16384, BLOCK=2048, grid=(1,),
    )  # fmt: skip


def variants(architecture):
    """What is compiled: (name, function)."""
    float8 = [("e5m2", E5M2)] if architecture < 89 else [("e4m3", E4M3), ("e5m2", E5M2)]
    yield "decode bf16 block 16", lambda: decode(BF16, BF16)
    yield "decode bf16 block 128", lambda: decode(BF16, BF16, block_size=128)
    yield "decode bf16 block 1", lambda: decode(BF16, BF16, block_size=1)
    yield "decode bf16 d80", lambda: decode(BF16, BF16, head_dim=80)
    yield "decode bf16 d256", lambda: decode(BF16, BF16, head_dim=256)
    yield (
        "decode fp16 split, every variant",
        lambda: decode(F16, F16, variant=EVERY_VARIANT | {"SINKS": False}, direct=False),
    )
    yield "decode fp32", lambda: decode(F32, F32)
    for name, dtype in float8:
        yield f"decode bf16 kv {name}", lambda dtype=dtype: decode(BF16, dtype)
        yield f"write {name}", lambda dtype=dtype: write(dtype)
    yield "prefill bf16", lambda: prefill(BF16, BF16)
    yield "prefill bf16, every variant", lambda: prefill(BF16, BF16, variant=EVERY_VARIANT)
    yield "prefill fp16 short, d96", lambda: prefill(F16, F16, head_dim=96, query_len=4)
    yield "prefill fp32", lambda: prefill(F32, F32)
    yield "write bf16", lambda: write(BF16)
    yield "merge", merge
    yield "copy", copy


def figures(kernel):
    """Registers, spill instructions and instructions of the loop that holds the matrix unit's."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name).splitlines()
    labels, instructions = {}, []
    for line in assembly:
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            instructions.append(line)
    loops = [
        instructions[labels[jump[1]] : at + 1]
        for at, line in enumerate(instructions)
        if (jump := re.search(r"BRA.*`\((\.L_x_\d+)\)", line)) and labels.get(jump[1], at + 1) <= at
    ]
    main = max(loops, key=lambda body: sum("MMA" in line for line in body), default=[])
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spills": sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in instructions),
        "shared_bytes": kernel.metadata.shared,
        "loop_instructions": len(main) if any("MMA" in line for line in main) else None,
        "wide_async_copies": sum("LDGSTS" in line and ".128" in line for line in instructions),
    }


def _run(tool, *arguments):
    return subprocess.run(
        [TOOLS / tool, *arguments], capture_output=True, text=True, check=True
    ).stdout


def main():
    architecture = int(sys.argv[1])
    triton.runtime.driver.set_active(StubDriver(architecture))
    for name, compile_it in variants(architecture):
        sys.stdout.write(json.dumps({"kernel": name, **figures(compile_it())}) + "\n")


if __name__ == "__main__":
    main()
