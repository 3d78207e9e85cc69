"""The report at 80 columns: nothing cramped, nothing taken for markup, no colour in a log."""

import re
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.check.coverage import show_coverage
from bench.check.coverage_markdown import markdown
from bench.check.record import (
    CheckRecord,
    DecodeTimes,
    Failure,
    KernelRecord,
    TimingRecord,
    replay_command,
)
from bench.check.report import show, show_replay
from bench.check.search import Replay
from bench.machine.environment import Environment
from bench.workloads.need import MemoryNeed
from bench.workloads.record import NamedStream
from helpers.snapshots import assert_as_stored
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


def wrong(name: str = "k.py:f", **changes) -> KernelRecord:
    return kernel(name, complete=False, failure=failure(**changes))


def printed(what: CheckRecord, width: int = 80, **options) -> str:
    console = Console(file=StringIO(), width=width, **options)
    show(what, console)
    return console.file.getvalue()


def replayed(name: str, spec: str, verdicts: list[Verdict], moved=None, **options) -> str:
    console = Console(file=StringIO(), width=80)
    problem = AttentionProblem.parse(spec)
    show_replay(name, Replay(problem, verdicts, moved, **options), console)
    return console.file.getvalue()


def timed(*timings: TimingRecord) -> dict:
    return {"decode": record().decode.model_copy(update={"timings": list(timings)})}


NO_WINDOW = Capabilities(variants=frozenset({"lse"}), kv_dtypes=frozenset({"e4m3"}))
ON_A_GPU = [
    times(0.0612, name=name, gigabytes_per_s=2054.6, bandwidth_share=0.684)
    for name in ("contiguous, torch", "paged, torch", "paged, triton")
]
WAIVED = kernel(
    "k.py:f",
    checks={"truth": {"passed": 297, "failed as expected": 3}},
    expected=[expected(), expected(state="no longer fails", said="k.py:f alone no longer fails")],
)
ENDS = {
    "one": {"asked": 1, "problems": 1, "checks": {"truth": {"passed": 1}}},
    "no more": {"problems": 3},
    "unable now and then": {
        "problems": 290,
        "checks": {"truth": {"passed": 290, "not supported": 10}},
    },
    "incomplete": {"problems": 7, "complete": False},
    "not run": {"problems": 0, "complete": False, "checks": {}},
    "failed": {"problems": 12, "complete": False, "failure": failure()},
    "crashed": {"problems": 1, "complete": False, "failure": failure(status="crashed")},
}
MIXED = kernel(
    "k.py:f",
    coverage=covered(NO_WINDOW, alone=Status.FAILED, truth=Status.EXPECTED),
    expected=[expected()],
)
REPORTS = {
    "right": record(),
    "a long name, on a GPU": record(
        **timed(*ON_A_GPU), kernels=[kernel(LONG_NAME), kernel("triton")]
    ),
    "wrong": record(kernels=[wrong()], verdict="wrong", decode=None, exit_code=1),
    "crashed as it was drawn, and not saved": record(
        kernels=[wrong(first_problem=SPEC, saved_to=None, status="crashed")], verdict="wrong"
    ),
    "how a search ends": record(kernels=[kernel(name, **how) for name, how in ENDS.items()]),
    "times keep three digits": record(**timed(*map(times, (0.06121, 1.616, 13.37, 1320.2)))),
    "a campaign": record(
        kernels=[
            kernel(
                "k.py:f",
                failures=[failure(seed=7, seen=41)],
                others={"alone: out": 3, "truth: raised KeyError at k.py:12": 1},
            )
        ],
        verdict="wrong",
        last_seed=99,
    ),
    "interrupted": record(verdict="incomplete", exit_code=130, decode=None),
    "as expected": record(
        kernels=[WAIVED], verdict="as expected", warnings=["k.py:f alone no longer fails"]
    ),
}


def test_reports_are_as_stored_and_fit_80_columns():
    parts = []
    for title, report in REPORTS.items():
        parts.append(f"=== {title}\n{printed(report)}")
        # What is there to be copied is never wrapped.
        copied = (f"  {failure().replay}", "also ", "expected ", "warning ")
        lines = [line for line in parts[-1].splitlines() if not line.startswith(copied)]
        assert max(map(cell_len, lines)) <= 80, title
    assert_as_stored("check-reports.txt", "\n".join(parts))


def test_coverage_is_as_stored_and_fits_80_columns():
    console = Console(file=StringIO(), width=80)
    show_coverage(record(kernels=[kernel(ODD_NAME), MIXED]), console)
    failing = kernel(coverage=covered(NO_WINDOW, alone=Status.FAILED))
    show_coverage(record(kernels=[failing]), console)
    text = console.file.getvalue()
    assert max(map(cell_len, text.splitlines())) <= 80
    assert_as_stored("check-coverage.txt", text)
    assert_as_stored("check-coverage.md", markdown(record(kernels=[kernel("torch"), MIXED])))


def test_a_replay_shows_every_check_that_applies_and_bytes_that_are_moved_again():
    query = {"loaded": 3000, "loaded_distinct": 2000, "stored": 0, "stored_distinct": 0}
    out = {"loaded": 0, "loaded_distinct": 0, "stored": 2000, "stored_distinct": 2000}
    verdicts = [
        Verdict("truth", Status.PASSED),
        Verdict("repeated", Status.NOT_SUPPORTED, ("dtype bf16",)),
        Verdict("last-row", Status.CRASHED, ("the kernel's process gave no answer",)),
    ]
    hung = replayed("k", "(q2 k9) d32 b16 bf16", verdicts)
    stopped = replayed("k", SPEC, verdicts[:1], complete=False)
    moved = replayed("k", SPEC, [], {"query": query, "out": out})
    assert_as_stored("check-replays.txt", "\n".join((hung, stopped, moved)))


def test_narrow_terminals_fold_and_the_replay_command_stands_on_one_line_whatever_the_width():
    what = record(kernels=[wrong()], verdict="wrong")
    for width in (40, 80, 200):
        lines = printed(what, width).splitlines()
        assert lines[lines.index("replay it:") + 1] == f"  {failure().replay}"
        assert max(cell_len(line) for line in lines if "pagedbench" not in line) <= width


@pytest.mark.parametrize("width", [80, 200])
def test_what_looks_like_markup_is_printed_as_it_is(width):
    odd = wrong(
        ODD_NAME,
        findings=["raised KeyError: '[bold]x[/bold]' at k.py:100: [/]"],
        replay=replay_command(ODD_NAME, "cpu", SPEC),
        saved_to="[link]/failures.txt",
    )
    stream = record().stream.model_copy(update={"name": "[i]trace[/i]:100:"})
    machine = record().environment.model_copy(update={"device": "[b]GPU[/b]"})
    text = printed(record(kernels=[odd], stream=stream, environment=machine), width)
    found = odd.failure
    for part in (
        *(f"{ODD_NAME} is wrong", f"\n  {ODD_NAME[:20]}", found.findings[0], found.replay),
        *(found.saved_to, "[i]trace[/i]:100:", "[b]GPU[/b]"),
    ):
        assert part in text
    verdicts = [Verdict("truth", Status.FAILED, tuple(found.findings))]
    again = replayed(ODD_NAME, SPEC, verdicts)
    assert again.startswith(f"{ODD_NAME} on {SPEC}\n")
    assert "[bold]x[/bold]" in again


def test_only_a_terminal_gets_colour():
    what = record(kernels=[wrong("torch")], verdict="wrong")
    assert "\x1b" not in printed(what)
    coloured = printed(what, force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[31m *failed", coloured)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == printed(what)
