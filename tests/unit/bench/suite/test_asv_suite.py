"""bench/suite: asv finds what is expected, every entry runs, and what is counted is right."""

import heapq
import inspect
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from asv.config import Config
from asv.environment import get_environments
from asv_runner.discovery import disc_benchmarks, disc_modules
from numpy.typing import NDArray

from bench.check.need import LLAMA_3_8B
from bench.machine.calls import function_calls
from bench.suite import allocator, attention
from bench.workloads.builtin import STREAM_LAWS, builtin_stream
from bench.workloads.stream import RequestStream
from helpers.places import ROOT
from paged.allocator import PagedAllocator

PACKAGE = "bench.suite"
KINDS = re.compile(r"(time|track)_[a-z_]+")

NAMES = {
    "allocator.Blocks.track_beam",
    "allocator.Blocks.track_beam_copies",
    "allocator.Blocks.track_prefix_misses",
    "allocator.Blocks.track_stream_peak",
    "allocator.Calls.track_calls",
    "allocator.Operations.time_admit_and_free",
    "allocator.Operations.time_append",
    "allocator.Operations.time_fork_and_copy_on_write",
    "allocator.PrefixCache.time_hit",
    "attention.ContiguousTorch.time_decode",
    "attention.ContiguousTorch.time_prefill",
    "attention.PagedTorch.time_decode",
    "attention.PagedTorch.time_prefill",
    "attention.PagedTriton.time_decode",
    "attention.PagedTriton.time_prefill",
    "memory.Contiguous.track_bytes_per_request",
    "memory.Contiguous.track_waste_fraction",
    "memory.Paged.track_bytes_per_request",
    "memory.Paged.track_waste_fraction",
    "waste.Eviction.track_hit_rate",
    "waste.PaperFigure.time_figure",
    "waste.PrefixCache.track_ghost_hits",
    "waste.PrefixCache.track_hit_rate",
    "waste.Speed.time_twenty_thousand_requests",
    "waste.Waste.track_mean_batch",
    "waste.Waste.track_peak_batch",
    "waste.Waste.track_preemptions",
    "waste.Waste.track_recomputed",
    "waste.Waste.track_waste",
}
"""The identity of every series of the history: a name that goes missing ends one."""

UNITS = {
    "allocator.Blocks.track_beam": "blocks",
    "allocator.Blocks.track_beam_copies": "blocks",
    "allocator.Blocks.track_prefix_misses": "tokens",
    "allocator.Blocks.track_stream_peak": "blocks",
    "allocator.Calls.track_calls": "calls",
    "memory.Contiguous.track_bytes_per_request": "bytes",
    "memory.Contiguous.track_waste_fraction": "fraction",
    "memory.Paged.track_bytes_per_request": "bytes",
    "memory.Paged.track_waste_fraction": "fraction",
    "waste.Eviction.track_hit_rate": "fraction",
    "waste.PrefixCache.track_ghost_hits": "blocks",
    "waste.PrefixCache.track_hit_rate": "fraction",
    "waste.Waste.track_mean_batch": "requests",
    "waste.Waste.track_peak_batch": "requests",
    "waste.Waste.track_preemptions": "preemptions",
    "waste.Waste.track_recomputed": "tokens",
    "waste.Waste.track_waste": "fraction",
}

# What asv does to find the suite, where only the packages of its environment can be imported.
DISCOVERY = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not in the environment of asv", name=name)

ABSENT = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Absent())
from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks

