"""`parametrize_with_checks` in somebody else's test file, run by a pytest of its own."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from bench.check.testing import ExpectedFailure, parametrize_with_checks
from helpers.places import ROOT
from paged.attention import paged_attention
from reference.attention.checks import CHECKS
from reference.attention.contract import Capabilities, declares
from reference.attention.problem import AttentionProblem
from subjects.loading import SubjectError

NAMES = [check.name for check in CHECKS]
URL = "https://example.org/issues/12"

# Decode and a few sizes only: most of the time here would be torch's otherwise.
KERNELS = """
import torch
from paged.attention import paged_attention
from reference.attention.contract import Capabilities, declares

small = Capabilities(
    dtypes=frozenset({"fp32", "bf16"}),
    kv_dtypes=frozenset({"e5m2"}),
    head_dims=frozenset({16, 32}),
    block_sizes=frozenset({1, 4}),
    variants=frozenset({"lse", "window"}),
)


@declares(small)
def right(batch):
    paged_attention(batch)


@declares(small)
def wrong_in_e5m2(batch):
    paged_attention(batch)
    if batch.key_cache.dtype == torch.float8_e5m2 and batch.max_seq_len > 40:
        batch.out.mul_(1.5)
"""


@dataclass
class Run:
    outcomes: dict[str, str]
    text: str
    code: int


@pytest.fixture
def theirs(tmp_path):
    """Run a test file of theirs that holds these lines; outcomes by the test's id."""
    (tmp_path / "my_kernel.py").write_text(KERNELS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def run(lines: str, *arguments: str) -> Run:
        (tmp_path / "test_theirs.py").write_text(
            "import pytest\n"
            "from bench.check.testing import ExpectedFailure, parametrize_with_checks\n"
            "from my_kernel import right, small, wrong_in_e5m2\n"
            f"{lines}\n"
            "def test_kernel(kernel, check):\n    check(kernel)\n"
        )
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
        }
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-v", "-rsx", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.findall(r"^test_theirs\.py::test_kernel\[(\S+)\] ([A-Z]+)", done.stdout, re.M)
        return Run(dict(found), done.stdout + done.stderr, done.returncode)

    return run


def test_a_right_kernel_passes_what_can_be_shown_and_the_rest_is_skipped_with_reasons(theirs):
    run = theirs("@parametrize_with_checks([right], problems=5)")
    skipped = {"right-memory", "right-last-row", "right-growth"}
    assert run.code == 0, run.text
    assert run.outcomes == {
        f"right-{name}": "SKIPPED" if f"right-{name}" in skipped else "PASSED" for name in NAMES
    }
    assert re.search(r"memory: (the kernel launched no|only) Triton kernel", run.text)
    assert "growth: my_kernel.py:right supports no problem that can show it" in run.text


