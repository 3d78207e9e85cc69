"""The table at 80 columns: nothing wider, nothing taken for markup, no control characters."""

from io import StringIO

from rich.cells import cell_len
from rich.console import Console

from bench.gate.record import NoiseRecord
from bench.gate.report.terminal import show
from helpers.gate_records import HOSTILE, gate_record, mixed_record


def shown(record, width=80):
    console = Console(file=StringIO(), width=width, force_terminal=False)
    show(record, console)
    return console.file.getvalue()


def table(text):
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("benchmark"))
    end = next(
        i for i, line in enumerate(lines) if i > start + 1 and not line.strip().endswith(WORDS)
    )
    return lines[start:end]


WORDS = ("pass", "fail", "inconclusive", "noisy", "not run", "faster")


def test_table_is_80_columns_wide_at_most():
    assert all(cell_len(line) <= 80 for line in table(shown(mixed_record())))


def test_row_has_the_figures():
    (row,) = (line for line in table(shown(mixed_record())) if line.startswith("prefill"))
    assert " ".join(row.split()) == "prefill/paged-torch +5.0 % +4.6 to +5.4 % 9+6 0.4 % fail"


def test_what_is_not_passed_has_its_reason():
    text = shown(mixed_record())
    assert "prefill/paged-torch: slower by more than 1 %, confirmed on 6 fresh launches" in text
    assert "copy/blocks: 40 launches: open" in text
    assert "not run: new/one: the base has no such thing" in text


def test_counters_and_outputs_that_differ_are_named():
    text = shown(mixed_record())
    assert "counters: 1 of 5 are equal" in text
    assert "alloc/churn allocations: worse, 1,000 to 1,010 slots (+1.00 %, allowed 0 %)" in text
    assert "outputs: 1 of 2 are the same bits" in text
    assert "within tolerance, off by 1e-07, allowed 1e-06" in text


def test_verdict_is_at_the_end():
    *_, verdict, exit_code = shown(mixed_record()).splitlines()
    assert verdict == "fail: 1 benchmark is slower and 1 counter is worse"
    assert exit_code == "in 61 s, exit code 1"


def test_hostile_name_is_text():
    text = shown(mixed_record(reason=HOSTILE), width=400)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def test_noise_of_identical_code():
    noise = NoiseRecord(
        benchmark="alloc/churn",
        launches=40,
        launch_sd=0.012,
        detectable=0.03,
        found={"0.0": 0.001, "0.03": 0.97},
        quarantined=False,
    )
    none = noise.model_copy(update={"benchmark": "copy/blocks", "detectable": None})
    text = shown(gate_record(mode="aa", noise=[noise, none]))
    rows = [line.split() for line in text.splitlines() if " 40 " in line]
    assert rows == [
        ["alloc/churn", "40", "1.2", "%", "0.1", "%", "+3", "%"],
        ["copy/blocks", "40", "1.2", "%", "0.1", "%", "none"],
    ]
