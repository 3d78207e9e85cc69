"""`pagedbench waste` as it is typed: exit codes, what is printed where, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.machine.facts import version_of
from bench.waste import parallel
from bench.waste.figures import catalogue
from bench.waste.figures.figure import Component, Figure
from bench.waste.policies import format_policy
from bench.waste.record import WasteRecord
from helpers.places import ROOT
from paged.accounting import IdentityBroken
from reference.errors import BadInput

SMALL = ("--stream", "alpaca-fit", "--requests", "80", "--slots", "2500")


@pytest.fixture(autouse=True)
def somewhere_else(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def typed(*arguments: str, folder: Path | None = None):
    with chdir(folder or Path.cwd()):
        return CliRunner().invoke(cli.app, ["waste", *arguments], prog_name="pagedbench")


def succeeds(*arguments: str):
    result = typed(*arguments)
    assert result.exit_code == 0, result.output
    return result


def written(file: str = "waste.json") -> WasteRecord:
    return WasteRecord.model_validate_json(Path(file).read_text())


def policies(record: WasteRecord) -> list[str]:
    return [format_policy(row.policy) for row in record.rows]


def words(result) -> str:
    return " ".join(result.output.split())


# 0: done


def test_the_default_policies_are_compared_on_a_stream():
    result = succeeds(*SMALL, "--json", "waste.json")
    record = written()
    assert record.complete
    # No request has more than 512 tokens, so that is what a reservation provides for.
    assert record.streams[0].longest_request in range(257, 513)
    assert policies(record) == [
        "max/buddy:max-model-len=512",
        "pow2/buddy:max-model-len=512",
        "oracle/buddy:max-model-len=512",
        "oracle/first-fit:max-model-len=512",
        "paged:block=16",
    ]
    assert {row.total.completed for row in record.rows} == {80}
    assert record.rows[0].judged.slots == 2500
    assert "paged, block 16, completes" in words(result)
    assert "simulations: 5 of 5" in result.stderr
    assert "simulations" not in result.stdout.replace("5 of 5 simulations", "")


def test_quiet_shows_no_progress_and_processes_change_nothing_but_the_seconds():
    options = (*SMALL, "--policy=paged", "--policy=max/buddy")
    shown = [
        succeeds(*options, "--jobs=1", "--json=1"),
        succeeds(*options, "--jobs=2", "--json=2", "--quiet"),
    ]
    assert [bool(result.stderr) for result in shown] == [True, False]
    one, two = (
        [row.model_copy(update={"seconds": 0.0}) for row in written(file).rows] for file in "12"
    )
    assert one == two


def test_streams_policies_and_block_sizes_are_crossed():
    succeeds(
        *("--stream", "alpaca-fit:requests=30", "--stream", "alpaca-fit:requests=40,seed=7"),
        *("--policy", "paged", "--policy", "max/buddy:max-model-len=256"),
        *("--block-size", "8", "--block-size", "32", "--slots", "3000", "--json", "waste.json"),
    )
    record = written()
    assert [stream.requests for stream in record.streams] == [30, 40]
    assert policies(record) == [
        *("paged:block=8", "paged:block=32", "max/buddy:max-model-len=256"),
        *("paged:block=8", "paged:block=32", "max/buddy:max-model-len=256"),
    ]
    assert "seed=7" in record.rows[-1].stream


def test_the_pool_is_as_large_as_it_is_said():
    for options, pool in (
        ((), (15_728, 819_200)),
        (("--pool", "0.5 gib", "--model", "32x8x128"), (4096, 131_072)),
    ):
        succeeds("--stream", "alpaca-fit:requests=9", "--policy", "paged", *options, "--json=w.j")
        assert (written("w.j").pool.slots, written("w.j").pool.bytes_per_token) == pool


def test_a_trace_is_read_and_calls_without_output_are_left_out():
    Path("calls.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.0000000,100,20\n"
        "2023-11-16 18:17:04.0000000,50,0\n"
        "2023-11-16 18:17:05.0000000,60,30\n"
    )
    succeeds("--trace", "calls.csv", "--slots", "1000", "--json", "waste.json")
    (stream,) = written().streams
    assert (stream.label, stream.requests, stream.timed) == ("calls", 2, True)
    assert {row.total.completed for row in written().rows} == {2}


def test_what_if_varies_the_base():
    result = succeeds(
        *SMALL, "--whatif", "--policy", "paged:watermark=0.05", "--block-size", "64", "--json=w.j"
    )
    record = written("w.j")
    assert policies(record)[0] == "paged:block=64,watermark=0.05"
    assert record.rows[0].policy == record.base
    assert {"paged:block=64", "paged:block=8,watermark=0.05"} <= {*policies(record)}
    assert not any("prefix" in policy for policy in policies(record))  # the stream knows none
    assert "gives back most" in words(result) or "Keep it" in words(result)
    prefixed = ("--stream", "alpaca-fit:requests=20,system=64", "--slots=2500")
    assert "prefix caching" in words(succeeds(*prefixed, "--whatif", "--json=w.j"))
    kinds = {f"paged:block=16,prefix={kind}" for kind in ("lru", "lfu", "fifo")}
    assert kinds <= {*policies(written("w.j"))}


def test_a_plot_is_drawn_for_each_stream():
    result = succeeds(
        *("--stream", "alpaca-fit:requests=30", "--stream", "alpaca-fit:requests=30,seed=2"),
        *("--policy", "paged", "--slots", "2500", "--plot", "pool.svg"),
    )
    assert sorted(path.name for path in Path().glob("*.svg")) == [
        "pool-alpaca-fit-requests-30-seed-2.svg",
        "pool-alpaca-fit-requests-30.svg",
    ]
    assert result.stdout.count("drawn to pool-alpaca") == 2


# 1: a figure is missed


@pytest.mark.parametrize(("measured", "code", "verdict"), [(1.0, 0, "met"), (9.0, 1, "missed")])
def test_a_figure_that_is_missed_exits_1(monkeypatch, measured, code, verdict):
    component = Component(
        bar="a", name="b", unit="%", published=1, measured=measured, lowest=0, highest=2
    )
    made = Figure(name="x", title="X", source="Y", setup="Z", components=(component,))
    monkeypatch.setattr(catalogue, "FIGURES", {"made": lambda: made})
    result = typed("--figure", "made", "--json", "figure.json")
    assert result.exit_code == code, result.output
    assert verdict in result.stdout
    record = json.loads(Path("figure.json").read_text())
    assert record["components"][0]["measured"] == measured
    assert record["pagedbench"] == version_of("pagedbench")


# 2: usage


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--stream", "nothing-fit"), "--stream nothing-fit: 'nothing-fit' is neither"),
        (("--trace", "none.csv"), "--trace none.csv: 'none.csv' is neither a file"),
        (("--policy", "pagd"), "did you mean paged?"),
        (("--policy", "max/buddy", "--clients", "3"), "a closed loop is for paged policies"),
        (("--pool", "100B"), "--pool 100B: less than one token"),
        (("--pool", "1GiB", "--slots", "5"), "--slots 5 and --pool 1GiB: give one"),
        (("--model", "32x8"), "layers x KV heads x head size, as 32x8x128"),
        (("--model", "1x1x1", "--bytes-per-token", "4"), "give one of them"),
        (("--json", "gone/waste.json"), "the folder gone does not exist; make it"),
        (("--plot", "gone/waste.png"), "--plot gone/waste.png: the folder gone"),
        (("--plot", "waste.gif"), "--plot waste.gif: end the name with .png, .svg, .pdf"),
        (("--figure", "sosp99"), "--figure sosp99: choose one of made"),
        (("--figure", "absent"), "the trace is not there"),
        (("--figure", "made", "--trace", "a.csv"), "only mooncake reads a trace"),
        (("--whatif", "--policy", "max/buddy"), "--whatif with max/buddy: give one paged"),
        (("--whatif", "--block-size", "8", "--block-size", "16"), "give one paged policy"),
        (("--slots", "8"), "slots = 8"),
        (("--clock", "base=nan"), "--clock base=nan: give base, prompt"),
        (("--clock", "base=3ms,kv=nan"), "--clock base=3ms,kv=nan: 'kv=nan'; give base"),
        (("--trace", os.devnull), f"--trace {os.devnull}: '{os.devnull}' is a folder or a device"),
        (("--runs", "5"), "--runs 5: it goes with --whatif"),
    ],
)
def test_what_cannot_be_met_exits_2_with_a_remedy(monkeypatch, options, said):
    def absent():
        raise BadInput("the trace is not there")

    monkeypatch.setattr(catalogue, "FIGURES", {"made": absent, "absent": absent})
    given = () if {"--stream", "--trace"} & {*options} else ("--stream", "alpaca-fit:requests=9")
    result = typed(*given, *options)
    assert result.exit_code == 2, result.output
    assert said in words(result)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("call", "options", "said"),
    [
        ("2023-11-16 18:17:03.0000000,100,x", (), "calls.csv, line 2"),
        ("nonsense", ("--policy", "pagd"), "did you mean paged?"),  # before the trace is read
        ("", ("--figure", "mooncake"), "calls.csv, line 1"),
    ],
)
def test_a_trace_that_breaks_off_names_the_line(call, options, said):
    Path("calls.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{call}\n")
    result = typed("--trace", "calls.csv", *options)
    assert result.exit_code == 2
    assert said in words(result)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "PAGEDBENCH_TRACES is not set: put conversation_trace.jsonl"),
        (("--trace", "gone.jsonl"), "--trace gone.jsonl: No such file or directory"),
    ],
)
def test_the_mooncake_figure_says_where_the_trace_is_to_be(monkeypatch, options, said):
    monkeypatch.delenv("PAGEDBENCH_TRACES", raising=False)
    result = typed("--figure", "mooncake", *options)
    assert result.exit_code == 2
    assert said in words(result)


def test_the_mooncake_figure_judges_no_other_trace_which_has_curves_of_its_own():
    """W8: any trace was held against the conversation's figures."""
    row = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n'
    Path("small.jsonl").write_text(row * 3)
    result = typed("--figure", "mooncake", "--trace", "small.jsonl")
    assert result.exit_code == 2
    assert "which has 3 requests" in words(result)
    result = succeeds("--trace", "small.jsonl", "--hits", "--json", "hits.json")
    assert "66.7%" in words(result)
    (curve,) = json.loads(Path("hits.json").read_text())
    assert curve["limit"] == pytest.approx(2 / 3)
    assert curve["pagedbench"] == version_of("pagedbench")
    refused = typed("--hits", "--stream", "alpaca-fit:requests=5")
    assert refused.exit_code == 2
    assert "use a trace with hash_ids" in words(refused)


