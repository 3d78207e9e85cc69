"""The picture: what the maps show is what the accounting counts, and a reader can tell it apart."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from bench.command.options import check_chart
from bench.waste import pool_map as maps
from bench.waste.contiguous import serve_contiguous
from bench.waste.plot import COLOURS, TOKEN_SHADES, coloured, draw
from bench.waste.policies import parse_policy
from bench.waste.pool_map import (
    FREE,
    IDLE,
    INTERNAL,
    NUM_CLASSES,
    RESERVE,
    ROUNDUP,
    SHARED,
    TOKEN,
    PoolMap,
    pool_map,
)
from bench.waste.simulate import simulate
from helpers import waste_records
from helpers.waste_records import simulated, waste_record
from reference.errors import BadInput

PLAIN = "alpaca-fit:requests=40"
PREFIXED = "alpaca-fit:requests=40,system=40,prompts=3"
CASES = [
    ("max/buddy:max-model-len=200", PLAIN),
    ("pow2/buddy:max-model-len=400", PLAIN),
    ("oracle/first-fit", PLAIN),
    ("paged:block=7", PLAIN),
    ("paged:block=8,samples=3", PLAIN),
    ("paged:block=8,prefix=lru", PREFIXED),
    ("paged:block=8,window=40", PLAIN),
    ("paged:block=16,budget=64", PLAIN),
]


def job(policy, stream):
    return waste_records.job(policy, stream, slots=1100)


def counted(step) -> dict[int, int]:
    """The accounting's classes as the map has them: which tokens are shared it does not say."""
    return {
        TOKEN: step.token,
        RESERVE: step.reserve,
        INTERNAL: step.internal,
        ROUNDUP: step.roundup,
        IDLE: step.cached_idle,
        FREE: step.free_frag + step.free_short + step.free_idle,
    }


@pytest.mark.parametrize(("policy", "stream"), CASES)
def test_a_map_counts_what_the_accounting_counts(policy, stream):
    asked = job(policy, stream)
    pool = pool_map(asked, mean_output_tokens=20, columns=60)
    serving = simulate(asked.source, asked.policy, slots=asked.slots)
    # As long as a run has fewer steps than a series has room for, each step is a moment.
    steps = dict(enumerate([next(iter(serving.series)), *_steps(serving)], start=1))
    assert len(pool.steps) == 60
    assert pool.steps.tolist() == list(range(2, 121, 2))
    for step, counts in zip(pool.steps.tolist(), pool.counts, strict=True):
        mapped = dict(enumerate(counts.tolist()))
        mapped[TOKEN] += mapped.pop(SHARED)
        assert mapped == counted(steps[step]), (policy, step)


def _steps(serving):
    moments = serving.series
    assert [moment.steps for moment in moments[:200]] == list(range(1, 201))
    return [after - before for before, after in pairwise(moments)]


def test_a_piece_that_is_drawn_a_slot_too_long_is_noticed(monkeypatch):
    def longer(requests, policy, *, observe, **options):
        def stretched(step, pieces):
            observe(step, [(a, g, r, f, t + 1, n) for a, g, r, f, t, n in pieces])

        return serve_contiguous(requests, policy, observe=stretched, **options)

    monkeypatch.setattr(maps, "serve_contiguous", longer)
    with pytest.raises(AssertionError):
        test_a_map_counts_what_the_accounting_counts(*CASES[0])


