"""What others rely on and no rebuilding may change: records, `--help`, what a seed draws, keys.

The files of `tests/frozen` were written before the rooms were rearranged. A change that is meant is
written down with `PAGEDBENCH_FREEZE=1 python -m pytest tests/unit/test_frozen.py`, and read in the
diff: a record's key that changes its meaning needs a new schema version.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from bench.check.record import CheckRecord
from bench.compile.record import CompileRecord
from bench.fuzz.race import RaceRecord
from bench.fuzz.record import FuzzRecord
from bench.gate.record import GateRecord
from bench.gate.suite import SUITE
from bench.search.drawing import draw_each, only_our_constants
from bench.throughput.record import ThroughputRecord
from bench.waste.figures.figure import Figure
from bench.waste.policies import format_policy, parse_policy
from bench.waste.record import WasteRecord
from bench.workloads.spec import parse_source
from helpers.places import ROOT
from paged.subject import paged_allocator
from reference.allocator.contract import capabilities_of_factory
from reference.allocator.machine import AllocatorMachine, find_fault
from reference.allocator.moves import Drawn, drawn_programs, run_drawn
from reference.attention.contract import Capabilities
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems

FROZEN = ROOT / "tests" / "frozen"
WRITE = os.environ.get("PAGEDBENCH_FREEZE") == "1"

RECORDS = {
    "check": CheckRecord,
    "check-wrong": CheckRecord,
    "compile": CompileRecord,
    "fuzz": FuzzRecord,
    "fuzz-wrong": FuzzRecord,
    "gate": GateRecord,
    "race": RaceRecord,
    "throughput": ThroughputRecord,
    "waste": WasteRecord,
    "waste-figure": Figure,
    "waste-whatif": WasteRecord,
}
COMMANDS = [
    "pagedbench",
    "check",
    "diagnose",
    "waste",
    "fuzz",
    "compile",
    "throughput",
    "gate",
    "compare",
    "history",
    "import",
    "race",
    "record",
    "report",
    "init",
]
SEEDS = range(20)
POLICIES = (
    "paged:block=16",
    "paged:block=32,watermark=0.05,budget=512",
    "max/buddy",
    "pow2/first-fit",
    "oracle/best-fit",
)
SOURCES = ("sharegpt-fit", "azure-conv", "alpaca-fit")


def frozen(name: str, now: Any) -> Any:
    """What was written down under a name; with PAGEDBENCH_FREEZE=1, what there is now."""
    file = FROZEN / f"{name}.json"
    if WRITE:
        file.write_text(json.dumps(now, indent=1) + "\n")
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", RECORDS)
def test_stored_record_is_read_and_written_back_key_by_key(name: str) -> None:
    stored = (FROZEN / "records" / f"{name}.json").read_text()
    adapter = TypeAdapter(RECORDS[name])
    assert json.loads(adapter.dump_json(adapter.validate_json(stored))) == json.loads(stored)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_said(command: str) -> None:
    asked = [] if command == "pagedbench" else [command]
    said = subprocess.run(
        [sys.executable, "-m", "bench.cli", *asked, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    file = FROZEN / "help" / f"{command}.txt"
    if WRITE:
        file.write_text(said)
    assert said == file.read_text()


def drawn_problems(seed: int) -> list[str]:
    drawn: list[str] = []

    def example(problem: AttentionProblem) -> None:
        drawn.append(str(problem))

    with only_our_constants():
        draw_each(
            problems(capabilities=Capabilities(), lengths=None, max_len=160),
            count=10,
            seed_of_draw=seed,
            seen=set(),
            example=example,
        )
    return drawn


def programs_of(seed: int) -> list[str]:
    """Steps that the programs of a seed come to, with the calls that make no sense."""
    drawn: list[str] = []

    def example(program: Drawn) -> None:
        def run(machine: AllocatorMachine) -> None:
            run_drawn(program, machine)
            drawn.append(f"{program.pool}: {dict(sorted(machine.calls.items()))}")

        assert find_fault(paged_allocator, program.pool, run, capabilities=declared) is None

    declared = capabilities_of_factory(paged_allocator)
    with only_our_constants():
        draw_each(
            drawn_programs(declared, max_moves=12),
            count=5,
            seed_of_draw=seed,
            seen=set(),
            example=example,
        )
    return drawn


@pytest.mark.parametrize(
    ("name", "draw"), [("problems", drawn_problems), ("programs", programs_of)]
)
def test_seeds_draw_what_they_drew(name: str, draw: Callable[[int], list[str]]) -> None:
    now = {str(seed): draw(seed) for seed in SEEDS}
    assert now == frozen(name, now)
    assert len({tuple(drawn) for drawn in now.values()}) == len(SEEDS)


def test_gate_benchmarks_keep_their_keys() -> None:
    # A new key may come; one that goes ends a series.
    now = sorted(benchmark.key for benchmark in SUITE)
    assert set(frozen("gate-keys", now)) <= set(now)


def test_specs_are_read_as_they_were() -> None:
    now = {
        "problems": [str(AttentionProblem.parse(spec)) for spec in frozen("problems", None)["0"]]
        if not WRITE
        else drawn_problems(0),
        "policies": {spec: format_policy(parse_policy(spec)) for spec in POLICIES},
        "sources": {spec: str(parse_source(spec)) for spec in SOURCES},
    }
    assert now == frozen("specs", now)


def test_frozen_record_of_another_shape_is_not_the_same(tmp_path: Path) -> None:
    stored = json.loads((FROZEN / "records" / "check.json").read_text())
    stored["kernels"][0]["unheard_of"] = 1
    adapter = TypeAdapter(CheckRecord)
    assert json.loads(adapter.dump_json(adapter.validate_python(stored))) != stored
