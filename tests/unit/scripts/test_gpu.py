"""`make gpu`, rehearsed on a made-up device: the first real run must not fail on a typo."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench.cli import app
from bench.machine.roof import RoofRecord
from bench.machine.timing import CpuDevice, Interval
from bench.throughput.record import PointRecord, SubjectRecord
from bench.throughput.run import run_throughput
from scripts.gpu import run as gpu
from scripts.gpu.page import BEGIN, END, rendered, write_page
from scripts.gpu.steps import RECORD, STEPS, Step
from studies import sanitizer
from subjects.attention.resolve import check_name

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "performance.md"

COMMANDS = {step.name: list(step.command) for step in STEPS}
OURS = [step for step in STEPS if step.command[:2] == ("-m", "pagedbench")]

ROOF = RoofRecord(
    copy_bytes=1,
    copy_gigabytes_per_s=4000.0,
    copy_median_gigabytes_per_s=4000.0,
    read_gigabytes_per_s=4400.0,
    read_median_gigabytes_per_s=4400.0,
    matrix_dtype="bfloat16",
    matrix_teraflops_per_s=790.0,
    matrix_median_teraflops_per_s=790.0,
)


@pytest.mark.parametrize("step", OURS, ids=lambda step: step.name)
def test_every_command_is_one_that_pagedbench_takes(step: Step) -> None:
    group = typer.main.get_command(app)
    name, *words = step.command[2:]
    context = group.make_context("pagedbench", [name, *words])
    command = group.get_command(context, name)
    asked = command.make_context(name, words).params
    for kernel in (*(asked.get("kernel") or ()), *(asked.get("subject") or ())):
        check_name(kernel)
    assert str(asked["json"]) == RECORD


def test_tests_and_studies_are_there() -> None:
    files = [command[-1] for command in COMMANDS.values() if command[:2] == ["-m", "pytest"]]
    assert len(files) == len(list((ROOT / "tests" / "gpu").glob("test_*.py")))
    assert all((ROOT / file).is_file() for file in files)
    assert COMMANDS["sanitizer"][:2] == ["-m", sanitizer.__name__]


class MadeUp(CpuDevice):
    """A GPU as far as a plan asks for one."""

    kind = "cuda"


def timed(plan, device, *, progress, stop, ratio=1.1):
    """A record in which everybody was timed on every point that they can do."""
    empty = replace(plan, points=(), names=(), device="cpu", loops=None)
    record = run_throughput(empty, CpuDevice(), progress=progress, stop=threading.Event())
    points = []
    for point in plan.points:
        subjects = [
            SubjectRecord(
                name=name,
                subject=name,
                status="timed",
                cold_s=[1e-3],
                sm_mhz=[1980],
                seconds=Interval(1e-3, None, None),
                cycles=Interval(1.98e6, None, None),
                gigabytes_per_s=1.0,
                bandwidth_share=0.9,
                read_share=0.86,
                teraflops_per_s=1.0,
                matrix_share=0.61,
                times_of={other: Interval(ratio, None, None) for other in plan.names},
            )
            for name in plan.names
        ]
        points.append(
            PointRecord(
                name=point.name,
                kind=point.kind,
                batch=point.batch,
                ragged=point.ragged,
                block_size=point.problem.block_size,
                problem=str(point.problem),
                context_tokens=point.problem.cache_tokens,
                kv_bytes=point.kv_bytes,
                flops=point.flops,
                copies=3,
                cold=True,
                checked="",
                subjects=subjects,
            )
        )
    from bench.throughput.bars import judge_bars

    bars = judge_bars(points, device="cuda") if plan.with_bars else []
    made = {"device": "cuda", "clock": "cuda_event", "roof": ROOF, "points": points, "bars": bars}
    return record.model_copy(update={**made, "complete": True, "exit_code": 0})


@pytest.fixture
def on_a_made_up_device(monkeypatch, tmp_path):
    """Run a step's own command here; returns the record that it wrote."""
    monkeypatch.setattr("bench.commands.throughput.present_device", lambda _: "cuda")
    monkeypatch.setattr("bench.commands.throughput._check_sizes", lambda *_: None)
    monkeypatch.setattr("bench.machine.timing.device_of", lambda _: MadeUp())
    monkeypatch.setattr("bench.throughput.run.run_throughput", timed)
    monkeypatch.setattr("bench.throughput.run.measure_roof", lambda _: ROOF)

    def runs(name: str) -> dict:
        file = tmp_path / "record.json"
        words = [str(file) if word == RECORD else word for word in COMMANDS[name][2:]]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return json.loads(file.read_text())

    return runs