def test_without_ray_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = typed(*SMALL, "--ray")
    assert result.exit_code == 2
    assert 'pip install "pagedbench[ray]"' in words(result)


# 4: the harness


@pytest.mark.parametrize(
    ("options", "bug"), [(("--figure", "broken"), ValueError), (SMALL, IdentityBroken)]
)
def test_a_bug_of_ours_is_neither_a_verdict_nor_a_usage_error(monkeypatch, options, bug):
    def broken(*_):
        raise bug("planted")

    monkeypatch.setattr(catalogue, "FIGURES", {"broken": broken})
    monkeypatch.setattr(parallel, "run", broken)
    result = typed(*options)
    assert result.exit_code == 4
    assert "the harness itself failed" in result.stderr
    assert "planted" in result.stderr


# 130: interrupted


def test_what_is_done_before_an_interrupt_is_reported(monkeypatch):
    run, begun = parallel.run, []

    def interrupted(index, job):
        begun.append(index)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        return run(index, job)

    monkeypatch.setattr(parallel, "run", interrupted)
    result = typed(*SMALL, "--jobs", "1", "--json", "waste.json", "--plot", "waste.png")
    assert result.exit_code == 130, result.output
    record = written()
    assert not record.complete
    assert (record.asked, len(record.rows)) == (5, 2)
    assert "incomplete: 2 of 5 simulations" in result.stdout
    assert "what is done is reported" in result.stderr
    assert not Path("waste.png").exists()