update_sys_path(sys.argv[1])
found = [(b.name, b.check(sys.argv[1])) for b in disc_benchmarks(sys.argv[1])]
import torch
print(json.dumps({
    "found": found,
    "modules": sorted(sys.modules),
    "cuda": torch.cuda.is_initialized(),
}))
"""
ABSENT = ("hypothesis", "pydantic", "pydantic_core", "typer", "rich", "click", "pytest", "asv")


def name_of(benchmark: Any) -> str:
    """The name under which asv files it: here the package is imported by its full name."""
    return str(benchmark.name).removeprefix("suite.")


def entries() -> Iterator[Any]:
    for benchmark in disc_benchmarks(PACKAGE):
        values = [[str(value) for value in axis] for axis in benchmark._params]
        for index, parameters in enumerate(itertools.product(*values)):
            name = f"{name_of(benchmark)}({', '.join(parameters)})"
            yield pytest.param(benchmark.name, index, id=name)


def prepared(name: str, index: int) -> tuple[Any, bool]:
    """A new benchmark after its setup, and whether it said that it does not apply."""
    (benchmark,) = (b for b in disc_benchmarks(PACKAGE) if b.name == name)
    if benchmark._params:
        benchmark.set_param_idx(index)
    return benchmark, bool(benchmark.do_setup())


def run(name: str, index: int) -> Any:
    benchmark, skipped = prepared(name, index)
    assert not skipped
    return benchmark.func(*benchmark._current_params)


def track(name: str) -> dict[tuple[Any, ...], Any]:
    """Values of a `track_` benchmark, by parameters."""
    (benchmark,) = (b for b in disc_benchmarks(PACKAGE) if name_of(b) == name)
    return {
        parameters: run(benchmark.name, index)
        for index, parameters in enumerate(itertools.product(*benchmark._params))
    }


def discover(absent: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Look for benchmarks as asv does, in a process of its own and from another folder."""
    return subprocess.run(
        [sys.executable, "-c", DISCOVERY, str(ROOT / "bench" / "suite"), ",".join(absent)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def discovered() -> Any:
    probe = discover(ABSENT)
    assert probe.returncode == 0, probe.stderr
    return json.loads(probe.stdout)


def test_package_that_the_environment_lacks_is_noticed() -> None:
    probe = discover([*ABSENT, "numpy"])
    assert probe.returncode != 0
    assert "numpy is not in the environment of asv" in probe.stderr


def test_asv_finds_every_series_with_nothing_but_its_environment(discovered: Any) -> None:
    assert {name for name, _ in discovered["found"]} == NAMES


def test_asv_accepts_the_arguments_of_every_benchmark(discovered: Any) -> None:
    assert [name for name, accepted in discovered["found"] if not accepted] == []


def test_importing_the_suite_brings_in_neither_triton_nor_cuda(discovered: Any) -> None:
    assert "triton" not in discovered["modules"]
    assert not discovered["cuda"], "a forked process cannot use its parent's CUDA context"


def test_suite_defines_benchmark_classes_and_nothing_else_that_is_public() -> None:
    modules = list(disc_modules(PACKAGE))
    assert len(modules) > 1
    for module in modules:
        own = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        }
        assert [name for name, value in own.items() if not inspect.isclass(value)] == []
        for name, klass in own.items():
            methods = {m for m, f in vars(klass).items() if inspect.isfunction(f)}
            assert [m for m in methods - {"setup"} if not KINDS.fullmatch(m)] == [], name
            assert methods - {"setup"}, f"{name} measures nothing"


def test_every_series_says_what_it_is() -> None:
    for benchmark in disc_benchmarks(PACKAGE):
        name = name_of(benchmark)
        klass = type(benchmark.func.__self__)
        assert benchmark.func.__doc__, name
        assert klass.__doc__, name
        assert isinstance(vars(klass).get("version"), str), name
        assert len(getattr(klass, "param_names", ())) == len(benchmark._params), name
        assert benchmark.unit == UNITS.get(name, "seconds"), name
        for axis in benchmark._params:
            assert {type(value) for value in axis} <= {int, str}, name


@pytest.mark.parametrize(("name", "index"), list(entries()))
def test_entry_runs(name: str, index: int) -> None:
    benchmark, skipped = prepared(name, index)
    if skipped:
        assert name.startswith("suite.attention.PagedTriton.")
        return
    value = benchmark.func(*benchmark._current_params)
    if benchmark.type == "time":
        assert value is None
    else:
        assert type(value) in {int, float}
        assert math.isfinite(value)
        assert run(name, index) == value


def test_compiled_kernels_do_not_apply_where_triton_interprets() -> None:
    # pytest sets TRITON_INTERPRET=1: with a GPU as well as without one nothing is compiled here.
    with pytest.raises(NotImplementedError, match=r"CUDA device|TRITON_INTERPRET"):
        attention.PagedTriton().setup(16, 4096)


@pytest.mark.parametrize("block_size", attention.BLOCK_SIZES)
@pytest.mark.parametrize("method", ["time_decode", "time_prefill"])
def test_contiguous_and_paged_are_timed_on_the_same_attention(method: str, block_size: int) -> None:
    field = method.removeprefix("time_")
    outputs = []
    for klass, parameters in (
        (attention.ContiguousTorch, (512,)),
        (attention.PagedTorch, (block_size, 512)),
    ):
        instance = klass()
        instance.setup(*parameters)
        out = getattr(instance, field).out.fill_(torch.nan)
        getattr(instance, method)(*parameters)
        outputs.append(out.clone())
    assert outputs[0].shape == ((8 if field == "decode" else 128), 32, 128)
    torch.testing.assert_close(*outputs, rtol=2e-2, atol=2e-3)
    assert float(outputs[0].float().std()) > 0.01


def test_setup_before_each_sample_gives_the_same_tensors() -> None:
    instance = attention.PagedTorch()
    instance.setup(16, 512)
    first = instance.decode.key_cache
    instance.setup(16, 512)
    assert instance.decode.key_cache is first


def test_what_a_sample_uses_up_is_new_for_the_next() -> None:
    operations = allocator.Operations()
    for caching in ("off", "on"):
        counts = []
        for _ in range(2):
            operations.setup(caching)
            assert operations.empty.num_used == 0
            assert operations.empty.num_cached_idle == 0
            before = operations.filled.num_used
            operations.time_append(caching)
            operations.time_fork_and_copy_on_write(caching)
            operations.time_admit_and_free(caching)
            counts.append((before, operations.filled.num_used))
            assert operations.empty.num_used == 0
        # 250 tokens are 16 blocks; 16 more need one, and a fork of 266 tokens copies its last.
        assert counts == [(256 * 16, 256 * 17 + 256)] * 2


def test_a_hit_is_a_hit() -> None:
    cache = allocator.PrefixCache()
    cache.setup()
    assert cache.allocator.num_cached_idle == 256 * 15
    cache.time_hit()
    assert cache.allocator.num_cached_idle == 0
    assert cache.allocator.num_used == 256 * 16


def lengths_of(stream: RequestStream) -> list[tuple[int, int]]:
    """Prompt and output of each request, tokens."""
    return list(zip(stream.prompt_tokens.tolist(), stream.output_tokens.tolist(), strict=True))


def slots_by_step(prompt: int, output: int, block_size: int) -> NDArray[np.int64]:
    """Slots in the blocks of a request at each of its steps, one by one."""
    tokens = np.arange(prompt + 1, prompt + output + 1)
    return -(-tokens // block_size) * block_size


@pytest.mark.parametrize("kind", ["waste_fraction", "bytes_per_request"])
def test_memory_of_paging_is_what_stepping_through_the_stream_gives(kind: str) -> None:
    values = track(f"memory.Paged.track_{kind}")
    assert set(values) == set(itertools.product(STREAM_LAWS, (16, 64, 256)))
    for (name, block_size), value in values.items():
        lengths = lengths_of(builtin_stream(name))
        allocated = sum(int(slots_by_step(p, o, block_size).sum()) for p, o in lengths)
        held = sum(int(slots_by_step(p, o, 1).sum()) for p, o in lengths)
        steps = sum(output for _, output in lengths)
        expected = {
            "waste_fraction": (allocated - held) / allocated,
            "bytes_per_request": allocated / steps * 131_072,
        }
        assert value == expected[kind], (name, block_size)


@pytest.mark.parametrize("kind", ["waste_fraction", "bytes_per_request"])
def test_memory_of_reservation_is_what_stepping_through_the_stream_gives(kind: str) -> None:
    values = track(f"memory.Contiguous.track_{kind}")
    longest = {
        "azure-conv": 16_384,
        "azure-code": 8192,
        "sharegpt": 16_384,
        "sharegpt-first-turns": 8192,
        "mooncake-conv": 131_072,
    }
    assert {name for (name,) in values} == set(longest) == set(STREAM_LAWS)
    for (name,), value in values.items():
        lengths = lengths_of(builtin_stream(name))
        held = sum(int(slots_by_step(p, o, 1).sum()) for p, o in lengths)
        allocated = sum(output for _, output in lengths) * longest[name]
        expected = {
            "waste_fraction": (allocated - held) / allocated,
            "bytes_per_request": longest[name] * LLAMA_3_8B.bytes_per_token,
        }
        assert value == expected[kind], name


def test_peak_of_the_stream_is_that_of_a_timetable() -> None:
    lengths = lengths_of(builtin_stream("azure-conv", num_requests=128))
    # Sixteen lanes, each request in the lane that is free first: when it starts, and so its blocks.
    lanes = [0] * 16
    starts: list[int] = []
    for _, output in lengths:
        starts.append(lanes[0])
        heapq.heapreplace(lanes, lanes[0] + output)
    for (block_size,), peak in track("allocator.Blocks.track_stream_peak").items():
        blocks = np.zeros(max(lanes), np.int64)
        for start, (prompt, output) in zip(starts, lengths, strict=True):
            held = slots_by_step(prompt, output, block_size) // block_size
            blocks[start : start + output] += held
        assert peak == blocks.max()


def test_beams_share_whole_blocks_of_the_prompt_and_copy_the_partly_filled_one() -> None:
    blocks = track("allocator.Blocks.track_beam")
    copies = track("allocator.Blocks.track_beam_copies")
    for (block_size,), used in blocks.items():
        shared, rest = divmod(1000, block_size)
        own = -(-(rest + 20) // block_size)
        assert used == shared + 8 * own
        # The last beam to write has the original to itself.
        assert copies[(block_size,)] == (7 if rest else 0)


def test_prefix_misses_are_all_but_whole_common_blocks_of_all_but_the_first() -> None:
    for (block_size,), misses in track("allocator.Blocks.track_prefix_misses").items():
        assert misses == 600 + 31 * (600 - 500 // block_size * block_size)


def test_function_calls_are_counted_exactly() -> None:
    def inner() -> int:
        return len("abc")

    def outer() -> None:
        for _ in "12345":
            inner()

    def both() -> None:
        inner()
        outer()

    assert function_calls(lambda: None) == 0
    assert function_calls(outer) == 5 + 5
    assert function_calls(both) == 2 + 1 + 10
    assert sys.getprofile() is None


def test_a_loop_over_tokens_shows_in_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    before = track("allocator.Calls.track_calls")
    assert min(before.values()) >= 256
    admit = PagedAllocator.admit

    def slow(self: Any, sequence: Any, tokens: Any) -> int:
        for token in tokens:
            int(token)
        hash(tuple(map(hash, tokens)))
        return admit(self, sequence, tokens)

    monkeypatch.setattr(PagedAllocator, "admit", slow)
    after = track("allocator.Calls.track_calls")
    changed = {operation for (operation,), calls in after.items() if calls != before[(operation,)]}
    assert changed == {"admit", "hit"}


def test_configuration_has_no_word_that_asv_does_not_know() -> None:
    conf = Config.load(str(ROOT / "asv.conf.json"))
    # Two that asv reads with a default of their own.
    known = {*vars(Config()), "version", "environment_type", "build_cache_size"}
    assert set(vars(conf)) - known == set()
    assert (ROOT / conf.benchmark_dir).samefile(ROOT / "bench" / "suite")
    assert conf.launch_method == "forkserver"


def test_every_series_has_one_threshold_for_regressions() -> None:
    conf = Config.load(str(ROOT / "asv.conf.json"))
    for name in NAMES:
        matching = [
            limit
            for pattern, limit in conf.regressions_thresholds.items()
            if re.match(pattern, name)
        ]
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
