"""`pagedbench compile` as it is typed: exit codes, what is printed, and what is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.compile.run import start
from bench.machine.facts import version_of
from helpers.places import COMMAND
from kernels.compiled import baseline as baselines
from kernels.compiled.baseline import Baseline, TargetBaseline, read_baseline, write_baseline
from kernels.compiled.targets import TARGETS
from tests.unit.kernels.compiled.samples import variant_of

KERNELS = """
import os
import time

import torch
import triton
import triton.language as tl

from reference.attention.contract import Capabilities, declares


@triton.jit
def double_kernel(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2 * tl.load(source + at, mask=at < n, other=0.0), mask=at < n)


def double(batch):
    double_kernel[(8,)](batch.query, batch.out, batch.query.numel(), BLOCK=1024)


@triton.autotune([triton.Config({"BLOCK": size}) for size in (256, 512)], key=["n"])
@triton.jit
def tuned_kernel(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < n, other=0.0), mask=at < n)


def tuned(batch):
    tuned_kernel[(8,)](batch.query, batch.out, batch.query.numel())


@triton.jit
def leaving_kernel(source, target, n, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        if start > 100:
            break
        tl.store(target + start + tl.arange(0, BLOCK), 0.0)


def leaving(batch):
    leaving_kernel[(8,)](batch.query, batch.out, batch.query.numel(), BLOCK=1024)


def in_torch(batch):
    batch.out.zero_()


def asleep(batch):
    open("asleep", "w").close()
    time.sleep(600)


def aborting(batch):
    os.abort()


@declares(Capabilities(dtypes=frozenset({"fp32"})))
def in_float32(batch):
    double(batch)
"""

DOUBLE = "kernels_of_mine.py:double"
PROBLEM = "(q1 k16) h2 g4 d64 b16 bf16"


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """A process that compiles for sm_90, for all who only compare what it compiled."""
    with start(TARGETS["sm_90"], cache=tmp_path_factory.mktemp("cache")) as child:
        yield child


@pytest.fixture
def copied(child, monkeypatch):
    """The options that compile the block copy, in that child, which is not ended."""
    kept = SimpleNamespace(introduce=child.introduce, ask=child.ask, close=lambda: None)
    monkeypatch.setattr("bench.compile.run.start", lambda target, **_: kept)
    return ["--target", "sm_90", "--kernel", "copy"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command in this process, with a cache of its own, in a folder with the kernels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAGEDBENCH_COMPILE_CACHE", str(tmp_path / "cache"))
    Path("kernels_of_mine.py").write_text(KERNELS)

    def invoke(*arguments):
        return CliRunner().invoke(cli.app, ["compile", *arguments])

    return invoke


def a_baseline(path, *, triton=None, **variants):
    target = TargetBaseline(toolchain="ptxas 13.4", variants=variants)
    write_baseline(Baseline(triton=triton or version_of("triton"), targets={"sm_90": target}), path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "old.json"], "figures of triton 2.0.0, and this is"),
        (
            ["--kernel", "kernels_of_mine.py:in_float32", "--problem", PROBLEM, "--target=sm_90"],
            "nothing was compiled: it declares that it cannot do dtype bf16",
        ),
    ],
)
def test_usage_errors(run, arguments, message):
    a_baseline(Path("old.json"), triton="2.0.0")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.parametrize(("kind", "compiled"), [("attention", 2), ("latent", 1), ("merge", 0)])
def test_default_problems_are_those_of_the_kernels_kind(run, monkeypatch, kind, compiled):
    def ask(question):
        of = "latent" if "rope=" in question["problem"] else "attention"
        if of == kind:
            return {"failure": "not really compiled"}
        return {"unsupported": f"it declares that it cannot do kind {of}"}

    said = {"triton": version_of("triton"), "toolchain": "ptxas 13.4"}
    fake = SimpleNamespace(introduce=lambda: said, ask=ask, close=lambda: None)
    monkeypatch.setattr("bench.compile.run.start", lambda target, **_: fake)
    result = run("--kernel", "kernels_of_mine.py:in_float32", "--target=sm_90", "--json", "it.json")
    record = json.loads(Path("it.json").read_text())
    assert (len(record["results"]), record["refused"], record["complete"]) == (compiled, [], True)
    assert ("no default problem is of a kind" in result.stderr) is (compiled == 0)


def test_a_missing_baseline_is_said_and_fails_only_where_it_was_asked_for(run, copied, monkeypatch):
    monkeypatch.setattr(baselines, "FOLDER", Path.cwd())
    result = run(*copied)
    assert result.exit_code == 0, result.output
    assert f"not compared: there is no baseline for triton {version_of('triton')}" in result.stdout
    result = run(*copied, "--compare")
    assert result.exit_code == 2
    assert "there is no baseline for triton" in result.stderr


def test_a_baseline_that_has_none_of_it_is_no_comparison(run, copied):
    a_baseline(Path("other.json"), other=variant_of())
    arguments = [*copied, "--baseline", "other.json"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "not in the baseline: sm_90 copy bf16" in result.stdout
    result = run(*arguments, "--compare")
    assert result.exit_code == 2
    assert "other.json has none of these variants for sm_90 (ptxas" in result.stderr


def test_what_is_saved_compares_equal_and_what_is_doctored_does_not(run, copied):
    assert run(*copied, "--no-compare", "--save", "base.json").exit_code == 0
    result = run(*copied, "--baseline", "base.json", "--json", "record.json")
    assert result.exit_code == 0, result.output
    assert "beside base.json: 1 same" in result.stdout
    record = json.loads(Path("record.json").read_text())
    (launch,) = record["results"][0]["figures"]["launches"]
    assert launch["kernel"] == "copy_kernel"
    assert record["complete"]
    assert record["toolchains"]["sm_90"].startswith("ptxas ")

    text = Path("base.json").read_text()
    Path("base.json").write_text(text.replace('"store 16 B"', '"store 32 B"'))
    result = run(*copied, "--baseline", "base.json")
    assert result.exit_code == 1, result.output
    assert "- results fell from 32-byte stores to 16-byte stores" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("worse in ")


def test_foreign_kernels_each_get_their_own_result(run):
    names = ["double", "aborting", "tuned", "leaving", "in_torch"]
    kernels = [f"--kernel=kernels_of_mine.py:{name}" for name in names]
    result = run(*kernels, f"--problem={PROBLEM}", "--target=sm_90", "--lanes=1", "--json=r.json")
    assert result.exit_code == 1, result.output
    figures = {
        each["variant"].split()[0].rpartition(":")[2]: each["figures"]
        for each in json.loads(Path("r.json").read_text())["results"]
    }
    assert list(figures) == names
    (launch,) = figures["double"]["launches"]
    assert launch["constexprs"] == {"BLOCK": 1024}
    assert launch["memory"] == {"load 16 B": 1, "store 16 B": 1}
    assert launch["arguments"] == {"source": "*bf16:16", "target": "*bf16:16", "n": "i32:16"}
    (tuned,) = figures["tuned"]["launches"]
    assert tuned["constexprs"] == {"BLOCK": 256}
    assert "autotuned over 2 configurations" in figures["tuned"]["notes"][0]
    assert "break" in figures["leaving"]["failure"]
    assert "launched no Triton kernel" in figures["in_torch"]["failure"]
    assert "was killed by SIGABRT" in figures["aborting"]["failure"]
    assert f"kernels_of_mine.py:leaving {PROBLEM}: does not compile" in " ".join(
        result.stdout.split()
    )


def test_a_kernel_that_does_not_return_is_ended(run):
    asleep = ("--kernel=kernels_of_mine.py:asleep", f"--problem={PROBLEM}", "--target=sm_90")
    result = run(*asleep, "--time-limit=1", "--json=r.json")
    assert result.exit_code == 1, result.output
    (only,) = json.loads(Path("r.json").read_text())["results"]
    assert "gave no answer within 1 s" in only["figures"]["failure"]


def test_one_that_leads_nowhere_leaves_the_others_their_figures(run, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> started\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    kernels = ["--kernel=kernels_of_mine.py:gone", f"--kernel={DOUBLE}"]
    options = ["--problem", PROBLEM, "--target", "sm_90", "--engine-python", str(python)]
    result = run(*kernels, *options, "--json=r.json")
    assert result.exit_code == 2, result.output
    assert "bench.compile.worker" in Path("started").read_text(), "the interpreter that is named"
    assert "kernels_of_mine.py has no 'gone'; it offers" in result.stderr
    record = json.loads(Path("r.json").read_text())
    assert [each["variant"].split()[0] for each in record["results"]] == [DOUBLE]
    assert "kernels_of_mine.py has no 'gone'" in record["refused"][0]["reason"]
    assert not record["complete"]
    assert record["triton"] == version_of("triton")


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done(tmp_path):
    (tmp_path / "mine.py").write_text(KERNELS)
    command = [*COMMAND, "compile", "--target=sm_90", "--lanes=1", "--json=r.json"]
    command += [
        f"--problem={PROBLEM}",
        "--kernel=mine.py:double",
        "--kernel=mine.py:asleep",
        "--kernel=mine.py:tuned",
    ]
    environment = os.environ | {"PAGEDBENCH_COMPILE_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 120
        while not (tmp_path / "asleep").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "incomplete" in said
    record = json.loads((tmp_path / "r.json").read_text())
    assert not record["complete"]
    assert [each["variant"].split()[0] for each in record["results"]] == ["mine.py:double"]


@pytest.mark.slow
def test_figures_do_not_depend_on_process_cache_or_hash_seed(run, monkeypatch):
    one = ("--kernel", "decode bf16", "--target", "sm_90", "--no-compare", "--save")
    for seed, options in (
        ("0", (*one, "0.json", "--target", "gfx942")),
        ("1", (*one, "1.json")),  # finds what the first one compiled
    ):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        result = run(*options)
        assert result.exit_code == 0, result.output
    first, again = (read_baseline(Path(f"{seed}.json")).targets for seed in "01")
    assert first.keys() == {"sm_90", "gfx942"}
    assert again == {"sm_90": first["sm_90"]}
    # And what a process compiled afresh when the figures were stored.
    stored = baselines.built_in_path(version_of("triton"))
    for name, target in first.items():
        if stored.is_file():
            assert target.variants.items() <= read_baseline(stored).targets[name].variants.items()


def test_an_interpreter_without_triton_is_refused(run, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} -I -S "$@"\n')
    python.chmod(0o755)
    result = run("--kernel", DOUBLE, "--engine-python", str(python), "--problem", PROBLEM)
    assert result.exit_code == 2
    assert "it finds no triton" in result.output
