"""The 30 %-free question: why a request finds no place, and what paging would change."""

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.diagnose.holes import holes_of
from bench.diagnose.observed import FreeMap
from reference.allocator.arenas import ARENAS


def answered(holes: list[int], *, slots: int = 1000, wanted: int | None = None):
    free = FreeMap(
        time_s=math.nan, slots=slots, holes=np.array(holes, dtype=np.int64), wanted=wanted
    )
    return holes_of(free)


def test_thirty_percent_free_and_still_refused():
    # As an allocator comes to it: ten pieces of 100, of which every third is given back.
    arena = ARENAS["first-fit"](1000)
    addresses = [arena.allocate(100) for _ in range(10)]
    for address in addresses[1::3]:
        arena.free(address)
    assert arena.allocate(150) is None
    answer = answered([length for _, length in arena.holes()], wanted=150)
    assert answer.fragmented
    assert (answer.free, answer.holes, answer.largest) == (300, 3, 100)
    assert (answer.fit, answer.fit_paged) == (0, 1)
    assert "30% of the pool (300 of 1,000 slots) is free in 3 holes" in answer.says
    assert "it holds 0, and in blocks of 16 it would hold 1" in answer.says


@pytest.mark.parametrize(
    ("holes", "wanted", "fragmented", "says"),
    [
        ([], 10, False, "nothing"),
        ([300], 100, False, "it holds 3"),
        ([300], 400, False, "more than is free"),
        ([100, 200], None, False, "paged one of 300"),
        ([100, 200], 201, True, "it holds 0"),
        ([16] * 10, 17, True, "would hold 5"),
    ],
)
def test_what_is_fragmentation_and_what_is_not(holes, wanted, fragmented, says):
    answer = answered(holes, wanted=wanted)
    assert answer.fragmented is fragmented
    assert says in answer.says


def test_a_free_list_alone_is_diagnosed(tmp_path):
    lists = [
        {
            "slots": 15728,
            "free": [[0, 900], [2000, 1800], [6000, 1500], [9000, 500]],
            "wanted": 2048,
        },
        {"slots": 15728, "free": [[0, 3000]], "wanted": 2048},
    ]
    file = tmp_path / "free.jsonl"
    file.write_text("\n".join(map(json.dumps, lists)))
    result = CliRunner().invoke(app, ["diagnose", str(file)])
    assert result.exit_code == 1, result.output
    said = " ".join(result.output.split())
    assert "fragmentation:" in said
    assert (
        "30% of the pool (4,700 of 15,728 slots) is free in 4 holes, the largest of 1,800" in said
    )
    assert "for 2,048 slots it holds 0, and in blocks of 16 it would hold 2" in said
