"""What a pool holds of a model, by hand."""

import pytest

from bench.waste.capacity import capacity, capacity_words
from bench.waste.models import read_model


def test_layers_that_all_keep_everything_hold_what_the_bytes_say() -> None:
    found = capacity(read_model("Llama-3.1-8B"), 40_000 * 131_072, block_size=16)
    assert [group.bytes_per_token for group in found.groups] == [131_072]
    assert found.longest_request == 40_000
    assert found.concurrency == {2_048: 19, 8_192: 4, 32_768: 1}
    assert set(found.behind_windows.values()) == {0.0}
    assert "windows" not in capacity_words(found)


def test_a_window_is_charged_as_far_as_it_goes() -> None:
    # 12 layers that keep all and 12 that keep 128 tokens, 2,048 bytes a token and layer.
    model = read_model("gpt-oss-20b")
    assert model.bytes_per_token == 24 * 2_048
    found = capacity(model, 10**9, block_size=16)
    assert [(group.layers, group.window) for group in found.groups] == [(12, None), (12, 128)]
    window = 12 * 2_048 * 144  # 128 and a block less one, in whole blocks
    assert found.concurrency[8_192] == 10**9 // (12 * 2_048 * 8_192 + window)
    assert found.longest_request == (10**9 - window) // (12 * 2_048) // 16 * 16
    share = 1 - (12 * 2_048 * 8_192 + window) / (24 * 2_048 * 8_192)
    assert found.behind_windows[8_192] == pytest.approx(share)
    assert "50% of a request of 32,768 tokens" in capacity_words(found)