@pytest.mark.slow
def test_a_wrong_kernel_fails_with_the_smallest_problem_and_the_command_that_replays_it(
    theirs, tmp_path
):
    run = theirs("@parametrize_with_checks([wrong_in_e5m2])", "-k", "truth or repeated")
    assert run.code == 1
    assert run.outcomes == {"wrong_in_e5m2-truth": "FAILED", "wrong_in_e5m2-repeated": "PASSED"}
    law = next(check.law for check in CHECKS if check.name == "truth")
    assert f"my_kernel.py:wrong_in_e5m2 fails truth: {law}" in run.text
    assert re.search(r"^  seen     out\[token 0, head 0\] is \S+, the truth is", run.text, re.M)
    spec = re.search(r"^  problem  (.*)$", run.text, re.M)[1]
    problem = AttentionProblem.parse(spec)
    assert [(r.query_len, r.seq_len) for r in problem.requests] == [(1, 41)]
    assert problem.kv_dtype == "e5m2"
    assert "Traceback" not in run.text
    command = re.search(r"^  replay   pagedbench (check .*)$", run.text, re.M)[1]
    again = subprocess.run(
        f"{sys.executable} -m bench.cli {command}",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1, again.stderr
    assert re.search(r"^truth +failed +out\[token 0, head 0\]", again.stdout, re.M)


EXPECTED = f"""
@parametrize_with_checks([wrong_in_e5m2], problems=40, expected_failures=[ExpectedFailure(
    kernel="wrong_in_e5m2", check="CHECK", when=WHEN, reason="{URL}")])
"""


def expecting(check: str, *when: str) -> str:
    return EXPECTED.replace("CHECK", check).replace("WHEN", str(list(when)))


def test_an_expected_failure_is_an_xfail_with_its_reason(theirs):
    run = theirs(expecting("truth", "kv_dtype=e5m2"), "-k", "truth or repeated")
    assert run.code == 0, run.text
    assert run.outcomes == {"wrong_in_e5m2-truth": "XFAIL", "wrong_in_e5m2-repeated": "PASSED"}
    said = r"wrong_in_e5m2 truth \[kv_dtype=e5m2\] fails (\d+) of (\d+) problems, as expected: "
    failed, covered = map(int, re.search(said + re.escape(URL), run.text).groups())
    assert 1 < failed < covered  # it goes on after the first; short contexts pass
    assert "warning" not in run.text


def test_what_an_expected_failure_does_not_cover_fails_all_the_same(theirs):
    run = theirs(expecting("truth", "kv_dtype=e5m2", "window"), "-k", "truth")
    assert run.outcomes == {"wrong_in_e5m2-truth": "FAILED"}
    spec = re.search(r"^  problem  (.*)$", run.text, re.M)[1]
    assert "kv=e5m2" in spec
    assert "window" not in spec


@pytest.mark.slow
def test_expected_failures_that_do_not_happen_are_warnings_of_their_own(theirs):
    stale = f"{expecting('repeated')}def test_stale(kernel, check):\n    check(kernel)\n\n"
    lines = stale + expecting("repeated", "head_dim=72")
    run = theirs(lines, "-k", "repeated")
    assert run.code == 0
    assert "2 passed" in run.text
    said = "StaleExpectedFailure: wrong_in_e5m2 repeated no longer fails: passed "
    assert said in run.text
    said = "UnmetExpectedFailure: wrong_in_e5m2 repeated [head_dim=72] met no problem"
    assert said in run.text
    room = "error::bench.check.testing"
    for strict, failed in (("Stale", "test_stale"), ("Unmet", "test_kernel")):
        run = theirs(lines, "-k", f"{failed} and repeated", "-W", f"{room}.{strict}ExpectedFailure")
        assert "1 failed" in run.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((f'reason="{URL}"', 'reason="todo"'), "reason='todo' for wrong_in_e5m2 truth: give the"),
        (('"wrong_in_e5m2"', '"right"'), "right truth is about none of my_kernel.py:wrong_in_e5m2"),
    ],
    ids=["reason", "kernel"],
)
def test_an_expected_failure_that_says_nothing_stops_the_file(change, said, theirs):
    run = theirs(expecting("truth").replace(*change))
    assert run.code == 2
    assert run.outcomes == {}
    assert said in run.text


def test_a_file_of_expected_failures_serves_tests_and_command_line(theirs, tmp_path):
    (tmp_path / "expected.toml").write_text(
        '[[expected]]\nkernel = "my_kernel.py:wrong_in_e5m2"\ncheck = "truth"\n'
        f'when = ["kv_dtype=e5m2"]\nreason = "{URL}"\n'
        f'[[expected]]\nkernel = "other.py:f"\ncheck = "truth"\nreason = "{URL}"\n'
    )
    lines = "@parametrize_with_checks([wrong_in_e5m2], expected_failures='expected.toml')"
    run = theirs(lines, "-k", "truth")
    assert run.outcomes == {"wrong_in_e5m2-truth": "XFAIL"}
    assert "UnmetExpectedFailure: expected.toml: other.py:f truth is about none of" in run.text


LOCAL = """
def made():
    def local(batch):
        batch.out.zero_()
    local.capabilities = small
    return local

@parametrize_with_checks([made()], problems=3)
"""


def test_a_kernel_that_the_command_line_cannot_find_is_said_to(theirs):
    run = theirs(LOCAL, "-k", "truth")
    assert run.code == 1
    assert "made.<locals>.local fails truth" in run.text
    assert "pagedbench check cannot find made.<locals>.local: make it a function" in run.text


