"""The report at 80 columns: nothing cramped, nothing taken for markup, no colour in a log."""

import re
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.check.coverage import matrix, show_coverage
from bench.check.coverage_markdown import markdown
from bench.check.decode import DecodeTimes, TimingRecord
from bench.check.need import MemoryNeed
from bench.check.record import CheckRecord, Failure, KernelRecord, replay_command
from bench.check.report import failure_panel, show, show_replay
from bench.check.search import Replay
from bench.machine.environment import Environment
from bench.workloads.record import NamedStream
from reference.attention.checks import CHECKS
from reference.attention.contract import Capabilities
from reference.attention.coverage import Coverage, Row
from reference.attention.expected import Met
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict

SPEC = "3x(q1 k150) (q1 k63) g3 d64 b16 bf16 scale=0.125 shared=106 inputs=needle seed=362"
LONG_NAME = "/home/somebody/projects/attention/kernels/experimental/my_kernel.py:attention_v2"
ODD_NAME = "[red]odd[/red].py:100:[/]"


def failure(**changes) -> Failure:
    usual = {
        "problem": SPEC,
        "check": "truth",
        "status": "failed",
        "findings": ["out[token 0, head 3] is 1.25, the truth is 1: off by 0.25, allowed 0.0098"],
        "first_problem": f"(q1 k1024) {SPEC}",
        "replay": replay_command("k.py:f", "cpu", SPEC),
        "saved_to": ".pagedbench/failures/k-py-f-0123abcd.txt",
    }
    return Failure(**{**usual, **changes})


def covered(capabilities: Capabilities = Capabilities(), **statuses: Status) -> list[Row]:  # noqa: B008 - frozen
    """The coverage of 12 verdicts on `SPEC` for each check: passed, unless said otherwise."""
    coverage = Coverage()
    for check in ("truth", "alone"):
        verdict = Verdict(check, statuses.get(check, Status.PASSED))
        for _ in range(12):
            coverage.add(AttentionProblem.parse(SPEC), verdict)
    return coverage.matrix(capabilities)


def expected(**changes) -> Met:
    usual = {
        "kernel": "k.py:f",
        "check": "truth",
        "when": ["window"],
        "reason": "https://example.org/issues/12",
        "problems": 4,
        "failed": 3,
        "finding": "off",
        "problem": SPEC,
        "state": "failed as expected",
        "said": "k.py:f truth [window] fails 3 of 4 problems: https://example.org/issues/12",
    }
    return Met(**{**usual, **changes})


def kernel(name: str = "torch", **changes) -> KernelRecord:
    usual = {
        "name": name,
        "asked": 300,
        "problems": 300,
        "checks": {"truth": {"passed": 300}, "alone": {"passed": 291}},
        "unseen": {"memory": "only Triton kernels in the interpreter can be watched"},
        "expected": [],
        "coverage": covered(),
        "complete": True,
        "failure": None,
    }
    return KernelRecord(**{**usual, **changes})


def times(median_ms: float = 108.26, **changes) -> TimingRecord:
    usual = {
        "name": "contiguous, torch SDPA",
        "median_ms": median_ms,
        "fastest_ms": median_ms * 0.9,
        "slowest_ms": median_ms * 1.2,
        "ratio": 3.291,
        "gigabytes_per_s": 1.161,
        "bandwidth_share": None,
    }
    return TimingRecord(**{**usual, **changes})


def memory(policy: str, tokens: int, gib: float) -> MemoryNeed:
    return MemoryNeed(
        policy=policy,
        granule_tokens=tokens,
        token=1,
        reserve=0,
        internal=0,
        roundup=0,
        allocated=1,
        waste_fraction=0.918,
        bytes_per_request=gib * 2**30,
        requests_in_pool=1234,
    )


def record(**changes) -> CheckRecord:
    usual = {
        "started_at": "2030-01-01T00:00:00+00:00",
        "elapsed_s": 31.4,
        "seed": 5,
        "max_len": 1024,
        "environment": Environment(
            pagedbench="1",
            python="3",
            torch="2.13.0+cu130",
            triton="3.9.0",
            device="NVIDIA H100 80GB HBM3",
            driver="580.1",
            cpu="a CPU",
            threads=128,
            commit=None,
            dirty=None,
        ),
        "stream": NamedStream(
            name="mooncake-conv",
            source="a test",
            requests=12_031,
            mean_prompt_tokens=12_035.1,
            mean_output_tokens=342.6,
        ),
        "kernels": [kernel("torch"), kernel("triton")],
        "decode": DecodeTimes(
            batch_size=32,
            context_tokens=30_693,
            kv_bytes=1,
            num_q_heads=32,
            num_kv_heads=8,
            head_dim=128,
            block_size=16,
            dtype="bfloat16",
            copy_gigabytes_per_s=None,
            timings=[times()],
        ),
        "memory": [memory("contiguous", 131_072, 16.0), memory("paged", 16, 1.503)],
        "pool_bytes": 24 * 2**30,
        "verdict": "right",
        "warnings": [],
        "exit_code": 0,
    }
    return CheckRecord(**{**usual, **changes})


