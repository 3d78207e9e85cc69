"""How a record describes a stream: every request counted, or those that generate something."""

import pytest

from bench.workloads.record import served_stream, stream_record
from bench.workloads.source import concatenated
from helpers.streams import stream

STREAM = stream([4, 900, 6], [2, 0, 4])


def test_a_stream_is_described_with_all_its_requests() -> None:
    assert stream_record(STREAM).model_dump() == {
        "name": "s",
        "source": "a test",
        "requests": 3,
        "mean_prompt_tokens": 910 / 3,
        "mean_output_tokens": 2,
    }


def test_a_served_stream_is_described_without_the_requests_that_generate_nothing() -> None:
    described = served_stream(STREAM, label="mine")
    assert described.model_dump() == {
        "label": "mine",
        "source": "a test",
        "requests": 2,
        "without_output": 1,
        "mean_prompt_tokens": 5,
        "mean_output_tokens": 3,
        "longest_request": 10,
        "timed": False,
        "prefixes": False,
    }
    halves = [STREAM.between(0, 2), STREAM.between(2, 3)]
    assert served_stream(concatenated(halves, name="s", source="a test"), label="mine") == described
    with pytest.raises(ValueError, match="mine: no request generates a token"):
        served_stream(stream([4], [0]), label="mine")
