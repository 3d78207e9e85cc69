"""Figures of compiled kernels as counters: from whatever the tree's own command writes."""

import sys
import threading
from pathlib import Path

import pytest

from bench.gate.contestant import Contestant, Side
from bench.gate.counters import compare_counters
from bench.gate.machine_code import compiled_counters
from bench.gate.run import run_gate
from bench.gate.turns import GateFailure
from helpers import gate_records, gate_toys

COMMAND = """
import json, sys

def main():
    assert sys.argv[1:3] == ["compile", "--json"], sys.argv
    launch = dict(kernel="decode_kernel", registers={registers}, spill_bytes=0, stack_bytes=0,
                  spill_instructions=0, shared_bytes=1024, instructions={instructions},
                  loop=dict(instructions=100))
    good = dict(target="sm_90", variant="decode", figures=dict(failure=None, launches=[launch] * 2))
    bad = dict(target="sm_80", variant="decode", figures=dict(failure="no", launches=[]))
    with open(sys.argv[3], "w") as file:
        json.dump(dict(results=[good, bad]), file)
    sys.exit({code})
"""


def side(folder: Path, **values: int) -> Side:
    tree = gate_toys.tree(folder, "tree")
    text = COMMAND.format(**{"registers": 64, "instructions": 1000, "code": 0, **values})
    (tree / "bench" / "cli.py").write_text(text)
    (tree / "bench" / "compile.py").write_text("")
    return Side(gate_records.contestant(), tree, sys.executable)


def test_figures_are_counters_by_target_variant_and_kernel(tmp_path: Path) -> None:
    # 1 says that something is worse than a stored baseline: there are figures all the same.
    found = compiled_counters(side(tmp_path, code=1), stop=threading.Event())
    assert set(found) == {"compiled/sm_90/decode"}, "what does not compile has no figures"
    counters = found["compiled/sm_90/decode"]
    assert counters["registers.decode_kernel"].value == 64
    assert counters["instructions.loop.decode_kernel#1"].value == 100
    assert len(counters) == 14


def test_one_register_more_fails_and_a_few_instructions_do_not(tmp_path: Path) -> None:
    stop = threading.Event()
    base = compiled_counters(side(tmp_path / "base"), stop=stop)["compiled/sm_90/decode"]
    head = compiled_counters(side(tmp_path / "head", registers=65, instructions=1015), stop=stop)[
        "compiled/sm_90/decode"
    ]
    worse = {
        each.name: each.fails
        for each in compare_counters("compiled/sm_90/decode", base, head, {})
        if each.verdict == "worse"
    }
    assert worse == {
        "registers.decode_kernel": True,
        "registers.decode_kernel#1": True,
        "instructions.decode_kernel": False,
        "instructions.decode_kernel#1": False,
    }


def test_a_tree_without_the_command_has_none(tmp_path: Path) -> None:
    bare = gate_toys.tree(tmp_path, "tree")
    stop = threading.Event()
    assert compiled_counters(Side(gate_records.contestant(), bare, sys.executable), stop=stop) == {}


def test_a_command_that_fails_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(GateFailure, match="ended with 4"):
        compiled_counters(side(tmp_path, code=4), stop=threading.Event())


def test_a_run_compares_them(tmp_path: Path) -> None:
    base, head = side(tmp_path / "base").tree, side(tmp_path / "head", registers=80).tree
    plan = gate_toys.plan(base, head, compiled=True, benchmarks=("toy/counted",))
    record = run_gate(plan)
    assert (record.verdict, record.exit_code) == ("fail", 1)
    assert record.reason == "worse: compiled/sm_90/decode"
    assert plan.base == Contestant(asked=str(base))