def test_names_of_kernels_do_as_well_and_several_kernels_keep_their_ids(theirs):
    lines = "@parametrize_with_checks(['my_kernel.py:right', wrong_in_e5m2], problems=2)"
    run = theirs(lines, "--collect-only", "-q")
    assert re.findall(r"test_kernel\[(\S+)\]", run.text) == [
        f"{kernel}-{name}" for kernel in ("right", "wrong_in_e5m2") for name in NAMES
    ]


def test_a_triton_kernel_is_watched(theirs):
    run = theirs("@parametrize_with_checks(['triton'], problems=3)", "-k", "memory or truth")
    assert run.outcomes == {"triton-memory": "PASSED", "triton-truth": "PASSED"}, run.text


PEEKS = """
import triton
import triton.language as tl

@triton.jit
def peek(cache, element):
    tl.load(cache + element)

def right_but_peeks(batch):
    right(batch)
    for sequence, length in enumerate(batch.seq_lens.tolist()):
        offset = length % batch.block_size
        if offset:  # the slot after the last token is nobody's
            block = int(batch.block_table[sequence, length // batch.block_size])
            strides = batch.key_cache.stride()
            peek[(1,)](batch.key_cache, block * strides[0] + offset * strides[1])

right_but_peeks.capabilities = small

@parametrize_with_checks([right_but_peeks], problems=20)
"""


def test_a_read_that_changes_no_answer_is_seen_in_a_triton_kernel(theirs):
    run = theirs(PEEKS, "-k", "memory or truth")
    assert run.outcomes == {"right_but_peeks-memory": "FAILED", "right_but_peeks-truth": "PASSED"}
    assert re.search(r"^  seen     .*key_cache", run.text, re.M), run.text
    spec = re.search(r"^  problem  (.*)$", run.text, re.M)[1]
    (request,) = AttentionProblem.parse(spec).requests
    assert request.seq_len == 1
    assert "pagedbench check --kernel test_theirs.py:right_but_peeks" in run.text


# Arguments


def no_kernel(batch: object) -> None: ...


@declares(Capabilities(dtypes=frozenset()))
def supports_nothing(batch: object) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernels": []}, ValueError, r"kernels=\[\]: give a list with at least one kernel"),
        ({"kernels": "torch"}, ValueError, "kernels='torch': give a list"),
        ({"problems": 0}, ValueError, "problems=0: draw at least 1"),
        ({"seed": -1}, ValueError, "seed=-1: seeds are 0 to"),
        ({"device": "tpu"}, ValueError, "device='tpu': choose one of cpu, cuda"),
        ({"expected_failures": ["truth"]}, ValueError, "expected_failures has 'truth'; give"),
        ({"expected_failures": "absent.toml"}, ValueError, "absent.toml: No such file"),
        ({"kernels": ["nonsense"]}, SubjectError, "'nonsense' names no kernel"),
        ({"kernels": [3]}, SubjectError, "int is int, not callable"),
        ({"kernels": [supports_nothing]}, SubjectError, "dtypes is empty, so there is nothing"),
    ],
)
def test_arguments_that_cannot_be_met_are_refused_where_they_stand(arguments, error, message):
    usual = {"kernels": [no_kernel]}
    with pytest.raises(error, match=message):
        parametrize_with_checks(**{**usual, **arguments})


def test_a_kernel_of_a_package_goes_by_its_module():
    mark = parametrize_with_checks([paged_attention])
    checks = [parameters.values[1] for parameters in mark.args[1]]
    assert [check.name for check in checks] == ["paged.attention:paged_attention"] * len(NAMES)
    assert [repr(check) for check in checks] == NAMES
    assert all(check.replayable for check in checks)


def test_an_expected_failure_goes_to_its_check_alone():
    waiver = ExpectedFailure(kernel="no_kernel", check="alone", reason=URL)
    mark = parametrize_with_checks([no_kernel], expected_failures=[waiver])
    checks = [parameters.values[1] for parameters in mark.args[1]]
    assert {check.check.name: check.expected for check in checks if check.expected} == {
        "alone": (waiver,)
    }


def test_nothing_else_imports_pytest():
    probe = (
        "import sys, pkgutil, importlib, reference, bench\n"
        "for room in (reference, bench):\n"
        "    for found in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        if found.name not in ('bench.check.testing',) and '.suite' not in found.name:\n"
        "            importlib.import_module(found.name)\n"
        "assert 'pytest' not in sys.modules, 'imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
