"""Block tables of models, held to what vLLM's own functions compute of public configurations."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.waste.capacity import capacity, capacity_words
from bench.waste.models import Model, model_of_config, read_model
from bench.waste.tables import tables_of
from helpers import profiles
from scripts.hold_models import STORED, Ours, ask_vllm, described, table
from subjects.environments import engine_python
from subjects.loading import SubjectError

CONFIGS = {each["name"]: each for each in described()}
VLLM = dict(zip(CONFIGS, json.loads(STORED.read_text()), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_blocks_longest_request_and_concurrency_are_those_of_vllm(name: str) -> None:
    assert Ours.of(CONFIGS[name]).figures() == VLLM[name]


def test_the_figures_are_those_of_the_vllm_that_is_there() -> None:
    try:
        engine_python("vllm")
    except SubjectError as missing:
        pytest.skip(str(missing))
    if profiles.scale() <= 1:
        pytest.skip("importing vLLM takes ten seconds: make test-long does it")
    assert ask_vllm() == list(VLLM.values())


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[4] / "docs" / "memory-waste.md").read_text()
    assert table(list(VLLM.values())) in page


def hybrid(**more: Any) -> Model:
    """Two layers that keep all, and others; 64 bytes a token and layer."""
    shape = {"num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 8}
    return model_of_config(shape | {"num_key_value_heads": 2} | more, name="h")


def test_layers_are_parted_into_tables_of_equally_many() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"] * 2
    model = hybrid(layer_types=kinds, sliding_window=20)
    tables = tables_of(model, block_size=4)
    full, sliding = tables.tables
    assert (full.count, sliding.count, tables.block_bytes) == (1, 2, 2 * 4 * 64)
    # 19 tokens behind the window and the one that is computed: five blocks, and one more.
    assert [full.blocks(100), sliding.blocks(100)] == [25, 2 * 6]
    assert sliding.blocks(100, in_flight=50) == 2 * 19
    assert tables.blocks(8) == 2 + 2 * 3
    assert tables.waste(full) == tables.waste(sliding) == 0
    # A third of the layers too few for a table of their own is left empty: 3 and 4 make 4 and 4.
    near = hybrid(num_hidden_layers=7, layer_types=[*kinds, "full_attention"], sliding_window=20)
    full, sliding = tables_of(near, block_size=4).tables
    assert (full.count, sliding.count) == (1, 1)
    assert tables_of(near, block_size=4).waste(full) == pytest.approx(1 / 4)


def test_a_state_takes_a_block_however_long_the_request() -> None:
    model = hybrid(
        layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
    )
    state = 2 * ((2 * 8 + 16) * 3 + 16 * 8)
    tables = tables_of(model, block_size=4)
    full, states = tables.tables
    # 448 bytes do not fit into a block of 4 tokens and 256 bytes, so all have 8.
    assert full.block_size == 8
    assert (states.count, states.blocks(5), states.blocks(5000)) == (2, 2, 2)
    assert tables.waste(states) == pytest.approx(1 - state / 512)
    found = capacity(model, 100 * tables.block_bytes, block_size=4)
    assert found.longest_request == 98 * 8
    assert f"none in 4 layers, but {4 * state:,} a request" in capacity_words(found)
    assert "the 4 layers with a state leave 12% of theirs empty" in capacity_words(found)


def test_a_latent_is_charged_once_and_on_every_gpu() -> None:
    tables = tables_of(read_model("DeepSeek-V3", ranks=8), block_size=64)
    assert tables.block_bytes == 61 * 576 * 2 * 64