def test_what_is_shared_shows_where_it_is_shared():
    pool = pool_map(job(*CASES[5]), mean_output_tokens=20, columns=60)
    assert (pool.counts[:, SHARED] >= 40 // 8 * 8).mean() > 0.9
    alone = pool_map(job("paged:block=8", PREFIXED), mean_output_tokens=20, columns=60)
    assert not alone.counts[:, SHARED].any()


def test_a_row_shows_what_most_of_its_slots_are(monkeypatch):
    monkeypatch.setattr(maps, "MAX_ROWS", 3)
    sampler = maps._Sampler(8, every=1, columns=9)
    sampler.add_pieces(5, [(0, 5, 4, 3, 2, 7), (6, 2, 2, 2, 1, 8)])
    # slots 0 to 2: token token reserve; 3 to 5: internal rounding free; 6 and 7: token reserve
    assert sampler.classes[0].tolist() == [TOKEN, FREE, TOKEN]
    assert sampler.owners[0].tolist() == [7, -1, 8]
    assert sampler.counts[0][[TOKEN, RESERVE, INTERNAL, ROUNDUP, FREE]].tolist() == [3, 2, 1, 1, 1]


def test_a_map_ends_where_the_stream_does():
    pool = pool_map(job("paged", "alpaca-fit:requests=3"), mean_output_tokens=500, columns=400)
    assert 0 < len(pool.steps) < 400
    assert pool.classes.shape == (-(-1100 // pool.slots_per_row), len(pool.steps))


def lightness(colour: str) -> float:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def test_colours_differ_for_those_who_see_fewer():
    # Red and green seen as one: what is left is the mean of the two, and blue.
    def seen(colour):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        return (0.3 * red + 0.6 * green, blue)

    for one, other in combinations([*COLOURS.values()], 2):
        assert np.hypot(*np.subtract(seen(one), seen(other))) > 40, (one, other)
    assert len({round(lightness(shade), 1) for shade in TOKEN_SHADES}) == len(TOKEN_SHADES)


def test_neighbours_have_other_shades_and_a_shared_slot_has_one():
    classes = np.array([[TOKEN, TOKEN, INTERNAL, INTERNAL, SHARED, SHARED, FREE]], np.uint8)
    owners = np.array([[4, 5, 4, 5, 4, 5, -1]], np.int32)
    pool = PoolMap(
        policy=parse_policy("paged"),
        slots=1,
        slots_per_row=1,
        steps=np.arange(7),
        classes=classes,
        owners=owners,
        counts=np.zeros((7, NUM_CLASSES), np.int64),
    )
    picture = coloured(pool)[0].tolist()
    assert picture[0] != picture[1]
    assert picture[2] != picture[3]
    assert picture[4] == picture[5]
    assert picture[6] == [255, 255, 255]


@pytest.fixture(scope="module")
def record():
    policies = ("max/buddy:max-model-len=256", "oracle/first-fit", "paged")
    return waste_record(*(simulated(job(policy, PLAIN)) for policy in policies))


@pytest.mark.parametrize(
    ("ending", "begins", "maps"),
    [("png", b"\x89PNG", 1), ("svg", b"<?xml", 2), ("pdf", b"%PDF", 0)],
)
def test_a_picture_is_drawn_in_each_format(record, tmp_path, ending, begins, maps):
    pools = [
        pool_map(job(policy, PLAIN), mean_output_tokens=20, columns=20)
        for policy in ("paged", "max/buddy")[:maps]
    ]
    one, many = tmp_path / f"one.{ending}", tmp_path / f"many.{ending}"
    draw(record.model_copy(update={"rows": record.rows[:1]}), "s", pools, one)
    draw(record.model_copy(update={"rows": record.rows * 4}), "s", [], many)
    for file in (one, many):
        assert file.read_bytes().startswith(begins)
        assert file.stat().st_size > 5000


def test_a_pool_into_which_nobody_fits_is_drawn_empty(record, tmp_path):
    asked = job("max/buddy:max-model-len=2048", PLAIN)
    row = simulated(asked)
    assert (row.total.refused, row.series.steps) == (40, [])
    nothing = pool_map(asked, mean_output_tokens=20, columns=20)
    assert nothing.steps.size == 0
    alone = record.model_copy(update={"rows": [row]})
    draw(alone, "s", [nothing, nothing], tmp_path / "empty.svg")


def test_an_unknown_ending_is_named_with_those_that_are_known(tmp_path):
    with pytest.raises(BadInput, match=r"waste\.gif: end the name with \.png, \.svg, \.pdf"):
        check_chart(tmp_path / "waste.gif")
    check_chart(tmp_path / "waste.PNG")


def test_a_closed_loop_is_mapped_as_it_is_served():
    asked = replace(job("paged", PLAIN), clients=2)
    pool = pool_map(asked, mean_output_tokens=20, columns=60)
    owners = [np.unique(pool.owners[:, at][pool.owners[:, at] >= 0]).size for at in range(60)]
    assert max(owners) == 2