def test_the_bars_are_all_measured_by_one_command(on_a_made_up_device) -> None:
    record = on_a_made_up_device("bars")
    assert {(bar["what"], bar["why"]) for bar in record["bars"] if bar["got"] is None} == set()
    # 1.1 is too long for a cascade, and too slow beside vLLM's latent decode; float8 is as fast.
    missed = [bar["what"].split(" over ")[0] for bar in record["bars"] if bar["state"] == "missed"]
    assert sorted(set(missed)) == [
        "speed beside vllm-mla",
        "time of the cascade",
        "tokens a second,",
    ]


def test_the_page_has_what_a_record_has(on_a_made_up_device, tmp_path) -> None:
    machine = {"device": "NVIDIA H200", "driver": "1", "torch": "2", "triton": "3", "python": "4"}
    steps = {
        name: {**TAKEN, "record": record}
        for name, record in {
            "machine": {**machine, "clocks": "SM 1980 of 1980 MHz"},
            "bars": on_a_made_up_device("bars"),
            "splits": on_a_made_up_device("splits"),
            "invariance": on_a_made_up_device("invariance"),
            "gate, same code": GATE,
            "sanitizer": [{"bug": "b", "problem": "p", "ours": "load of x", "memcheck": "Invalid"}],
        }.items()
    }
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    write_page(page, {"steps": steps})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    for part in (
        "NVIDIA H200, driver 1, torch 2",
        "read 4,400 GB/s, copied 4,000 GB/s",
        "SM clocks 1980 to 1980 MHz",
        "| decode 64x4096 h8 g4 d128 b16 bf16 | 85% | 86.0% | 1.10 | 1.10 | 1.10 | 1.10 | 1.10 |",
        "h8 g4 d128 shared=2048 b16 bf16 | 1.02 | **1.10** |",
        "kernels.attention:batch_invariant_attention | 1.000 | 86% | 1.10 |",
        "| gpu/write | 2,000 | 50% | pass |",
        "1,980 to 1,980 MHz, 90 to 600 W, 40 to 40 degrees Celsius, slowed by power cap.",
        "| b | load of x | Invalid |",
        "by itself, exit code 0, 1 s: fine",
    ):
        assert part in text, part


TAKEN = {"ended": "by itself", "code": 0, "seconds": 1.0, "said": ["fine"], "absent": False}
STATE = {"sm_mhz": 1980, "power_w": 90.0, "temperature_c": 40, "slowed_by": []}
GATE = {
    "reason": "nothing is slower.",
    "base": {"environment": {"copy_gbs": 4000.0}},
    "launches": [{"gpu": [STATE, {**STATE, "power_w": 600.0, "slowed_by": ["power cap"]}]}],
    "counters": [{"benchmark": "gpu/write", "name": "bytes", "base": 2_000_000}],
    "benchmarks": [{"key": "gpu/write", "samples": [{"base_s": 1e-6}], "verdict": "pass"}],
}


def test_the_page_in_the_docs_is_written_by_the_same_code() -> None:
    _, _, rest = PAGE.read_text().partition(BEGIN)
    between, end, _ = rest.partition(END)
    assert end
    if "not run yet" in between and "NVIDIA" not in between:
        assert between == f"\n\n{rendered({'steps': {}})}\n"


# The runner


