"""Errors say which value is at fault and what to do about it, and survive a process boundary."""

import pickle

import numpy as np
import pytest

from paged.errors import (
    BadSize,
    CopyPending,
    DoubleFree,
    DuplicateSequence,
    OutOfBlocks,
    PagedCacheError,
    UnknownSequence,
    UseAfterFree,
    checked_size,
)


@pytest.mark.parametrize(
    ("error", "value", "remedy"),
    [
        (OutOfBlocks(3, 1), "needed: 3, available: 1", "free or preempt a sequence"),
        (UnknownSequence("request-7"), "'request-7'", "admit it first"),
        (DuplicateSequence("request-7"), "'request-7'", "pick another name"),
        (DoubleFree(5), "block 5", "release it once"),
        (UseAfterFree(5), "block 5", "allocate a block instead"),
        (CopyPending(5), "block 5", "call take_copies()"),
    ],
)
def test_message_names_the_value_and_the_remedy(
    error: PagedCacheError, value: str, remedy: str
) -> None:
    assert isinstance(error, PagedCacheError)
    assert value in str(error)
    assert remedy in str(error)


@pytest.mark.parametrize(
    "error", [OutOfBlocks(3, 1), UnknownSequence(("a", 1)), DoubleFree(5), BadSize("width = 0")]
)
def test_error_comes_back_whole_from_another_process(error: PagedCacheError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_errors_are_what_a_caller_handles() -> None:
    error = OutOfBlocks(3, 1)
    assert (error.needed, error.available) == (3, 1)
    assert issubclass(BadSize, ValueError)


@pytest.mark.parametrize("value", [1, 8, np.int32(8)])
def test_good_size_comes_back_as_an_int(value: int) -> None:
    checked = checked_size("block_size", value, at_least=1, at_most=8)
    assert type(checked) is int
    assert checked == value


@pytest.mark.parametrize("value", [0, -1, 9, 1.0, "1", None, True])
def test_bad_size_is_refused_with_its_name_its_value_and_the_range(value: object) -> None:
    with pytest.raises(BadSize) as error:
        checked_size("block_size", value, at_least=1, at_most=8)  # type: ignore[arg-type]
    assert f"block_size = {value!r}" in str(error.value)
    assert "1 to 8" in str(error.value)
