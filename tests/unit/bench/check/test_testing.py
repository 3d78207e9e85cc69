"""`parametrize_with_checks` in somebody else's test files, run by one pytest of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from dataclasses import dataclass, field

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.check.testing import ExpectedFailure, parametrize_with_checks
from helpers.places import ROOT
from paged.attention import paged_attention
from reference.attention.catalogue import CHECKS
from reference.attention.contract import Capabilities, capabilities_of, declares
from reference.attention.problem import AttentionProblem
from subjects.loading import SubjectError

NAMES = [check.name for check in CHECKS if check.concerns(Capabilities())]
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


def made():
    def local(batch):
        batch.out.zero_()
    local.capabilities = small
    return local
"""

# Leaves out what no test below asks for, and writes down what pytest says of each case.
CONFTEST = """
import json
import pathlib

def pytest_collection_modifyitems(config, items):
    def asked(item):
        only = getattr(item.module, "ONLY", None)
        return only is None or item.callspec.id.partition("-")[2] in only
    items[:] = filter(asked, items)

def say(**said):
    with open("said.jsonl", "a") as file:
        file.write(json.dumps(said) + "\\n")

def pytest_collectreport(report):
    if report.failed:
        say(case=report.nodeid, outcome="refused", text=str(report.longrepr))

def pytest_runtest_logreport(report):
    if report.when == "call":
        expected = hasattr(report, "wasxfail")
        text = report.wasxfail if expected else str(report.longrepr)
        say(case=report.nodeid, outcome="xfailed" if expected else report.outcome, text=text)

def pytest_warning_recorded(warning_message, nodeid):
    kind = warning_message.category.__name__
    place = nodeid or pathlib.Path(warning_message.filename).name  # of a file that is collected
    say(case=place, warning=f"{kind}: {warning_message.message}")
"""


def expecting(check: str, *when: str, problems: int = 40) -> str:
    return (
        f"@parametrize_with_checks([wrong_in_e5m2], problems={problems}, expected_failures=["
        f"ExpectedFailure(kernel='wrong_in_e5m2', check={check!r}, when={list(when)}, "
        f"reason='{URL}')])"
    )


def strict(kind: str) -> str:
    return f"@pytest.mark.filterwarnings('error::bench.check.testing.{kind}ExpectedFailure')\n"


EXPECTED_FILE = f"""
[[expected]]
kernel = "my_kernel.py:wrong_in_e5m2"
check = "truth"
when = ["kv_dtype=e5m2"]
reason = "{URL}"

[[expected]]
kernel = "other.py:f"
check = "truth"
reason = "{URL}"
"""

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

THEIRS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "right": ("@parametrize_with_checks([right], problems=5)", None),
    "wrong": ("@parametrize_with_checks([wrong_in_e5m2], problems=40)", ("truth", "repeated")),
    "expected": (expecting("truth", "kv_dtype=e5m2"), ("truth",)),
    "narrow": (expecting("truth", "kv_dtype=e5m2", "window"), ("truth",)),
    "stale": (expecting("repeated", problems=4), ("repeated",)),
    "unmet": (expecting("repeated", "head_dim=72", problems=4), ("repeated",)),
    "stale_strictly": (strict("Stale") + expecting("repeated", problems=4), ("repeated",)),
    "unmet_strictly": (
        strict("Unmet") + expecting("repeated", "head_dim=72", problems=4),
        ("repeated",),
    ),
    "no_reason": (expecting("truth").replace(URL, "todo"), ("truth",)),
    "no_kernel": (expecting("truth").replace("'wrong_in_e5m2'", "'right'"), ("truth",)),
    "file": (
        "@parametrize_with_checks([wrong_in_e5m2], problems=40, expected_failures='expected.toml')",
        ("truth",),
    ),
    "local": ("@parametrize_with_checks([made()], problems=3)", ("truth",)),
    "triton": ("@parametrize_with_checks(['triton'], problems=3)", ("memory", "truth")),
    "peeks": (PEEKS, ("memory", "truth")),
}
"""What stands in a test file of theirs, by its name, and the checks that are run (None: all)."""


