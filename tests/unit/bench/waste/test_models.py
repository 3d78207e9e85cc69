"""What a token takes, by shape, name or config.json, and what fits on a GPU beside the weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.waste.gpus import cache_bytes, read_gpu
from bench.waste.models import MODELS, model_of_config, read_model
from reference.errors import BadInput

LLAMA = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("32x8x128", 131_072),
        ("1x1x32x1", 64),
        ("61xmlax576", 70_272),  # W5: a latent is keys and values at once
        ("61x1x576", 70_272),
        ("61x1x576x1", 35_136),
        ("48x1x128", 24_576),  # one head of a usual size is multi-query attention
        ("32x8x128x0.5", 32_768),
        ("32x8x128x.5625", 36_864),
        ("OPT-13B", 819_200),
        ("meta-llama/Llama-3.1-8B", 131_072),
        ("deepseek-v3", 70_272),
        ("Gemma-3-27B", 2 * 62 * 16 * 128 * 2),
    ],
)
def test_a_slot_is_as_large_as_the_model_says(model: str, size: int) -> None:
    assert read_model(model).bytes_per_token == size


@pytest.mark.parametrize("model", ["32x8", "32x0x128", "axbxc", "32x8x128x", "32x8x128x0"])
def test_a_model_that_is_none_is_refused(model: str) -> None:
    with pytest.raises(BadInput, match=f"--model {model}: .*layers x KV heads x head size"):
        read_model(model)


def test_a_name_that_is_nearly_one_is_answered_with_it() -> None:
    with pytest.raises(BadInput, match=r"did you mean Llama-3.1-8B\?"):
        read_model("Llama-3.1-8")


def test_the_cache_has_a_type_of_its_own_and_ranks_share_heads_but_no_latent() -> None:
    assert read_model("Llama-3.1-8B", cache_dtype="fp8").bytes_per_token == 65_536
    assert read_model("Llama-3.1-8B", cache_dtype="nvfp4").bytes_per_token == 36_864
    assert read_model("Llama-3.1-8B", ranks=4).bytes_per_token == 32_768
    # Eight heads on sixteen GPUs: each head is there twice.
    assert read_model("Llama-3.1-8B", ranks=16).bytes_per_token == 16_384
    assert read_model("DeepSeek-V3", ranks=8).bytes_per_token == 70_272
    with pytest.raises(BadInput, match="--cache-dtype fp9: choose auto or one of fp32"):
        read_model("Llama-3.1-8B", cache_dtype="fp9")


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 131_072),
        ({"num_key_value_heads": None}, 4 * 131_072),
        ({"multi_query": True, "num_key_value_heads": None}, 131_072 // 8),
        ({"head_dim": 64}, 65_536),
        ({"num_kv_shared_layers": 12}, 20 * 4096),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 32 * 576 * 2),
    ],
)
def test_a_config_says_what_a_token_takes(changes: dict[str, Any], size: int) -> None:
    assert model_of_config(LLAMA | changes, name="c").bytes_per_token == size
    assert model_of_config({"text_config": LLAMA | changes}, name="c").bytes_per_token == size


@pytest.mark.parametrize(
    ("changes", "full", "windowed"),
    [
        ({"sliding_window": 4096}, 0, 32),
        ({"sliding_window": 4096, "use_sliding_window": False}, 32, 0),
        ({"sliding_window": None}, 32, 0),
        ({"sliding_window": 1024, "sliding_window_pattern": 6}, 5, 27),
        ({"sliding_window": 4096, "model_type": "gemma2"}, 16, 16),
        (
            {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16},
            16,
            16,
        ),
        # Layers with a state of their own keep nothing for a token.
        ({"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8}, 8, 0),
    ],
)
def test_layers_are_parted_by_what_they_keep(
    changes: dict[str, Any], full: int, windowed: int
) -> None:
    model = model_of_config(LLAMA | changes, name="c")
    counted = {False: 0, True: 0}
    for group in model.groups:
        counted[group.window is not None] += group.layers
    assert counted == {False: full, True: windowed}


def test_stages_have_their_share_of_each_group_and_narrow_types_their_scales() -> None:
    whole = read_model("Gemma-3-27B")
    part = read_model("Gemma-3-27B", stages=4)
    # 10 layers that keep all and 52 that keep a window: at most 3 and 13 of them.
    assert part.bytes_per_token == 16 * whole.bytes_per_token // 62
    assert part.weights == pytest.approx(whole.weights / 4)
    # A half byte for each element, and four bytes for a token's keys, and for its values.
    int4 = read_model("Llama-3.1-8B", cache_dtype="int4")
    assert int4.bytes_per_token == 32 * 8 * (2 * 64 + 2 * 4)
    assert read_model("DeepSeek-V3", cache_dtype="int8").bytes_per_token == 61 * (576 + 4)


def test_parameters_of_a_config_are_those_of_the_model() -> None:
    model = model_of_config(LLAMA, name="c")
    assert model.parameters == pytest.approx(MODELS["llama-3.1-8b"].parameters, rel=0.005)
    experts = {"num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32_000}
    mixture = model_of_config(LLAMA | experts, name="c")
    assert mixture.parameters == pytest.approx(46.7e9, rel=0.005)
    assert mixture.active == pytest.approx(12.9e9, rel=0.005)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[1]", "no JSON object"),
        ("{", "name a model's config.json"),
        ("{}", "no num_hidden_layers in it"),
        (json.dumps(LLAMA | {"num_hidden_layers": "32"}), "num_hidden_layers = '32'"),
        (json.dumps(LLAMA | {"num_hidden_layers": -1}), "num_hidden_layers = -1"),
        (json.dumps({"text_config": 3}), "text_config is no object"),
        (json.dumps(LLAMA | {"layer_types": ["linear_attention"] * 32}), "no layer of it keeps"),
    ],
)
def test_a_config_that_is_none_is_refused(given: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(given)
    with pytest.raises(BadInput, match=said):
        read_model(str(tmp_path))


def test_what_fits_beside_the_weights_is_what_an_engine_found() -> None:
    """vLLM 0.19 with Llama-3.1-8B on an RTX 4090: 2,588 blocks of 16 at a utilization of 0.9."""
    model, gpu = read_model("Llama-3.1-8B"), read_gpu("RTX-4090")
    left = cache_bytes(25_250_627_584, 0.9, model, said="--gpu")
    assert left // (16 * model.bytes_per_token) == pytest.approx(2588, rel=0.005)
    assert gpu.memory_bytes == pytest.approx(25_250_627_584, rel=0.001)
    with pytest.raises(BadInput, match=r"--gpu: 0.9 of 22.5 GiB, less 131.5 GiB of weights"):
        cache_bytes(read_gpu("L4").memory_bytes, 0.9, read_model("Llama-3.1-70B"), said="--gpu")
    with pytest.raises(BadInput, match="a shape does not say what the weights take"):
        cache_bytes(10**11, 0.9, read_model("32x8x128"), said="--memory 100GB")


def test_a_gpu_is_named_with_its_memory_where_there_are_two() -> None:
    assert read_gpu("h100").name == "H100-80GB"
    with pytest.raises(BadInput, match="--gpu A100: did you mean A100"):
        read_gpu("A100")