def step(name: str, code: str, **more) -> Step:
    return Step(name, "what", ("-c", code), **more)


RIGHT = step("right", f"open({RECORD!r}, 'w').write('[1]'); print('fine')")


LAST = step("last", "print('fine')")


@pytest.fixture
def gpu_run(tmp_path):
    """The exit code and the steps of the record."""
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")

    def runs(*steps: Step, words=()) -> tuple[int, dict]:
        folder = tmp_path / "gpu"
        code = gpu.main(["--folder", str(folder), "--page", str(page), *words], steps)
        file = folder / "record.json"
        return code, json.loads(file.read_text())["steps"] if file.is_file() else {}

    return runs


def test_what_is_done_is_not_done_again(gpu_run) -> None:
    code, steps = gpu_run(RIGHT)
    assert (code, steps["right"]["record"], steps["right"]["said"]) == (0, [1], ["fine"])
    code, again = gpu_run(RIGHT, step("more", "raise SystemExit(3)"))
    assert (code, again["right"]) == (0, steps["right"])


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([RIGHT, step("wrong", "raise SystemExit(1)")], 1),
        ([RIGHT, step("mistyped", "raise SystemExit(2)")], 4),
        ([RIGHT, step("absent", "raise SystemExit(2)", absent=True), LAST], 0),
        ([RIGHT, step("slow", "import time; time.sleep(60)", limit_s=0.3), LAST], 3),
    ],
    ids=lambda value: value[1].name if isinstance(value, list) else str(value),
)
def test_a_step_that_fails_is_said_and_ends_no_other(gpu_run, steps, code) -> None:
    got, taken = gpu_run(*steps)
    assert got == code
    assert taken[steps[-1].name]["seconds"] >= 0


def test_without_a_gpu_no_step_but_the_first_begins(gpu_run, capsys) -> None:
    code, taken = gpu_run(step("machine", f"raise SystemExit('no GPU here')  # {RECORD}"), RIGHT)
    assert (code, set(taken)) == (4, {"machine"})
    assert "no GPU here\nNo other step begins" in capsys.readouterr().out


def test_no_step_begins_that_may_not_fit(gpu_run) -> None:
    long = replace(RIGHT, name="long", limit_s=600.0)
    code, taken = gpu_run(long, replace(RIGHT, limit_s=5.0), words=["--minutes", "1"])
    assert (code, set(taken)) == (3, {"right"})


def test_the_end_of_the_process_is_the_end_of_a_step(tmp_path) -> None:
    """SIGTERM: the step is ended, what was done is kept, and nothing stays."""
    program = (
        "import sys\nfrom scripts.gpu import run\nfrom scripts.gpu.steps import Step\n"
        "sleeps = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        f"sys.exit(run.main(['--folder', {str(tmp_path)!r}], [Step('s', '', ('-c', sleeps))]))"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as process:
        log = tmp_path / "s.log"
        while not (log.is_file() and log.read_text().endswith("\n")):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    (taken,) = json.loads((tmp_path / "record.json").read_text())["steps"].values()
    assert taken["ended"] == "interrupted"


# compute-sanitizer


def test_a_memory_bug_is_hunted_and_launched(tmp_path) -> None:
    assert "keys_of_padding_read" in sanitizer.memory_bugs()
    found = sanitizer.hunted("keys_of_padding_read")
    assert "load of key_cache" in found["ours"]
    sanitizer.launch("", "(q1 k40) d16 b16 fp16")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo '========= COMPUTE-SANITIZER'; echo '========= Invalid read'; exit 86", "Invalid"),
        ("exit 0", ""),
        ("echo broken >&2; exit 3", "ended with 3: broken"),
    ],
)
def test_what_a_tool_says_is_read_from_its_lines(tmp_path, script, said) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    answers = sanitizer.said("b", "(q1 k1)", ["memcheck"], str(program))
    assert answers["memcheck"].startswith(said)
    assert bool(answers["memcheck"]) is bool(said)