@dataclass
class Cases:
    """What pytest said of one test file."""

    outcomes: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.texts.values())

    @property
    def problem(self) -> str:
        return re.search(r"^  problem  (.*)$", self.text, re.M)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project of somebody else, with all their test files."""
    folder = tmp_path_factory.mktemp("theirs")
    for name, text in {
        "my_kernel.py": KERNELS,
        "conftest.py": CONFTEST,
        "pytest.ini": "[pytest]\n",
        "expected.toml": EXPECTED_FILE,
    }.items():
        (folder / name).write_text(text)
    for name, (lines, only) in THEIRS.items():
        (folder / f"test_{name}.py").write_text(
            "import pytest\n"
            "from bench.check.testing import ExpectedFailure, parametrize_with_checks\n"
            "from my_kernel import made, right, small, wrong_in_e5m2\n"
            f"ONLY = {only}\n{lines}\ndef test_kernel(kernel, check):\n    check(kernel)\n"
        )
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    """Run all of their test files once; the cases of each by its name."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            "--continue-on-collection-errors",
        ],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = {name: Cases() for name in THEIRS}
    for line in (folder / "said.jsonl").read_text().splitlines():
        said = json.loads(line)
        name, case = re.match(r"test_(\w+)\.py(?:::test_kernel\[(.*)\])?", said["case"]).groups()
        if "warning" in said:
            found[name].warnings.append(said["warning"])
        else:
            found[name].outcomes[case] = said["outcome"]
            found[name].texts[case] = said["text"]
    return found


SHOWS_NOTHING = {"right-memory", "right-last-row", "right-growth"}
WRONG_TRUTH, WRONG_REPEATED = "wrong_in_e5m2-truth", "wrong_in_e5m2-repeated"
REFUSED = {None: "refused"}
OUTCOMES = {
    "right": {f"right-{name}": "passed" for name in NAMES}
    | dict.fromkeys(SHOWS_NOTHING, "skipped"),
    "wrong": {WRONG_TRUTH: "failed", WRONG_REPEATED: "passed"},
    "expected": {WRONG_TRUTH: "xfailed"},
    "narrow": {WRONG_TRUTH: "failed"},
    "stale": {WRONG_REPEATED: "passed"},
    "unmet": {WRONG_REPEATED: "passed"},
    "stale_strictly": {WRONG_REPEATED: "failed"},
    "unmet_strictly": {WRONG_REPEATED: "failed"},
    "no_reason": REFUSED,
    "no_kernel": REFUSED,
    "file": {WRONG_TRUTH: "xfailed"},
    "local": {"made.<locals>.local-truth": "failed"},
    "triton": {"triton-memory": "passed", "triton-truth": "passed"},
    "peeks": {"right_but_peeks-memory": "failed", "right_but_peeks-truth": "passed"},
}
WARNINGS = {
    "stale": "StaleExpectedFailure: wrong_in_e5m2 repeated no longer fails: passed ",
    "unmet": "UnmetExpectedFailure: wrong_in_e5m2 repeated [head_dim=72] met no problem",
    "file": (
        "UnmetExpectedFailure: expected.toml: other.py:f truth is about none of "
        "my_kernel.py:wrong_in_e5m2; remove or correct it"
    ),
}


