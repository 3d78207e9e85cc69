"""Tiers behind the pool, as they are typed, served and judged."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.command.page.making import page
from bench.waste.page import sheet
from bench.waste.record import WasteRecord
from bench.waste.server import read_tiers
from bench.waste.tier_report import tier_lines, tiers_line
from reference.errors import BadInput

TIERED = [
    *("--stream", "sharegpt-fit:rate=6,system=512,prompts=24", "--requests", "60"),
    *("--slots", "6000", "--bytes-per-token", "131072", "--clock", "base=20ms,prompt=200us"),
    *("--policy", "paged:prefix=lru"),
]


def said_and_record(*asked: str) -> tuple[str, WasteRecord]:
    result = CliRunner().invoke(cli.app, ["waste", "-q", "--json", "r.json", *asked])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split()), WasteRecord.model_validate_json(
        Path("r.json").read_text()
    )


@pytest.fixture(autouse=True)
def somewhere_else(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def test_each_policy_is_served_without_and_with() -> None:
    said, record = said_and_record(*TIERED, "--tier", "host=64GiB,read=25GB")
    plain, tiered = record.rows
    assert plain.policy == tiered.policy
    assert [use.name for use in tiered.tiers] == ["host"]
    assert not plain.tiers
    assert tiered.total.hit_tokens > plain.total.hit_tokens
    assert tiered.requests_per_s > plain.requests_per_s
    assert "+ host" in said
    assert "It is worth it: behind the pool, host pays." in said
    assert "found, 0% of those looked up" not in (drawn := page([sheet(record)]))
    assert "loaded from host" in drawn
    assert "behind the pool: host, 524,288 tokens, 5.24 us to load one" in said
    # What nobody can tell apart, and what costs.
    for rate, words in ((1.001, "which the clock cannot tell"), (0.5, "cost more than they save")):
        service = replace(plain.service, makespan_ns=round(plain.service.makespan_ns / rate))
        rows = [plain, tiered.model_copy(update={"service": service})]
        (line,) = tier_lines(rows, record)
        assert words in line


def test_swap_is_held_against_recompute() -> None:
    given = [each if each != "paged:prefix=lru" else "paged:preempt=swap" for each in TIERED]
    said, record = said_and_record(*given, "--tier", "host=64GiB")
    plain, tiered = record.rows
    assert (plain.policy.preemption, tiered.policy.preemption) == ("recompute", "swap")
    assert tiered.total.swapped_out > 0
    assert plain.total.recomputed_tokens > 0
    assert "tokens more are found" not in said


def test_a_tier_is_read_with_its_rates() -> None:
    server = type("Server", (), {"bytes_per_token": 1000})
    host, disk = read_tiers(
        ["host=1MB,read=1GB,overlap=.5", "disk=1GB,read=2GB,write=500MB"], server
    )
    assert (host.slots, host.load_ps_per_token, host.store_ps_per_token) == (1000, 10**6, 10**6)
    assert (host.overlap, disk.slots) == (0.5, 10**6)
    assert (disk.load_ps_per_token, disk.store_ps_per_token) == (500_000, 2 * 10**6)
    assert "of which 50% of a step is hidden" in tiers_line([host])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host", "give its name and size"),
        ("host=1GiB,speed=3", "'speed' is unknown"),
        ("host=1GiB,read=0GB", "more than 0 bytes a second"),
        ("host=1GiB,overlap=2", "a share from 0 to 1"),
        ("host=1GiB,read=1GB,read=2GB", "give its name and size"),
    ],
)
def test_a_tier_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_tiers([text], type("Server", (), {"bytes_per_token": 1000}))


@pytest.mark.parametrize("policy", ["paged", "max/buddy", "paged:prefix=lru,samples=2"])
def test_a_policy_that_keeps_nothing_is_refused(policy: str) -> None:
    given = [each if each != "paged:prefix=lru" else policy for each in TIERED]
    with pytest.raises(AssertionError, match="a tier keeps the blocks of a prefix"):
        said_and_record(*given, "--tier", "host=1GiB")
