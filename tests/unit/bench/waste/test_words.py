"""What the report says of runs that used to be misread (W2, W3, W4, W9, W10, W11)."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.waste.plan import read_columns, read_streams
from bench.waste.record import WasteRow
from bench.waste.report import reading, show
from helpers.waste_records import job, simulated, waste_record

SHARED = "sharegpt-fit:requests=60,system=240,prompts=1"


def said(*rows: WasteRow, stream: str) -> str:
    return " ".join(reading(list(rows), waste_record(*rows, stream=stream)))


def rows_of(*policies: str, stream: str, slots: int) -> list[WasteRow]:
    return [simulated(job(policy, stream, slots=slots)) for policy in policies]


def test_what_users_feel_is_said_in_seconds() -> None:
    """W2: there were steps and queues, and no time to the first token, nor any other."""
    stream = "alpaca-fit:requests=40,rate=2"
    row = simulated(job("paged", stream, slots=4000))
    output = StringIO()
    show(waste_record(row, stream=stream), Console(file=output, width=100))
    shown = output.getvalue()
    for word in ("req/s", "tok/s", "span s", "TTFT", "TPOT", "ITL", "p50", "p90", "p99"):
        assert word in shown
    assert f"{row.requests_per_s:.3g}" in shown


@pytest.mark.parametrize("policy", ["paged", "paged:prefix=lru", "oracle/buddy"])
def test_years_in_which_nothing_happens_are_not_stepped_through(policy: str) -> None:
    """W10: idle steps were simulated one by one; these would be seven thousand million."""
    stream = "alpaca-fit:requests=40,rate=0.0000002"
    row = simulated(job(policy, stream, slots=4000))
    assert row.service.makespan_ns > 5e16


def test_a_limit_of_the_policy_is_no_small_load() -> None:
    """W4: max-running kept 97 % of the pool idle, and the load was called small."""
    stream = "alpaca-fit:requests=20"
    rows = rows_of("paged:max-running=1", "paged:max-running=2", stream=stream, slots=4000)
    text = said(*rows, stream=stream)
    assert "The load does not fill the pool" not in text
    assert "max-running keeps 9" in text
    assert "max-running keeps 9" in said(rows[0], stream=stream)


def test_an_idle_pool_names_no_best_policy_where_all_fill_the_same() -> None:
    stream = "alpaca-fit:requests=20,rate=1"
    rows = rows_of("paged", "paged:watermark=0.05", stream=stream, slots=40_000)
    text = said(*rows, stream=stream)
    assert "The load does not fill the pool" in text
    assert "each policy fills" in text


def test_the_headline_is_requests_and_not_tokens_held() -> None:
    """W3: no sharing held more tokens than a prefix cache, which completed more requests."""
    rows = rows_of("paged", "paged:prefix=lru", stream=SHARED, slots=6000)
    assert rows[0].judged.token_fraction > rows[1].judged.token_fraction
    text = said(*rows, stream=SHARED)
    assert "prefix=lru, completes" in text
    assert "holds" not in text


def test_a_window_is_not_beaten_by_what_it_does_not_keep() -> None:
    rows = rows_of("paged", "paged:window=128", stream="sharegpt-fit:requests=120", slots=4000)
    text = said(*rows, stream="sharegpt-fit:requests=120")
    assert "window=128, completes" in text
    assert "the tokens" not in text


def test_a_prefix_shorter_than_a_block_is_said_to_be() -> None:
    """W9: no hits were a dash."""
    rows = rows_of("paged:block=784,prefix=lru", stream=SHARED, slots=80_000)
    record = waste_record(*rows, stream=SHARED)
    assert "no two prompts share a whole block of 784 tokens" in " ".join(reading(rows, record))
    output = StringIO()
    show(record, Console(file=output, width=80))
    assert "0.0%" in output.getvalue()


def test_clients_say_when_requests_arrive_whatever_times_they_had(tmp_path: Path) -> None:
    """W11: a closed loop of a stream with times was refused."""
    file = tmp_path / "t.csv"
    file.write_text("t,in,out\n5,10,3\n6,10,3\n9,10,3\n")
    columns = read_columns("prompt=in,output=out,time=t")
    for closed in (True, False):
        ((source, described),) = read_streams(
            [], [file], requests=None, seed=0, columns=columns, closed=closed
        )
        assert source.timed is described.timed is not closed
