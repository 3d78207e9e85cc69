"""The benchmarks of the gate: called any number of times, each says the same."""

import heapq
import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.gate.benchmark import Benchmark, Count, Prepared
from bench.gate.counters import compare_counters
from bench.gate.observing import observed
from bench.gate.suite import SUITE, chosen
from bench.gate.worker import Missing, check_need
from bench.machine.facts import ROOT
from bench.workloads.builtin import builtin_stream

HERE = chosen(())


def test_enough_is_timed_and_every_kind_is_counted() -> None:
    timed = [each.key for each in HERE if each.timed]
    assert len(timed) >= 12
    assert len({each.key for each in SUITE}) == len(SUITE)
    assert all(" " not in each.key for each in SUITE)
    assert {each.key.partition("/")[0] for each in HERE} == {
        *("allocator", "serving", "waste", "cache", "attention", "kernels")
    }
    assert {each.device for each in SUITE if each.key.startswith("gpu/")} == {"cuda"}
    taken = set(chosen(())) | set(chosen((), device="cuda"))
    assert taken == {each for each in SUITE if each.gated}


@pytest.mark.parametrize("benchmark_", HERE, ids=lambda each: each.key)
def test_a_benchmark_says_the_same_however_often_it_is_called(benchmark_: Benchmark) -> None:
    """After a history of as many calls: a heap or a list of ghosts is tidied up now and then."""
    for need in benchmark_.needs:
        check_need(need)
    said, counted = [], []
    for prepared in (benchmark_.prepare(), benchmark_.prepare()):
        for _ in range(2):
            prepared.call()
        said.append({name: output.values.copy() for name, output in prepared.outputs().items()})
        before = prepared.counters()
        counted.append({**before, **observed(prepared.call)})
        assert prepared.counters() == before
        said.append({name: output.values.copy() for name, output in prepared.outputs().items()})
    first = said[0]
    assert first, "a benchmark without an output is not checked"
    for again in said:
        assert set(again) == set(first)
        for name, values in first.items():
            np.testing.assert_array_equal(again[name], values, err_msg=name)
            assert values.size or name == "cached_tokens"
            assert values.dtype.kind != "f" or np.isfinite(values).all(), name
    assert counted[0] == counted[1]
    assert counted[0]["calls"].value > 0
    head = {name: one_per_cent_worse(each) for name, each in counted[0].items()}
    missed = [
        each.name
        for each in compare_counters(benchmark_.key, counted[0], head, {})
        if not each.fails and each.base
    ]
    assert not missed, "one per cent more work of any counted kind is found"


def one_per_cent_worse(count: Count) -> Count:
    change = math.ceil(count.value / 100)
    return replace(count, value=count.value + (-change if count.more_is_better else change))


def test_names_are_chosen_by_part_or_pattern() -> None:
    keys = [each.key for each in HERE]
    for patterns, expected in (
        ((), keys),
        (("allocator",), [key for key in keys if "allocator" in key]),
        (("*[caching=on]",), ["allocator/churn[caching=on]"]),
        (("kernels/copy", "cache/copy"), ["cache/copy", "kernels/copy"]),
        (("nothing",), []),
    ):
        assert [each.key for each in chosen(patterns)] == expected


def prepared(key: str) -> Prepared:
    """A benchmark that was called once."""
    (entry,) = (each for each in SUITE if each.key == key)
    found = entry.prepare()
    found.call()
    return found


def counted(key: str) -> dict[str, int]:
    return {name: count.value for name, count in prepared(key).counters().items()}


@pytest.mark.parametrize("block_size", [1, 16, 128])
def test_situations_come_to_what_arithmetic_says(block_size: int) -> None:
    at = f"[block={block_size}]"
    # Beams share the prompt's whole blocks and copy the partly filled one, but for the last writer.
    shared, rest = divmod(1000, block_size)
    own = -(-(rest + 20) // block_size)
    assert counted(f"allocator/beam{at}") == {
        "peak_blocks": shared + 8 * own,
        "copies": 7 if rest else 0,
    }
    # All but the whole common blocks of all prompts but the first.
    misses = 600 + 31 * (600 - 500 // block_size * block_size)
    assert counted(f"allocator/common-prefix{at}") == {"missed_tokens": misses}
    # Sixteen lanes, each request in the lane that is free first: when it starts, and so its blocks.
    lanes, events = [0] * 16, []
    stream = builtin_stream("azure-conv", num_requests=128)
    lengths = zip(stream.prompt_tokens.tolist(), stream.output_tokens.tolist(), strict=True)
    for prompt, output in lengths:
        tokens = np.arange(prompt + 1, prompt + output + 1)
        events.append((lanes[0], -(-tokens // block_size)))
        heapq.heapreplace(lanes, lanes[0] + output)
    blocks = np.zeros(max(lanes), np.int64)
    for start, held in events:
        blocks[start : start + len(held)] += held
    assert counted(f"allocator/stream{at}") == {"peak_blocks": blocks.max()}


@pytest.mark.parametrize("block_size", [1, 16, 128])
@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_contiguous_and_paged_are_timed_on_the_same_attention(kind: str, block_size: int) -> None:
    names = (f"contiguous-{kind}[llama", f"paged-{kind}[llama,block={block_size}")
    keys = [each.key for each in SUITE if each.key.endswith("context=512]")]
    outputs = [
        prepared(key).outputs()["out"].values
        for name in names
        for key in keys
        if key.startswith(f"attention/{name},")
    ]
    assert outputs[0].shape == ((8 if kind == "decode" else 128), 32, 128)
    np.testing.assert_allclose(*outputs, rtol=2e-2, atol=2e-3)
    assert outputs[0].std() > 0.01


def test_the_suite_imports_no_room_before_it_is_asked_to() -> None:
    """They are the contestants': whose they are is known in the worker only."""
    probe = (
        "import json, sys; import bench.gate.suite, bench.gate.worker; "
        "print(json.dumps([m for m in sys.modules if m.partition('.')[0] in "
        "('kernels', 'paged', 'reference', 'subjects')]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT
    )
    # `bench` itself looks old names of modules up there; in a worker it is the tree's own.
    assert set(json.loads(run.stdout)) == {"reference", "reference.moved"}


def test_a_need_is_missing_only_where_it_is_itself_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "gate_need.py").write_text("import gate_need_of_a_need\n")
    importlib.invalidate_caches()
    check_need("json:loads")
    for need in ("json:lods", "no_such_module:name", "json.no_such:name"):
        with pytest.raises(Missing, match=need):
            check_need(need)
    with pytest.raises(ModuleNotFoundError, match="gate_need_of_a_need"):
        check_need("gate_need:anything")