def printed(what, width: int = 80, **options) -> str:
    console = Console(file=StringIO(), width=width, **options)
    show(what, console) if isinstance(what, CheckRecord) else console.print(what)
    return console.file.getvalue()


def row(text: str, name: str) -> str:
    """The lines of a row, as one."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"  {name}"))
    return " ".join(" ".join(lines[start : start + 1]).split())


# Width


def test_at_80_columns_every_row_is_one_line():
    text = printed(record())
    assert max(map(cell_len, text.splitlines())) <= 80
    assert row(text, "torch") == "torch right 300 problems, 591 checks"
    assert row(text, "contiguous, torch SDPA") == (
        "contiguous, torch SDPA 108 ms 3.29x 1.16 GB/s, 97.4 to 130 ms"
    )
    assert row(text, "contiguous, max 131,072") == (
        "contiguous, max 131,072 16.0 GiB 1.00x 91.8% wasted, 1,234 fit in 24 GiB"
    )
    assert row(text, "paged, blocks of 16") == (
        "paged, blocks of 16 1.50 GiB 0.09x 91.8% wasted, 1,234 fit in 24 GiB"
    )


def test_at_80_columns_the_longest_rows_are_two_lines():
    on_gpu = [
        times(0.0612, name=name, gigabytes_per_s=2054.6, bandwidth_share=0.684)
        for name in ("contiguous, torch", "paged, torch", "paged, triton")
    ]
    decode = record().decode.model_copy(update={"timings": on_gpu})
    kernels = [kernel(LONG_NAME), kernel("triton")]
    text = printed(record(decode=decode, kernels=kernels))
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= 80
    sections = {
        words: lines.index(next(line for line in lines if line.startswith(words)))
        for words in ("cross-check", "decode time", "cache memory")
    }
    assert sections["decode time"] - sections["cross-check"] <= 1 + 2 + 2 + 1
    assert sections["cache memory"] - sections["decode time"] <= 1 + 3 * 2 + 1
    together = "".join(text.split())
    assert "2,055GB/s(68%ofcopy),0.055to0.073ms" in together.replace("\n", "")
    assert "…" in text  # the beginning of a path is what its reader knows
    assert "py:attention_v2" in text


def test_narrow_terminals_fold_and_lose_nothing_that_matters():
    text = printed(record(kernels=[kernel("k.py:f", complete=False, failure=failure())]), width=40)
    assert max(cell_len(line) for line in text.splitlines() if "pagedbench" not in line) <= 40
    assert "failed" in text


# Words


def test_a_wrong_kernel_gets_a_panel_with_everything_to_act_on():
    text = printed(failure_panel("k.py:f", failure()))
    assert text.startswith("╭─ k.py:f is wrong ─")
    words = " ".join(text.replace("│", " ").split())
    law = next(check.law for check in CHECKS if check.name == "truth")
    for label, value in (
        ("check", f"truth: {law}"),
        ("seen", failure().findings[0]),
        ("problem", SPEC),
        ("drawn as", failure().first_problem),
        ("saved to", failure().saved_to),
    ):
        assert f"{label} {value}" in words
    bare = printed(failure_panel("k", failure(first_problem=SPEC, saved_to=None, status="crashed")))
    assert "drawn as" not in bare
    assert "nowhere: the folder cannot be written" in bare
    assert bare.startswith("╭─ k crashed ─")


def test_the_replay_command_stands_on_one_line_whatever_the_width():
    wrong = record(kernels=[kernel("k.py:f", complete=False, failure=failure())], verdict="wrong")
    for width in (40, 80, 200):
        lines = printed(wrong, width).splitlines()
        assert lines[lines.index("replay it:") + 1] == f"  {failure().replay}"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"asked": 1, "problems": 1, "checks": {"truth": {"passed": 1}}},
            "right 1 problem, 1 check",
        ),
        ({"problems": 3}, "right 3 problems (there are no more),"),
        (
            {"problems": 290, "checks": {"truth": {"passed": 290, "not supported": 10}}},
            "right 290 problems, 290 checks,",
        ),
        ({"problems": 7, "complete": False}, "incomplete 7 of 300 problems, 591 checks"),
        (
            {"problems": 0, "complete": False, "checks": {}},
            "not run 0 of 300 problems, 0 checks",
        ),
        (
            {"problems": 12, "complete": False, "failure": failure()},
            "failed truth, after 12 problems",
        ),
        (
            {"problems": 1, "complete": False, "failure": failure(status="crashed")},
            "crashed truth, after 1 problem",
        ),
    ],
)
def test_a_kernels_row_says_what_came_of_it(changes, line):
    text = printed(record(kernels=[kernel("k.py:f", **changes)]))
    assert row(text, "k.py:f").startswith(f"k.py:f {line}")
    assert ("10 not supported" in " ".join(text.split())) == ("not supported" in str(changes))


@pytest.mark.parametrize(
    ("value", "shown"), [(0.06121, "0.061"), (1.616, "1.62"), (13.37, "13.4"), (1320.2, "1,320")]
)
def test_times_keep_three_digits(value, shown):
    decode = record().decode.model_copy(update={"timings": [times(value)]})
    assert f" {shown} ms " in printed(record(decode=decode))


def test_the_last_lines_say_on_what_and_how_it_ended():
    text = printed(record(verdict="incomplete", exit_code=130))
    assert text.startswith(
        "mooncake-conv: 12,031 requests, mean prompt 12,035 and output 343 tokens"
    )
    words = " ".join(text.split())
    assert "decode: 32 running requests, 30,693 tokens, one layer of 32/8 heads of 128," in words
    assert "NVIDIA H100 80GB HBM3, torch threads 128, torch 2.13.0+cu130, triton 3.9.0" in words
    assert text.splitlines()[-1] == "incomplete in 31 s, seed 5, exit code 130"
    untimed = printed(record(decode=None))
    assert row(untimed, "not run") == "not run"
    assert "decode: " not in untimed


# Expected failures and coverage


def test_a_kernel_that_failed_only_as_expected_is_said_to_with_the_reasons():
    checks = {"truth": {"passed": 297, "failed as expected": 3}}
    stale = expected(state="no longer fails", said="k.py:f alone no longer fails")
    waived = kernel("k.py:f", checks=checks, expected=[expected(), stale])
    text = printed(
        record(kernels=[waived], verdict="as expected", warnings=["k.py:f alone no longer fails"])
    )
    assert row(text, "k.py:f").startswith("k.py:f as expected 300 problems, 297 checks,")
    assert "3 failed as expected" in " ".join(text.split())
    assert text.splitlines()[-3:] == [
        f"expected  {expected().said}",
        "warning   k.py:f alone no longer fails",
        "as expected in 31 s, seed 5, exit code 0",
    ]


def test_a_kernels_row_counts_the_cells_that_were_shown_and_names_what_saw_nothing():
    coverage = covered()
    shown = sum(cell.state == "passed" for row in coverage for cell in row.cells.values())
    missing = sum(cell.state == "not run" for row in coverage for cell in row.cells.values())
    assert shown > 10
    text = " ".join(printed(record()).split())
    assert f"coverage {shown}/{shown + missing}, memory not run" in text


NO_WINDOW = Capabilities(variants=frozenset({"lse"}), kv_dtypes=frozenset({"e4m3"}))


def test_the_matrix_fits_80_columns_and_shows_each_state_by_its_sign():
    text = "\n".join(
        line.plain for line in matrix(kernel(coverage=covered(NO_WINDOW, alone=Status.FAILED)))
    )
    assert max(map(cell_len, text.splitlines())) <= 80
    cells = {line[:16].strip(): line[16:].split() for line in text.splitlines()}
    names = [check.name for check in CHECKS]
    truth, alone, growth = (names.index(name) for name in ("truth", "alone", "growth"))
    # What the problem shows and what it does not; what is not declared; what nothing can show.
    assert (cells["bf16"][truth], cells["bf16"][alone]) == ("12", "!12")
    assert (cells["fp32"][truth], cells["fp32"][alone]) == ("?", "?")
    assert set(cells["window"]) == set(cells["e5m2"]) == set(cells["prefill"]) == {"-"}
    assert (cells["bf16"][growth], cells["decode"][growth]) == ("-", ".")
    assert set(cells["e4m3"]) == {"?", "-"}
    assert "memory: not run: only Triton kernels" in text
    for sign in ("!N failed", "~N failed as expected", "? not run", "- not supported"):
        assert sign in text
    waived = matrix(kernel(coverage=covered(truth=Status.EXPECTED)))
    assert any("~12" in line.plain for line in waived)


def test_each_check_stands_above_its_own_column():
    lines = [line.plain for line in matrix(kernel(coverage=covered()))]
    (counts,) = [line for line in lines if line.startswith("  bf16")]
    for check in ("truth", "alone"):
        (header,) = [line for line in lines if re.search(rf" {check}( |$)", line)]
        end = header.index(check) + len(check)
        assert counts[:end].endswith("12"), check
    assert counts.count("12") == 2


def test_the_matrix_is_printed_for_every_kernel_and_without_markup():
    console = Console(file=StringIO(), width=80)
    show_coverage(record(kernels=[kernel("torch"), kernel(ODD_NAME)]), console)
    text = console.file.getvalue()
    assert "torch: problems by what they show and by check" in text
    assert f"{ODD_NAME}: problems by what they show and by check" in text


def test_markdown_has_a_table_for_each_kernel_in_words():
    coverage = covered(NO_WINDOW, alone=Status.FAILED, truth=Status.EXPECTED)
    subject = kernel("k.py:f", coverage=coverage, expected=[expected()])
    text = markdown(record(kernels=[kernel("torch"), subject]))
    assert text.count("### `") == 2
    table = text.partition("### `k.py:f`")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["", *(check.name for check in CHECKS)]
    assert {len(cells) for cells in rows} == {len(CHECKS) + 1}
    by_feature = {cells[0].strip("`"): dict(zip(rows[0], cells, strict=True)) for cells in rows}
    assert by_feature["dtype=bf16"]["alone"] == "**12** of 12 failed"
    assert by_feature["dtype=bf16"]["truth"] == "**12** of 12 failed as expected"
    assert by_feature["dtype=fp32"]["truth"] == "not run"
    assert by_feature["window"]["truth"] == "not supported"
    assert by_feature["decode"]["growth"] == "no problem shows it"
    assert "12 passed" in text  # of the other kernel
    assert "`memory` was not run: only Triton kernels" in table
    assert expected().said in table
    assert "seed 5, NVIDIA H100 80GB HBM3, torch 2.13.0+cu130" in text


# Markup and colour


@pytest.mark.parametrize("width", [80, 200])
def test_what_looks_like_markup_is_printed_as_it_is(width):
    odd = failure(
        findings=["raised KeyError: '[bold]x[/bold]' at k.py:100: [/]"],
        replay=replay_command(ODD_NAME, "cpu", SPEC),
        saved_to="[link]/failures.txt",
    )
    stream = record().stream.model_copy(update={"name": "[i]trace[/i]:100:"})
    machine = record().environment.model_copy(update={"device": "[b]GPU[/b]"})
    wrong = record(
        kernels=[kernel(ODD_NAME, complete=False, failure=odd)], stream=stream, environment=machine
    )
    text = printed(wrong, width)
    assert f"{ODD_NAME} is wrong" in text
    assert row(text, ODD_NAME[:20]).startswith(ODD_NAME[:20])
    for part in (odd.findings[0], odd.replay, odd.saved_to, "[i]trace[/i]:100:", "[b]GPU[/b]"):
        assert part in text
    verdicts = [Verdict("truth", Status.FAILED, tuple(odd.findings))]
    console = Console(file=StringIO(), width=width)
    show_replay(ODD_NAME, Replay(AttentionProblem.parse(SPEC), verdicts, None), console)
    replayed = console.file.getvalue()
    assert replayed.startswith(f"{ODD_NAME} on {SPEC}\n")
    assert "[bold]x[/bold]" in replayed


def test_only_a_terminal_gets_colour():
    wrong = record(kernels=[kernel(complete=False, failure=failure())], verdict="wrong")
    assert "\x1b" not in printed(wrong)
    coloured = printed(wrong, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[31m *failed", coloured)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == printed(wrong)


# Replay


def test_bytes_that_are_moved_again_show():
    console = Console(file=StringIO(), width=80)
    query = {"loaded": 3000, "loaded_distinct": 2000, "stored": 0, "stored_distinct": 0}
    out = {"loaded": 0, "loaded_distinct": 0, "stored": 2000, "stored_distinct": 2000}
    problem = AttentionProblem.parse(SPEC)
    show_replay("k", Replay(problem, [], {"query": query, "out": out}), console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["query", "3,000", "1.50x"] in rows
    assert ["out", "2,000", "1.00x"] in rows


def test_a_replay_shows_every_check_that_applies_also_one_that_was_not_run():
    problem = AttentionProblem.parse("(q2 k9) d32 b16 bf16")
    verdicts = [
        Verdict("truth", Status.PASSED),
        Verdict("repeated", Status.NOT_SUPPORTED, ("dtype bf16",)),
        Verdict("last-row", Status.CRASHED, ("the kernel's process gave no answer",)),
    ]
    console = Console(file=StringIO(), width=80)
    show_replay("k", Replay(problem, verdicts, None), console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    law = next(check.law for check in CHECKS if check.name == "truth").split()
    assert ["truth", "passed", *law[:6]] in [cells[:8] for cells in rows]
    assert ["repeated", "not", "supported", "dtype", "bf16"] in rows
    assert ["last-row", "crashed", "the", "kernel's", "process"] in [cells[:5] for cells in rows]
    for check in CHECKS:
        said = check.name in {verdict.check for verdict in verdicts}
        unsaid = [check.name, "not", "run", "the", "kernel", "hung", "before"] in rows
        assert unsaid == (check.applies(problem) and not said)
