"""A hybrid model's groups from the command to the record, the screen and the page."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

import paged.compiled
from bench import cli
from bench.waste.models import MODELS, model_of_config, read_model
from bench.waste.page import sheet
from bench.waste.record import WasteRecord
from bench.waste.report import markdown_of
from bench.waste.simulate import simulate
from bench.waste.tables import tables_of
from bench.workloads.spec import parse_source
from paged.layout import FOREVER
from paged.policy import PagedPolicy


def served(tmp_path, *options: str) -> tuple[WasteRecord, str]:
    file = tmp_path / "r.json"
    asked = ["waste", "-q", "--stream", "azure-fit", "--requests", "40", "--jobs", "1"]
    found = CliRunner().invoke(
        cli.app, [*asked, "--json", str(file), *options], env={"COLUMNS": "90"}
    )
    assert found.exit_code == 0, found.output
    return WasteRecord.model_validate_json(file.read_text()), found.output


HYBRID = ("--model", "gpt-oss-20b", "--pool", "1GB")


def test_paged_is_served_as_if_layers_were_alike_and_with_tables_for_each_group(tmp_path) -> None:
    record, shown = served(tmp_path, *HYBRID, "--policy", "paged", "--policy", "paged:prefix=lru")
    alike, grouped, shared = record.rows
    assert [row.typed for row in record.rows][1] == "paged:block=16 + groups"
    assert alike.total.slots == record.pool.slots
    assert grouped.total.slots == record.pool.slots * record.pool.bytes_per_token
    full, window = grouped.groups
    judged = grouped.judged
    assert judged.token == full.token + window.token
    assert judged.internal == full.internal + window.internal + window.behind
    assert judged.roundup == full.padding + window.padding
    assert full.behind == 0 < window.behind
    assert window.blocks < full.blocks
    # A request holds less, so more run at once.
    assert grouped.mean_batch > 1.2 * alike.mean_batch
    assert "12 behind 128 tokens" in shown
    assert "as if all layers were full attention," in " ".join(shown.split())
    assert not shared.groups
    assert "prefix=lru: served as if all layers were full attention" in " ".join(shown.split())
    assert "12 behind 128 tokens" in markdown_of(record)
    figures = next(part for part in sheet(record).parts if part.title == "All figures")
    assert any("12 behind 128 tokens" in str(piece) for piece in figures.pieces)
    changed = json.loads(record.model_dump_json())
    changed["rows"][1]["groups"][0]["behind"] += 1
    with pytest.raises(ValueError, match="groups that do not add up"):
        WasteRecord.model_validate(changed)


def test_whatif_varies_what_is_served_with_groups(tmp_path) -> None:
    options = ("--whatif", "--runs", "12", "--seeds", "1", "--policy", "paged")
    record, shown = served(tmp_path, *HYBRID, *options)
    assert all(row.groups for row in record.rows)
    assert len({row.total.slots for row in record.rows}) == 1
    assert "12 behind 128 tokens" in shown
    assert not any(row.policy.preemption == "swap" for row in record.rows)
    assert "Not tried with tables for each group" in shown
    options = ("--whatif", "--runs", "4", "--seeds", "1", "--policy", "paged:prefix=lru")
    record, _ = served(tmp_path, *HYBRID, *options)
    assert not any(row.groups for row in record.rows)


def test_a_long_request_holds_what_the_window_leaves_of_it() -> None:
    # Gemma-2 at 8,192 tokens, half of its layers behind 4,096: one table for all wastes 25 %.
    layout = tables_of(read_model("Gemma-2-9B"), block_size=16).layout()
    assert layout is not None
    held = sum(each.begun(8192) - each.behind(8191) for each in layout.groups)
    assert held == 0.75 * 2 * 512


def test_without_a_compiler_blocks_are_moved_to_the_same_end(monkeypatch) -> None:
    layout = tables_of(read_model("gpt-oss-20b"), block_size=16).layout()
    assert layout is not None
    source = parse_source("alpaca-fit", requests=60, seed=0)
    serve = partial(simulate, source, PagedPolicy(), slots=200 * layout.block_bytes, layout=layout)
    counted = serve()
    monkeypatch.setattr(paged.compiled, "library", lambda: None)
    assert serve() == counted
    assert counted.total.preemptions


def test_layers_that_are_alike_are_served_once(tmp_path) -> None:
    record, shown = served(
        tmp_path, "--model", "Llama-3.1-8B", "--pool", "2GB", "--policy", "paged"
    )
    assert [row.groups for row in record.rows] == [()]
    assert "group of layers" not in shown


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_layout_uses_no_more_than_its_blocks(name: str) -> None:
    model = read_model(name)
    tables = tables_of(model, block_size=16)
    layout = tables.layout()
    if layout is None:
        assert [group.window for group in model.groups] == [None]
        return
    for group, of in zip(model.groups, layout.groups, strict=True):
        assert of.window == (group.window or FOREVER)
        assert of.token_bytes == model.group_bytes(group)


def test_as_if_all_were_full_attention_a_layer_with_a_state_keeps_every_token() -> None:
    shape = {"num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 4, "head_dim": 8}
    states = {"layer_types": ["mamba", "mamba", "attention"] * 2, "mamba_d_state": 4}
    model = model_of_config(shape | states, name="h")
    assert model.bytes_per_token == 2 * 128
    assert model.uniform_bytes_per_token == 6 * 128