def test_a_kernel_passes_fails_or_is_skipped_and_expected_failures_that_do_not_happen_warn(theirs):
    assert {name: cases.outcomes for name, cases in theirs.items()} == OUTCOMES
    for name, cases in theirs.items():
        assert len(cases.warnings) == (name in WARNINGS), name
        assert cases.warnings == [] or cases.warnings[0].startswith(WARNINGS[name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("right", r"memory: (the kernel launched no|only) Triton kernel"),
        ("right", "growth: my_kernel.py:right supports no problem that can show it"),
        ("wrong", r"(?m)^  seen     out\[token 0, head 0\] is \S+, the truth is"),
        ("no_reason", "reason='todo' for wrong_in_e5m2 truth: give the"),
        ("no_kernel", "right truth is about none of my_kernel.py:wrong_in_e5m2"),
        ("local", r"made\.<locals>\.local fails truth"),
        ("local", r"pagedbench check cannot find made\.<locals>\.local: make it a function"),
        ("peeks", "(?m)^  seen     .*key_cache"),
        ("peeks", r"pagedbench check --kernel test_peeks\.py:right_but_peeks"),
    ],
)
def test_what_a_case_says(name, said, theirs):
    assert re.search(said, theirs[name].text), theirs[name].text


def test_a_wrong_kernel_fails_with_the_smallest_problem_and_the_command_that_replays_it(
    theirs, folder
):
    wrong = theirs["wrong"]
    law = next(check.law for check in CHECKS if check.name == "truth")
    assert f"my_kernel.py:wrong_in_e5m2 fails truth: {law}" in wrong.text
    problem = AttentionProblem.parse(wrong.problem)
    assert [(r.query_len, r.seq_len) for r in problem.requests] == [(1, 41)]
    assert problem.kv_dtype == "e5m2"
    assert "Traceback" not in wrong.text
    command = re.search(r"^  replay   pagedbench (check .*)$", wrong.text, re.M)[1]
    with chdir(folder):
        again = CliRunner().invoke(cli.app, shlex.split(command), env={"COLUMNS": "80"})
    assert again.exit_code == 1, again.stderr
    assert re.search(r"^truth +failed +out\[token 0, head 0\]", again.stdout, re.M)


def test_an_expected_failure_goes_on_and_says_its_reason(theirs):
    said = r"wrong_in_e5m2 truth \[kv_dtype=e5m2\] fails (\d+) of (\d+) problems, as expected: "
    failed, covered = map(int, re.search(said + re.escape(URL), theirs["expected"].text).groups())
    assert 1 < failed < covered  # it goes on after the first; short contexts pass


def test_what_an_expected_failure_does_not_cover_fails_all_the_same(theirs):
    spec = theirs["narrow"].problem
    assert "kv=e5m2" in spec
    assert "window" not in spec


def test_a_read_that_changes_no_answer_is_made_small(theirs):
    (request,) = AttentionProblem.parse(theirs["peeks"].problem).requests
    assert request.seq_len == 1


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


def test_a_kernel_of_a_package_goes_by_its_module_and_several_keep_their_ids():
    able = capabilities_of(paged_attention)
    names = [check.name for check in CHECKS if check.concerns(able)]
    mark = parametrize_with_checks(["torch", paged_attention], problems=2)
    assert [parameters.id for parameters in mark.args[1]] == [
        f"{kernel}-{name}" for kernel in ("torch", "paged_attention") for name in names
    ]
    checks = [parameters.values[1] for parameters in mark.args[1]][len(names) :]
    assert [check.name for check in checks] == ["paged.attention:paged_attention"] * len(names)
    assert [repr(check) for check in checks] == names
    assert all(check.replayable for check in checks)


def test_an_expected_failure_goes_to_its_check_alone():
    waiver = ExpectedFailure(kernel="no_kernel", check="alone", reason=URL)
    mark = parametrize_with_checks([no_kernel], expected_failures=[waiver])
    checks = [parameters.values[1] for parameters in mark.args[1]]
    assert {check.check.name: check.expected for check in checks if check.expected} == {
        "alone": (waiver,)
    }


def test_nothing_else_imports_pytest():
    imports = re.compile(r"(?m)^\s*(import|from) pytest\b")
    files = [file for room in ("reference", "bench") for file in (ROOT / room).rglob("*.py")]
    found = {str(file.relative_to(ROOT)) for file in files if imports.search(file.read_text())}
    assert found == {"bench/check/testing.py", "bench/fuzz/testing.py"}
