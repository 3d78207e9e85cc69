"""What vLLM computes of a model's cache, by its own functions; run by vLLM's interpreter.

Reads a list of {"config": ..., "tensor_parallel": ..., "cache_dtype": ..., "block_size": ...,
"max_model_len": ..., "most": ..., "in_flight": ..., "pool_bytes": ...}, and writes for each
{"groups": [[kind, layers, bytes of a token and layer or of a state], ...], "tables": ...,
"block_bytes": ..., "blocks": ..., "longest": ..., "concurrency": ...}, or {"error": ...}.

Heads, head size and MLA are read by vLLM's reader of configurations, kinds of layers by
transformers', states by vLLM's calculator of their shapes, in 16 bits; the parting into tables,
blocks and requests is that of its `kv_cache_utils`. That blocks of a model with states are made
long enough to hold one is its platform's rule, which is written down here. Imports nothing of ours.
"""

import json
import os
import sys
from types import SimpleNamespace
from typing import Any

os.environ.update(VLLM_TARGET_DEVICE="cpu", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")

import torch
from transformers import AutoConfig, PretrainedConfig
from vllm.model_executor.layers.mamba.mamba_utils import (
    MambaStateShapeCalculator as Shapes,
)
from vllm.transformers_utils.model_arch_config_convertor import (
    MODEL_ARCH_CONFIG_CONVERTORS,
    ModelArchConfigConvertorBase,
)
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.core import kv_cache_utils as utils
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    get_kv_quant_mode,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

DTYPES = {
    "auto": torch.bfloat16,
    "fp8": torch.uint8,
    "int8_per_token_head": torch.int8,
    "int4_per_token_head": torch.uint8,
}


def read(config: dict[str, Any]) -> Any:
    """A configuration, with what its class derives."""
    try:
        return AutoConfig.for_model(**config)
    except ValueError:
        return PretrainedConfig(**config)


def kinds_of(config: Any) -> list[str]:
    """What each layer keeps."""
    layers = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds is None:
        window = getattr(config, "sliding_window", None)
        kinds = ["sliding_attention" if window else "full_attention"] * layers
    kinds = list(kinds)[:layers]
    shared = getattr(config, "num_kv_shared_layers", 0) or 0
    kinds = kinds[: layers - shared]
    if getattr(config, "use_cla", False):
        kinds = kinds[:: config.cla_share_factor]
    return kinds


def state_shapes(config: Any, ranks: int) -> Any:
    """Shapes of a layer's state."""
    if getattr(config, "linear_num_value_heads", None):
        return Shapes.gated_delta_net_state_shape(
            ranks,
            config.linear_num_key_heads,
            config.linear_num_value_heads,
            config.linear_key_head_dim,
            config.linear_value_head_dim,
            config.linear_conv_kernel_dim,
        )
    inner = config.mamba_expand * config.hidden_size
    if getattr(config, "mamba_n_heads", None):
        return Shapes.mamba2_state_shape(
            intermediate_size=inner,
            tp_world_size=ranks,
            n_groups=config.mamba_n_groups,
            num_heads=config.mamba_n_heads,
            head_dim=config.mamba_d_head,
            state_size=config.mamba_d_state,
            conv_kernel=config.mamba_d_conv,
        )
    return Shapes.mamba1_state_shape(ranks, inner, config.mamba_d_state, config.mamba_d_conv)


def compute(asked: dict[str, Any]) -> dict[str, Any]:
    """What vLLM makes of one model."""
    config, ranks, block = read(asked["config"]), asked["tensor_parallel"], asked["block_size"]
    kind = MODEL_ARCH_CONFIG_CONVERTORS.get(config.model_type, ModelArchConfigConvertorBase)
    convertor = kind(config, config)
    latent = convertor.is_deepseek_mla()
    heads = 1 if latent else max(1, convertor.get_total_num_kv_heads() // ranks)
    named = asked["cache_dtype"]
    given = {
        "num_kv_heads": heads,
        "head_size": convertor.get_head_size(),
        "dtype": DTYPES[named],
        "kv_quant_mode": get_kv_quant_mode(named),
    }
    kinds = kinds_of(config)
    states = [each for each in kinds if each in ("mamba", "linear_attention")]
    padded, state = None, {}
    if states:
        # As the platform does before the layers are asked: blocks that hold a state.
        state = {
            "shapes": state_shapes(config, ranks),
            "dtypes": (torch.bfloat16, torch.bfloat16),
        }
        size = MambaSpec(block_size=-1, **state).page_size_bytes
        one = FullAttentionSpec(block_size=1, **given).page_size_bytes
        block *= -(-size // (block * one))
        padded = block * one
    specs: dict[str, Any] = {}
    for layer, each in enumerate(kinds):
        if each in ("mamba", "linear_attention"):
            spec: Any = MambaSpec(
                block_size=asked["max_model_len"], page_size_padded=padded, **state
            )
        elif latent:
            spec = MLAAttentionSpec(block_size=block, **given)
        elif each == "sliding_attention":
            window = config.sliding_window
            spec = SlidingWindowSpec(block_size=block, sliding_window=window, **given)
        else:
            spec = FullAttentionSpec(block_size=block, **given)
        if not latent and not isinstance(spec, MambaSpec):
            spec = TritonAttentionBackend.customize_spec(spec)
        specs[f"model.layers.{layer}"] = spec
    setting = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=asked["max_model_len"]),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        cache_config=SimpleNamespace(
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=None,
            mamba_cache_mode="none",
            get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        kv_transfer_config=None,
        max_in_flight_tokens=asked["in_flight"],
    )
    counted: dict[str, list[int]] = {}
    for spec in specs.values():
        name = type(spec).__name__
        size = spec.page_size_bytes // block
        if isinstance(spec, MambaSpec):
            size = spec.real_page_size_bytes
        counted.setdefault(name, [0, size])[0] += 1
    groups = utils.get_kv_cache_groups(setting, specs)
    made = utils.get_kv_cache_config_from_groups(setting, groups, asked["pool_bytes"])
    concurrency = utils.get_max_concurrency_for_kv_cache_config(setting, made)
    setting.model_config.max_model_len = asked["most"]
    return {
        "groups": [[name, *each] for name, each in counted.items()],
        "tables": len(groups),
        "block_bytes": utils._pool_bytes_per_block(setting, groups),
        "blocks": made.num_blocks,
        "longest": utils._estimate_max_model_len_from_groups(setting, groups, asked["pool_bytes"]),
        "concurrency": concurrency,
    }


def main() -> None:
    """Answer for each model."""
    found: list[Any] = []
    for asked in json.load(sys.stdin):
        try:
            found.append(compute(asked))
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
