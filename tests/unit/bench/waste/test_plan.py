"""What is typed, and what it comes to: streams, the size of the pool, the policies of a stream."""

import pytest

from bench.waste.plan import pool_slots, read_streams
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


def test_labels_tell_streams_apart() -> None:
    specs = ["alpaca-fit", "sharegpt-fit", "alpaca-fit"]
    streams = read_streams(specs, [], requests=3, seed=0)
    assert [described.label for _, described in streams] == [
        "alpaca-fit (1)",
        "sharegpt-fit",
        "alpaca-fit (2)",
    ]
