"""On types that the stock interpreter computes right, the corrections change no bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import profiles

KERNELS = 80
DIGEST_DIGITS = 64


@pytest.fixture(scope="module")
def outcomes(
    run_script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    folder: Path = tmp_path_factory.mktemp("kernels")
    count = max(KERNELS, round(KERNELS * profiles.scale()))
    return run_script("differential.py", str(folder), "0", str(count))


def test_random_kernels_and_attention_give_the_bits_and_the_errors_of_stock(
    outcomes: dict[str, list[str]],
) -> None:
    different = {name: pair for name, pair in outcomes.items() if pair[0] != pair[1]}
    assert not different


def test_nearly_all_of_the_random_kernels_ran_to_their_end(outcomes: dict[str, list[str]]) -> None:
    ran = [name for name, (stock, _) in outcomes.items() if len(stock) == DIGEST_DIGITS]
    assert len(ran) >= 0.9 * len(outcomes)