def test_an_interrupt_while_reporting_aborts(monkeypatch):
    def interrupted(record, console):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.waste.report.show", interrupted)
    result = typed(*SMALL)
    assert result.exit_code == 130
    assert "aborted" in result.stderr


# What comes along


def imported(*arguments: str) -> set[str]:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = {list(arguments)!r}\n"
        "from bench.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('MODULES', *sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    return {*run.stdout.rpartition("MODULES")[2].split()}


def test_nothing_heavy_is_imported_for_nothing():
    heavy = {"torch", "numpy", "matplotlib", "joblib", "ray", "scipy"}
    assert not heavy & imported("waste", "--help")
    came = imported("waste", *SMALL, "--plot", "w.svg", "--whatif")
    assert "matplotlib" in came
    assert not {"torch", "triton", "scipy"} & came


def test_markdown_has_what_the_screen_has():
    result = succeeds(
        *("--stream", "sharegpt-fit:system=512+alpaca-fit:share=0.5", "--requests", "60"),
        *("--slots", "9000", "--policy", "paged:prefix=lru", "--seeds", "2", "--markdown", "w.md"),
    )
    page = Path("w.md").read_text()
    assert "| policy | token |" in page
    assert "| alpaca-fit | 3" in page
    assert "| policy | req/s | tok/s |" in page
    assert "Mean of 2 drawings of the stream" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 5 * 2 + 3 + 4
    assert {line[-2:] for line in rows} == {" |"}
    assert page.splitlines()[0][:60] in words(result)
