"""What is typed, and what it comes to: streams, the size of the pool, the policies of a stream."""

import pytest

from bench.waste.plan import model_bytes, pool_slots, read_streams
from reference.errors import BadInput


@pytest.mark.parametrize(
    ("pool", "bytes_per_token", "slots"),
    [("12GiB", 819_200, 15_728), ("1GB", 1000, 10**6), ("0.5 gib", 131_072, 4096), ("8B", 8, 1)],
)
def test_the_pool_is_as_large_as_it_is_said(pool: str, bytes_per_token: int, slots: int) -> None:
    assert pool_slots(pool, bytes_per_token) == slots


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ("12", "give a number and one of B, kB"),
        ("12parsec", "give a number"),
        ("-1GiB", "give a number"),
        ("7B", "less than one token, which takes 8 bytes"),
    ],
)
def test_a_pool_that_is_none_is_refused(pool: str, said: str) -> None:
    with pytest.raises(BadInput, match=f"--pool {pool}: {said}"):
        pool_slots(pool, 8)


@pytest.mark.parametrize(("model", "size"), [("32x8x128", 131_072), ("1x1x32x1", 64)])
def test_a_slot_is_as_large_as_the_models_shape_says(model: str, size: int) -> None:
    assert model_bytes(model) == size


@pytest.mark.parametrize("model", ["32x8", "32x0x128", "axbxc", "32x8x128x"])
def test_a_shape_that_is_none_is_refused(model: str) -> None:
    with pytest.raises(BadInput, match=f"--model {model}: give layers x KV heads x head size"):
        model_bytes(model)


def test_labels_tell_streams_apart() -> None:
    specs = ["alpaca-fit", "sharegpt-fit", "alpaca-fit"]
    streams = read_streams(specs, [], requests=3, seed=0)
    assert [described.label for _, described in streams] == [
        "alpaca-fit (1)",
        "sharegpt-fit",
        "alpaca-fit (2)",
    ]
