"""`pagedbench throughput` as a user types it, and its reports."""

import json
import re
from io import StringIO

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.commands import throughput as cli_throughput
from bench.machine.roof import RoofRecord
from bench.throughput.plot import draw
from bench.throughput.record import LoopRecord, ThroughputRecord
from bench.throughput.report import show
from helpers.measuring import InAThread

ROOF = RoofRecord(
    copy_bytes=1,
    copy_gigabytes_per_s=20.0,
    copy_median_gigabytes_per_s=19.0,
    matrix_dtype="float32",
    matrix_teraflops_per_s=0.1,
    matrix_median_teraflops_per_s=0.09,
)

SMALL = ("--batch", "2x32", "--heads", "2x2", "--head-dim", "16", "--rounds", "2", "--no-compile")
PAIR = ("--subject", "torch", "--subject", "contiguous")


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """The roof, and the truth about inputs of many times the machine's cache, take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.throughput.run.measure_roof", lambda device: ROOF)
        patch.setattr("bench.machine.timing.cpu_cache_bytes", lambda: 20_000)
        yield


@pytest.fixture
def in_a_thread(monkeypatch):
    """Nothing is started: a measuring process takes seconds to import torch."""
    monkeypatch.setattr("bench.throughput.run.start", lambda device: InAThread())


def run(*arguments: str):
    return CliRunner().invoke(app, ["throughput", *arguments])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    files = ("--json", f"{folder}/t.json", "--plot", f"{folder}/roof.png")
    result = run(*SMALL, *PAIR, "--batch", "azure:2", *files)
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture
def record(ran) -> ThroughputRecord:
    return ThroughputRecord.model_validate_json((ran[0] / "t.json").read_text())


def test_a_run_prints_a_table_and_writes_record_and_picture(ran, record):
    folder, output = ran
    assert "decode 2x32 h2 g2 d16 b16 bf16" in output
    assert re.search(r"contiguous +[\d.]+ +[\d.]+ +[\d.]+%", output)
    assert "copy bandwidth 20.0 GB/s" in output
    assert "right in" in output
    assert [point.ragged for point in record.points] == [False, True]
    assert torch.__version__.startswith(record.environment.torch)
    assert (folder / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_sweeps_are_lists(in_a_thread, tmp_path):
    file = tmp_path / "t.json"
    result = run(
        *SMALL, "--subject", "torch", "--block-size", "1, 16", "--dtype", "bf16,fp32",
        "--kv-dtype", "same,e5m2", "--json", str(file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(json.loads(file.read_text())["points"]) == 8


def test_a_kernel_of_ones_own_that_is_wrong_ends_with_1(in_a_thread, tmp_path):
    kernel = tmp_path / "mine.py"
    kernel.write_text("def attention(batch):\n    batch.out.zero_()\n")
    result = run(*SMALL, "--subject", "torch", "--subject", f"{kernel}:attention")
    assert result.exit_code == 1
    assert "the truth is" in result.output
    assert "wrong: " in result.output


def test_without_a_gpu_the_bars_of_one_are_not_measured(in_a_thread, monkeypatch):
    monkeypatch.setattr(cli_throughput, "ROUNDS", {"cpu": 1})
    monkeypatch.setattr(
        "bench.throughput.bars.RAGGED_BATCH", "azure-conv:1"
    )  # the bar's own batch takes half a minute
    result = run("--preset", "bars", *PAIR, "--no-compile")
    assert result.exit_code == 0, result.output
    assert re.search(r"1\.15 +\d\.\d{3} +(met|missed)", result.output)
    assert "81 of 82 bars not measured: this run has no GPU" in result.output


def test_a_failure_of_ours_says_nothing_about_a_kernel(in_a_thread, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("ours")

    monkeypatch.setattr("bench.throughput.run.make_samples", fails)
    result = run(*SMALL, *PAIR)
    assert result.exit_code == 4


def test_the_report_fits_80_columns_and_takes_no_name_for_markup(record):
    point = record.points[0]
    torch_, contiguous = point.subjects
    odd = contiguous.model_copy(update={"name": "[red]odd[/]:k", "captured": True})
    long = contiguous.model_copy(update={"name": "a/folder/and_a_rather_long_name.py:attention"})
    loop = LoopRecord(problem="16x(q1 k1024) d16 b16 bf16", target="sm_90", failure="no [/] way")
    changed = point.model_copy(update={"subjects": [torch_, odd, long]})
    out = StringIO()
    show(
        record.model_copy(update={"points": [changed], "loops": [loop]}),
        Console(file=out, width=80),
    )
    assert "[red]odd[/]:k*" in out.getvalue()
    assert "no [/] way" in out.getvalue()
    table = [line for line in out.getvalue().splitlines() if re.search(r"\d%", line)]
    assert len(table) == 3
    assert max(map(cell_len, table)) <= 80


def test_a_picture_of_nothing_is_no_error(record, tmp_path):
    draw(record, tmp_path / "roof.svg")
    draw(record.model_copy(update={"points": []}), tmp_path / "none.svg")
    assert "copy 20 GB/s" in (tmp_path / "roof.svg").read_text()
