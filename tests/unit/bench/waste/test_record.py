"""The record of `pagedbench waste`: integers that add up, also after a trip through a file."""

import json
from dataclasses import fields

import pytest
from pydantic import ValidationError

from bench.waste.policies import format_policy, parse_policy
from bench.waste.record import MAX_POINTS, SERIES_COLUMNS, SeriesRecord, WasteRecord, WasteRow
from bench.waste.simulate import simulate
from bench.workloads.spec import parse_source
from helpers.places import ROOT
from paged.accounting import SLOT_CLASSES, Counters, IdentityBroken

SOURCE = parse_source("alpaca-fit:requests=400")
POLICIES = ("max/buddy:max-model-len=256", "oracle/first-fit", "paged:watermark=0.01")


@pytest.fixture(scope="module", params=POLICIES)
def served(request):
    policy = parse_policy(request.param)
    serving = simulate(SOURCE, policy, slots=3000, warmup=40)
    return serving, WasteRow.of("s", policy, serving, seconds=1.5)


def test_a_row_comes_back_from_json_as_it_was_and_its_shares_add_up(served):
    serving, row = served
    assert WasteRow.model_validate_json(row.model_dump_json()) == row
    assert (row.total, row.loaded) == (serving.total, serving.loaded)
    assert row.peak_requests == serving.peak_requests
    data = json.loads(row.model_dump_json())
    assert data["policy"] == format_policy(row.policy)
    assert set(data["shares"]) == {*SLOT_CLASSES}
    assert sum(data["shares"].values()) == pytest.approx(1)
    assert data["shares"]["token"] == serving.loaded.token_fraction
    assert data["mean_batch"] == serving.loaded.mean_batch
    assert set(data["total"]) == {field.name for field in fields(Counters)}


def test_a_run_that_was_never_loaded_is_judged_as_a_whole():
    policy = parse_policy("paged")
    serving = simulate(SOURCE, policy, slots=3000, warmup=400)
    row = WasteRow.of("s", policy, serving, seconds=0)
    assert serving.loaded.steps == 0
    assert row.judged == serving.total


@pytest.mark.parametrize("part", ["total", "loaded"])
@pytest.mark.parametrize("name", ["token", "cached_idle", "steps"])
def test_a_slot_step_too_many_does_not_load(served, part, name):
    data = json.loads(served[1].model_dump_json())
    data[part][name] += 1
    with pytest.raises(IdentityBroken):
        WasteRow.model_validate(data)


def test_a_moment_of_the_series_that_does_not_add_up_does_not_load(served):
    row = served[1]
    data = json.loads(row.model_dump_json())
    data["series"]["token"][3] -= 1
    with pytest.raises(IdentityBroken):
        WasteRow.model_validate(data)
    data["series"]["token"][3] += 1
    WasteRow.model_validate(data)
    data["series"]["queued"].pop()
    with pytest.raises(ValidationError, match="not equally long"):
        WasteRow.model_validate(data)
    with pytest.raises(IdentityBroken):  # the loaded part is a part
        WasteRow(**{**dict(row), "total": row.loaded, "loaded": row.total})


def test_a_series_is_thin_and_ends_where_the_run_does(served):
    serving, _ = served
    series = SeriesRecord.of(serving)
    assert len(serving.series) > MAX_POINTS
    assert len(series.steps) == MAX_POINTS
    assert series.steps == sorted(set(series.steps))
    for name in SERIES_COLUMNS:
        assert getattr(series, name)[-1] == getattr(serving.total, name), name
    middle, batch = series.mean_batch()
    widths = [after - before for before, after in zip([0, *series.steps], series.steps)]  # noqa: B905
    assert sum(w * b for w, b in zip(widths, batch, strict=True)) == pytest.approx(
        serving.total.running_requests
    )
    assert middle == sorted(middle)


def test_a_record_from_before_the_clock_still_loads():
    """Without the keys that came later, a stored record is what it was."""
    file = ROOT / "tests" / "frozen" / "records" / "waste-whatif.json"
    stored = json.loads(file.read_text())
    older = json.loads(file.read_text())
    for name in ("clock", "slo", "rank"):
        del older[name]
    for row in older["rows"]:
        for name in ("service", "requests_per_s", "tokens_per_s", "goodput_per_s"):
            del row[name]
        for part in ("total", "loaded"):
            del row[part]["time_ns"]
    record = WasteRecord.model_validate(older)
    assert json.loads(record.model_dump_json()) == stored
    assert record.rank == "steps"
    assert record.rows[0].requests_per_s is None
