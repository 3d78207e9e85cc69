"""How a record describes a stream: every request counted, or those that generate something."""

from pathlib import Path

import pytest

from bench.workloads.record import served_stream, stream_record
from bench.workloads.source import concatenated
from bench.workloads.spec import parse_source
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
        "too_long": 0,
        "ignored": [],
        "tenants": [],
    }
    halves = [STREAM.between(0, 2), STREAM.between(2, 3)]
    assert served_stream(concatenated(halves, name="s", source="a test"), label="mine") == described
    with pytest.raises(ValueError, match="mine: no request generates a token"):
        served_stream(stream([4], [0]), label="mine")


def test_what_a_trace_leaves_out_is_counted(tmp_path: Path) -> None:
    """W6: rows without output, rows that are too long, and columns that nobody reads."""
    file = tmp_path / "t.csv"
    file.write_text("input_len,output_len,tenant,region\n5,3,a,x\n6,0,a,x\n900,3,b,x\n7,1,b,x\n")
    described = served_stream(parse_source(f"trace:{file}:max_len=100"), label="t")
    assert (described.requests, described.without_output, described.too_long) == (2, 1, 1)
    assert described.ignored == ["region"]
    assert described.tenants == ["a", "b"]
