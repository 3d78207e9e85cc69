"""What asv finds is the catalogue, it runs as asv runs it, and its names are known."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from asv.config import Config
from asv.environment import get_environments
from asv_runner.discovery import disc_benchmarks

from bench.gate.suite import SUITE
from helpers.places import ROOT

UNITS = {
    "Allocator.time_call": "seconds",
    "Allocator.track_calls": "calls",
    "Allocator.track_copies": "blocks",
    "Allocator.track_missed_tokens": "tokens",
    "Allocator.track_peak_blocks": "blocks",
    "Attention.time_call": "seconds",
    "Cache.time_call": "seconds",
    "Gpu.time_call": "seconds",
    "Memory.track_allocated_slot_steps": "slot-steps",
    "Memory.track_wasted_slot_steps": "slot-steps",
    "Serving.time_call": "seconds",
    "Waste.time_call": "seconds",
    "Waste.track_ghost_hits": "blocks",
    "Waste.track_missed_tokens": "tokens",
    "Waste.track_preemptions": "preemptions",
    "Waste.track_recomputed_tokens": "tokens",
    "Waste.track_steps": "steps",
    "Waste.track_wasted_slot_steps": "slot-steps",
}
"""The identity of every series of the history, with its unit: a name that goes missing ends one."""

# What asv does to find the suite and to run an entry, where only its environment's packages can
# be imported; and what the catalogue needs, all of it.
PROBE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not in the environment of asv", name=name)

ABSENT = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Absent())
from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks, get_benchmark_from_name

root = sys.argv[1]
update_sys_path(root)
found = {b.name: b.check(root) for b in disc_benchmarks(root)}
import torch
said = {"found": found, "modules": sorted(sys.modules), "cuda": torch.cuda.is_initialized()}
entry = get_benchmark_from_name(root, "Allocator.time_call-0")
said["skipped"] = entry.do_setup()
said["samples"] = entry.do_run()["samples"]
from bench.gate.suite import SUITE
from bench.gate.worker import check_need
for each in SUITE:
    for need in each.needs if each.key.partition("/")[0] not in ("gpu", "kernels") else ():
        check_need(need)
print(json.dumps(said))
"""
ABSENT = ("hypothesis", "typer", "rich", "click", "pytest", "asv")


def probe(absent: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """In a process of its own and from another folder."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            PROBE,
            str(ROOT / "bench" / "gate" / "discovered"),
            ",".join(absent),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def said() -> Any:
    run = probe(ABSENT)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_package_that_the_environment_lacks_is_noticed() -> None:
    run = probe([*ABSENT, "numpy"])
    assert run.returncode != 0
    assert "numpy is not in the environment of asv" in run.stderr


def test_asv_finds_and_runs_it_with_nothing_but_its_environment(said: Any) -> None:
    assert said["found"] == dict.fromkeys(UNITS, True)
    assert said["skipped"] is False
    assert min(said["samples"]) > 0


def test_importing_the_suite_brings_in_neither_triton_nor_cuda(said: Any) -> None:
    assert "triton" not in said["modules"]
    assert not said["cuda"], "a forked process cannot use its parent's CUDA context"


def series() -> dict[str, Any]:
    found = disc_benchmarks("bench.gate.discovered")
    return {each.name.removeprefix("gate.discovered."): each for each in found}


def test_every_series_has_a_version_a_unit_and_keys_of_the_catalogue() -> None:
    timed = {each.key for each in SUITE if each.timed}
    for name, each in series().items():
        assert each.version == "1"
        assert each.unit == UNITS[name]
        assert each.param_names == ["benchmark"]
        ((*keys,),) = each._params
        assert keys
        assert all(key.startswith(name.partition(".")[0].lower() + "/") for key in keys)
        if each.type == "time":
            assert set(keys) <= timed
            timed -= set(keys)
    assert timed == set(), "every timed benchmark of the catalogue has its series"


@pytest.mark.parametrize("name", UNITS)
def test_an_entry_of_each_series_runs(name: str) -> None:
    each = series()[name]
    cheapest = len(each._params[0]) - 1 if name == "Waste.time_call" else 0
    each.set_param_idx(cheapest)
    if name == "Gpu.time_call":
        # pytest sets TRITON_INTERPRET=1: with a GPU as well as without one nothing is compiled.
        assert each.do_setup()
        return
    assert not each.do_setup()
    value = each.func(*each._current_params)
    assert (type(value) is int and value >= 0) == (each.type == "track")


def test_every_counter_that_is_followed_is_counted() -> None:
    """Of memory and of the allocator; those of waste are of one kind, and take a second each."""
    for name, each in series().items():
        if each.type != "track" or name.startswith("Waste."):
            continue
        for index, key in enumerate(each._params[0]):
            each.set_param_idx(index)
            assert not each.do_setup()
            assert each.func(*each._current_params) >= 0, key


def test_configuration_has_no_word_that_asv_does_not_know() -> None:
    conf = Config.load(str(ROOT / "asv.conf.json"))
    # Two that asv reads with a default of their own.
    known = {*vars(Config()), "version", "environment_type", "build_cache_size"}
    assert set(vars(conf)) - known == set()
    assert (ROOT / conf.benchmark_dir).samefile(ROOT / "bench" / "gate" / "discovered")
    assert conf.launch_method == "forkserver"


def test_every_series_has_one_threshold_for_regressions() -> None:
    conf = Config.load(str(ROOT / "asv.conf.json"))
    for name in UNITS:
        limits = conf.regressions_thresholds.items()
        matching = [limit for pattern, limit in limits if re.match(pattern, name)]
        assert matching == ([0.0] if ".track_" in name else [0.1]), name


def test_environment_for_this_python_holds_what_the_suite_imports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    environments = [
        environment
        for environment in get_environments(Config.load(), None, verbose=False)
        if environment.python == python
    ]
    assert environments
    for environment in environments:
        assert {"torch", "triton", "numpy"} <= set(environment.requirements)
