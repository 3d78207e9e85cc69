"""Figures of compiled kernels as counters: from whatever the tree's own command writes."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gate.benchmark import Count
from bench.gate.contestant import Side
from bench.gate.counters import compare_counters
from bench.gate.machine_code import compiled_counters, could_differ
from bench.gate.run import run_gate
from bench.gate.turns import GateFailure
from helpers import gate_records, gate_toys

COMMAND = """
import json, sys

def main():
    assert sys.argv[1:3] == ["compile", "--json"], sys.argv
    assert sys.argv[4:] == ["--target", "sm_90"], sys.argv
    print("x" * 200_000, file=sys.stderr)  # more than a pipe holds
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
    return Side(gate_records.contestant(), tree, sys.executable, tree)


def test_figures_are_counters_by_target_variant_and_kernel(tmp_path: Path) -> None:
    # 1 says that something is worse than a stored baseline: there are figures all the same.
    found = compiled_counters(side(tmp_path, code=1), stopped=bool)
    assert set(found) == {"compiled/sm_90/decode", "compiled/sm_80/decode"}
    broken = {name: each.value for name, each in found["compiled/sm_80/decode"].items()}
    assert broken == {"failures": 1}, "what does not compile has no figures"
    counters = found["compiled/sm_90/decode"]
    assert counters["registers.decode_kernel"].value == 64
    assert counters["instructions.loop.decode_kernel#1"].value == 100
    assert len(counters) == 15


def test_one_register_more_fails_and_an_instruction_or_two_do_not(tmp_path: Path) -> None:
    base = compiled_counters(side(tmp_path / "base"), stopped=bool)["compiled/sm_90/decode"]
    head = compiled_counters(
        side(tmp_path / "head", registers=65, instructions=1004), stopped=bool
    )["compiled/sm_90/decode"]
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
    tree = gate_toys.tree(tmp_path, "tree")
    bare = Side(gate_records.contestant(), tree, sys.executable, tree)
    assert compiled_counters(bare, stopped=bool) == {}


def test_a_command_that_fails_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(GateFailure, match="ended with 4"):
        compiled_counters(side(tmp_path, code=4), stopped=bool)


def test_a_kernel_that_compiles_no_more_fails(tmp_path: Path) -> None:
    broken = compiled_counters(side(tmp_path), stopped=bool)["compiled/sm_80/decode"]
    (record,) = compare_counters("compiled", {"failures": Count(0, "")}, broken, {})
    assert record.fails
    assert not compare_counters("compiled", broken, {"failures": Count(0, "")}, {})[0].fails


def test_the_same_kernels_under_the_same_interpreter_are_not_compiled(tmp_path: Path) -> None:
    one, other = side(tmp_path / "base"), side(tmp_path / "head", registers=80)
    assert not could_differ({"base": one, "head": other}), "neither has a kernel"
    (other.tree / "kernels").mkdir()
    (other.tree / "kernels" / "decode.py").write_text("")
    assert could_differ({"base": one, "head": other})
    elsewhere = Side(one.record, one.tree, "/another/python", one.tree)
    assert could_differ({"base": one, "head": elsewhere})


def test_a_run_compiles_by_itself_where_kernels_differ(tmp_path: Path) -> None:
    base, head = side(tmp_path / "base").tree, side(tmp_path / "head", registers=80).tree
    # Time is up before anything is timed: a run that finds nothing worse is not decided.
    plan = gate_toys.plan(base, head, device="cpu", time_limit_s=0.0)
    same = {"inconclusive": plan, "fail": replace(plan, compiled=True)}
    assert [run_gate(each).verdict for each in same.values()] == list(same), "the same kernels"
    (head / "kernels").mkdir()
    (head / "kernels" / "decode.py").write_text("")
    record = run_gate(plan)
    assert (record.exit_code, record.reason) == (1, "worse: compiled/sm_90/decode")
    for other in (replace(plan, compiled=False), replace(plan, benchmarks=("toy/work",))):
        assert run_gate(other).verdict == "inconclusive"
