"""What a token of a model takes in the cache, from its shape, its `config.json` or its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from reference.errors import BadInput

CACHE_DTYPES: Final = {
    "fp32": Fraction(4),
    "bf16": Fraction(2),
    "fp16": Fraction(2),
    "fp8": Fraction(1),
    "int8": Fraction(1),
    "int4": Fraction(1, 2),
    "nvfp4": Fraction(9, 16),
}
"""Bytes of an element of the cache. nvfp4 has a scale of a byte for every 16 elements, in here."""

SCALE_BYTES: Final = {"int8": 4, "int4": 4}
"""Bytes of the scale of each token's keys, and of its values, in a head. fp8 has one a tensor."""


_Number = Callable[..., int]
"""Reads the first of the keys of a configuration that is there."""

WIDEST_HEAD: Final = 512
"""Elements of the largest attention head in use; MLA's latent has 576."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that keep the same for each token."""

    layers: int
    kv_heads: int
    """Heads that are kept; 1 where a latent stands for all of them."""
    elements: int
    """Elements of a head and token: keys and values, or the latent, which is both."""
    window: int | None = None
    """Latest tokens that are kept; None: all."""
    latent: bool = False
    """Whether it is MLA's latent, which tensor parallelism does not divide."""
    state_bytes: int = 0
    """Bytes of a state that a sequence has in each layer instead, however long it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model, as far as its cache and its steps go."""

    name: str
    groups: tuple[LayerGroup, ...]
    parameters: float | None = None
    active: float | None = None
    """Parameters, and those that a token passes; None: unknown, or all."""
    weight_bytes: float | None = None
    """Bytes of the weights; None: two for each parameter."""
    element_bytes: Fraction = Fraction(2)
    """Bytes of an element of the cache."""
    scale_bytes: int = 0
    """Bytes of the scale of a token's keys, and of its values, in a head."""
    ranks: int = 1
    """GPUs that share each layer (tensor parallelism); bytes are of one of them. Where they are
    more than the heads that are kept, each head is on several."""
    stages: int = 1
    """Groups of GPUs that have their share of the layers (pipeline parallelism); bytes are of the
    one with most."""

    @property
    def weights(self) -> float | None:
        """Bytes of the weights on one GPU."""
        whole = self.weight_bytes
        if whole is None and self.parameters is not None:
            whole = 2 * self.parameters
        return None if whole is None else whole / self.ranks / self.stages

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token on one GPU, in all layers, rounded up to whole ones."""
        return -int(-self._bytes(self.groups) // 1)

    @property
    def lasting_bytes_per_token(self) -> int:
        """The same without the layers that keep a window only; of all where there is no other."""
        lasting = [group for group in self.groups if group.window is None] or self.groups
        return -int(-self._bytes(lasting) // 1)

    @property
    def uniform_bytes_per_token(self) -> int:
        """The same as if every layer kept everything, those with a state as well."""
        first = self.groups[0]
        alike = [
            replace(first, layers=group.layers) if group.state_bytes else group
            for group in self.groups
        ]
        return -int(-self._bytes(alike) // 1)

    def layers_of(self, group: LayerGroup) -> int:
        """Layers of a group that a stage has, those of the one that has most."""
        return -(-group.layers // self.stages)

    def state_of(self, group: LayerGroup) -> int:
        """Bytes of a sequence's state in a layer of a group, on one GPU."""
        return -(-group.state_bytes // self.ranks)

    def layer_bytes(self, group: LayerGroup) -> Fraction:
        """Bytes of a token in a layer of a group, on one GPU."""
        heads = group.kv_heads if group.latent else -(-group.kv_heads // self.ranks)
        scales = (1 if group.latent else 2) * self.scale_bytes
        return heads * (group.elements * self.element_bytes + scales)

    def group_bytes(self, group: LayerGroup) -> int:
        """Bytes of a token in the layers of a group, on one GPU."""
        return -int(-self._bytes([group]) // 1)

    def _bytes(self, groups: Sequence[LayerGroup]) -> Fraction:
        return sum(
            (self.layers_of(group) * self.layer_bytes(group) for group in groups), Fraction(0)
        )


def _plain(layers: int, kv_heads: int, head_dim: int, window: int | None = None) -> LayerGroup:
    return LayerGroup(layers=layers, kv_heads=kv_heads, elements=2 * head_dim, window=window)


def _state(layers: int, state_bytes: int) -> LayerGroup:
    return LayerGroup(layers=layers, kv_heads=0, elements=0, state_bytes=state_bytes)


def _latent(layers: int, width: int) -> LayerGroup:
    return LayerGroup(layers=layers, kv_heads=1, elements=width, latent=True)


def _known(
    name: str,
    parameters: float,
    *groups: LayerGroup,
    active: float | None = None,
    weight_bytes: float | None = None,
) -> Model:
    return Model(
        name=name, groups=groups, parameters=parameters, active=active, weight_bytes=weight_bytes
    )


MODELS: Final = {
    model.name.lower(): model
    for model in (
        _known("OPT-13B", 12.85e9, _plain(40, 40, 128)),
        _known("Llama-2-7B", 6.74e9, _plain(32, 32, 128)),
        _known("Llama-2-13B", 13.02e9, _plain(40, 40, 128)),
        _known("Llama-3.1-8B", 8.03e9, _plain(32, 8, 128)),
        _known("Llama-3.1-70B", 70.6e9, _plain(80, 8, 128)),
        _known("Llama-3.1-405B", 405.9e9, _plain(126, 8, 128)),
        _known("Mistral-7B", 7.25e9, _plain(32, 8, 128)),
        _known("Mixtral-8x7B", 46.7e9, _plain(32, 8, 128), active=12.9e9),
        _known("Qwen2.5-7B", 7.62e9, _plain(28, 4, 128)),
        _known("Qwen2.5-32B", 32.8e9, _plain(64, 8, 128)),
        _known("Qwen2.5-72B", 72.7e9, _plain(80, 8, 128)),
        _known("Qwen3-8B", 8.19e9, _plain(36, 8, 128)),
        _known("Qwen3-32B", 32.8e9, _plain(64, 8, 128)),
        _known("Qwen3-30B-A3B", 30.5e9, _plain(48, 4, 128), active=3.3e9),
        _known("Gemma-2-9B", 9.24e9, _plain(21, 8, 256), _plain(21, 8, 256, 4096)),
        _known("Gemma-3-27B", 27.0e9, _plain(10, 16, 128), _plain(52, 16, 128, 1024)),
        _known(
            "gpt-oss-20b",
            20.9e9,
            _plain(12, 8, 64),
            _plain(12, 8, 64, 128),
            active=3.6e9,
            weight_bytes=13.8e9,
        ),
        _known(
            "gpt-oss-120b",
            116.8e9,
            _plain(18, 8, 64),
            _plain(18, 8, 64, 128),
            active=5.1e9,
            weight_bytes=65e9,
        ),
        _known("DeepSeek-V2-Lite", 15.7e9, _latent(27, 576), active=2.4e9),
        _known("DeepSeek-V3", 671e9, _latent(61, 576), active=37e9, weight_bytes=689e9),
    )
}
"""Models by name, in small letters; sizes as in their public configurations."""


def read_model(text: str, *, cache_dtype: str = "auto", ranks: int = 1, stages: int = 1) -> Model:
    """Read --model: a name, a `config.json` or its folder, or a shape.

    A shape is layers x KV heads x head size [x bytes per element], as 32x8x128; of an MLA model
    layers x mla x latent, as 61xmlax576. A single head wider than any model's is a latent, too.
    Raises BadInput.
    """
    model = _shape(text) or _named(text)
    if cache_dtype != "auto":
        if cache_dtype not in CACHE_DTYPES:
            raise BadInput(
                f"--cache-dtype {cache_dtype}: choose auto or one of {', '.join(CACHE_DTYPES)}"
            )
        model = replace(
            model,
            element_bytes=CACHE_DTYPES[cache_dtype],
            scale_bytes=SCALE_BYTES.get(cache_dtype, 0),
        )
    return replace(model, ranks=ranks, stages=stages)


def _shape(text: str) -> Model | None:
    shape = re.fullmatch(r"(\d+)x(\d+|mla)x(\d+)(?:x(\d+(?:\.\d+)?|\.\d+))?", text.lower())
    if shape is None:
        return None
    layers, heads, width, element = shape.groups(default="2")
    size = Fraction(element)
    if "0" in (layers, heads, width) or not size:
        raise _no_model(text)
    if heads == "mla" or (heads == "1" and int(width) > WIDEST_HEAD):
        group = _latent(int(layers), int(width))
    else:
        group = _plain(int(layers), int(heads), int(width))
    return Model(name=text, groups=(group,), element_bytes=size)


def _no_model(text: str) -> BadInput:
    near = get_close_matches(text.lower(), MODELS, n=1, cutoff=0.5)
    meant = f"did you mean {MODELS[near[0]].name}? " if near else ""
    return BadInput(
        f"--model {text}: {meant}give a config.json, layers x KV heads x head size, as 32x8x128, "
        f"and x bytes per element where it is not 2, layers x mla x latent, as 61xmlax576, or one "
        f"of {', '.join(model.name for model in MODELS.values())}"
    )


def _named(text: str) -> Model:
    if (known := MODELS.get(text.rpartition("/")[2].lower())) is not None:
        return known
    path = Path(text)
    try:
        if path.is_dir():
            path = path / "config.json"
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _no_model(text) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"--model {text}: {error}; name a model's config.json") from None
    if not isinstance(given, dict):
        raise BadInput(f"--model {text}: no JSON object; name a model's config.json")
    return model_of_config(given, name=text)


def model_of_config(given: dict[str, Any], *, name: str) -> Model:
    """Read the shape of a model's `config.json`; of one with several parts, that of its text.

    Raises BadInput: a number that the cache needs is missing, or is none.
    """
    config = given.get("text_config", given)
    if not isinstance(config, dict):
        raise BadInput(f"--model {name}: text_config is no object; name a model's config.json")

    def number(*names: str, default: int | None = None) -> int:
        for key in names:
            value = config.get(key)
            if value is None:
                continue
            if type(value) is not int or not 0 < value < 2**40:
                raise BadInput(f"--model {name}: {key} = {value!r:.60}; give a whole number")
            return value
        if default is None:
            raise BadInput(f"--model {name}: no {names[0]} in it; name a model's config.json")
        return default

    layers = number("num_hidden_layers", "n_layer", "num_layers")
    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head", "num_heads", default=1)
    if config.get("kv_lora_rank") is not None:
        width = number("kv_lora_rank") + number("qk_rope_head_dim", default=64)
        groups: tuple[LayerGroup, ...] = (_latent(layers, width),)
    else:
        default = 1 if config.get("multi_query") else heads
        kv_heads = default
        if not (config.get("multi_query") and not config.get("new_decoder_architecture")):
            kv_heads = number("num_key_value_heads", "num_kv_heads", "n_head_kv", default=default)
        head_dim = number("head_dim", "attention_head_dim", default=max(1, hidden // heads))
        groups = _by_window(config, name, layers, kv_heads, head_dim, number)
    parameters, active = _parameters(config, hidden, layers, heads, groups[0], number)
    return Model(name=name, groups=groups, parameters=parameters, active=active)


def _by_window(
    config: dict[str, Any], name: str, layers: int, kv_heads: int, head_dim: int, number: _Number
) -> tuple[LayerGroup, ...]:
    """Part the layers by what they keep."""
    window = number("sliding_window") if config.get("sliding_window") is not None else None
    kinds = _kinds(config, layers, window, number)
    # Some layers read the keys and values of others: the last ones, or all but each N-th.
    if config.get("num_kv_shared_layers"):
        kinds = kinds[: layers - number("num_kv_shared_layers")]
    if config.get("use_cla"):
        kinds = kinds[:: number("cla_share_factor", default=2)]
    counts = {kind: kinds.count(kind) for kind in ("full", "window", "state")}
    groups = []
    if counts["full"]:
        groups.append(_plain(counts["full"], kv_heads, head_dim))
    if counts["window"]:
        groups.append(_plain(counts["window"], kv_heads, head_dim, window))
    if not groups:
        raise BadInput(f"--model {name}: no layer of it keeps keys and values; name another model")
    if counts["state"] and (state := _state_bytes(config, number)):
        groups.append(_state(counts["state"], state))
    return tuple(groups)


_KINDS: Final = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "window",
    "linear_attention": "state",
    "mamba": "state",
}


def _kinds(config: dict[str, Any], layers: int, window: int | None, number: _Number) -> list[str]:
    """What each layer keeps: everything, a window or a state."""
    said = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(said, list):
        kinds = [_KINDS.get(str(kind), "none") for kind in said[:layers]]
        return [kind for kind in kinds if window is not None or kind != "window"]
    if config.get("full_attention_interval"):
        every = number("full_attention_interval")
        return ["full" if (at + 1) % every == 0 else "state" for at in range(layers)]
    if config.get("attn_layer_period"):
        every, first = number("attn_layer_period"), config.get("attn_layer_offset", 0)
        return ["full" if at % every == first else "state" for at in range(layers)]
    if window is None or config.get("use_sliding_window") is False:
        return ["full"] * layers
    if (pattern := config.get("sliding_window_pattern")) is not None:
        every = number("sliding_window_pattern") if pattern else layers + 1
    elif config.get("model_type") == "gemma2":
        every = 2
    else:
        return ["window"] * layers
    return ["window" if (at + 1) % every else "full" for at in range(layers)]


def _state_bytes(config: dict[str, Any], number: _Number) -> int:
    """Bytes of a sequence's state in a layer, in 16 bits; 0 where its shape is not known."""
    if config.get("linear_num_value_heads"):  # gated delta net
        keys = number("linear_num_key_heads") * number("linear_key_head_dim")
        heads, width = number("linear_num_value_heads"), number("linear_value_head_dim")
        conv = (2 * keys + heads * width) * (number("linear_conv_kernel_dim", default=4) - 1)
        return 2 * (conv + heads * width * number("linear_key_head_dim"))
    if not config.get("mamba_d_state"):
        return 0
    inner = number("mamba_expand", default=2) * number("hidden_size")
    state, kernel = number("mamba_d_state"), number("mamba_d_conv", default=4)
    # Mamba 2 has heads, and convolves its groups as well.
    more = 2 * number("mamba_n_groups", default=1) * state if config.get("mamba_n_heads") else 0
    return 2 * ((inner + more) * (kernel - 1) + inner * state)


def _parameters(
    config: dict[str, Any], hidden: int, layers: int, heads: int, group: LayerGroup, number: _Number
) -> tuple[float, float]:
    """Parameters in all, and those that a token passes: gated MLPs, experts where there are."""
    vocabulary = number("vocab_size", default=1)
    inner = number("intermediate_size", "n_inner", default=4 * hidden)
    head_dim = group.elements // 2 if not group.latent else number("v_head_dim", default=128)
    query = heads * head_dim * hidden
    kept = group.kv_heads * group.elements * hidden
    experts = number("n_routed_experts", "num_local_experts", "num_experts", default=1)
    taken = number("num_experts_per_tok", "experts_per_token", default=1) if experts > 1 else 1
    expert = number("moe_intermediate_size", default=inner) if experts > 1 else inner
    layer = 2 * query + kept
    embedding = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    whole = embedding + layers * (layer + 3 * hidden * expert * experts)
    active = embedding + layers * (layer + 3 * hidden * expert * taken)
    return float(whole), float(active)
