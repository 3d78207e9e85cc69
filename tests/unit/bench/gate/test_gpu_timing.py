"""Times of a GPU without one: what is timed, what is not, and which launches are not used.

The device is made up; that events are read rightly from a real one is for tests/gpu.
"""

import math
import random
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from bench.gate import run as gate_run
from bench.gate import turns
from bench.gate.record import GateRecord
from bench.gate.run import run_gate
from bench.gate.suite import gpu
from bench.gate.timers import UNTIMED_LAUNCHES, device_named, take_turn
from bench.machine.gpu import GpuReader, GpuState, became_another_gpu
from bench.machine.timing import CpuDevice, CudaDevice, device_of
from helpers import gate_toys
from helpers.fake_cuda import FakeCuda, FakeNvml
from reference.errors import BadInput


def test_events_time_the_calls_and_not_those_before_them() -> None:
    cuda = FakeCuda()
    slow_at_first = [10_000_000] * UNTIMED_LAUNCHES

    def call() -> None:
        cuda.now_ns += slow_at_first.pop() if slow_at_first else 250_000

    turn = take_turn(CudaDevice(cuda), call, 8)
    assert turn["timer_ns"] == 8 * 250_000
    assert cuda.synchronised == 1, "nothing waits within a turn"


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="finds no GPU"):
        CudaDevice(FakeCuda(there=False))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="finds no GPU"):
            device_of("cuda")
    assert isinstance(device_of("cpu"), CpuDevice)
    assert {CpuDevice.clock, CudaDevice.clock} == {"process_time", "cuda_event"}
    described = {"device": "a GPU", "driver": None, "uuid": "GPU-12-34"}
    assert CudaDevice(FakeCuda()).describe() == described
    with pytest.raises(BadInput, match="choose cpu or cuda"):
        device_named("tpu")


def test_the_state_of_the_gpu_is_read_by_its_identity() -> None:
    reader = GpuReader("GPU-12-34", FakeNvml(0x1 | 0x4 | 0x40))  # type: ignore[arg-type]
    assert reader.read() == GpuState(
        sm_mhz=1980,
        memory_mhz=3201,
        power_w=512.345,
        temperature_c=61,
        slowed_by=["power cap", "heat, by hardware"],
    )
    assert GpuReader("GPU-other", FakeNvml(0)).read() is None  # type: ignore[arg-type]
    assert GpuReader(None, FakeNvml(0)).read() is None  # type: ignore[arg-type]
    assert GpuReader("GPU-12-34", None).read() is None or "pynvml" in sys.modules
    assert GpuReader(None).clocks() == "not read: no GPU"
    assert GpuReader("GPU-other", FakeNvml(0)).clocks() == "not read: GPU-other"  # type: ignore[arg-type]
    words = GpuReader("GPU-12-34", FakeNvml(0x44)).clocks()  # type: ignore[arg-type]
    assert words == "SM 1980 of 1980 MHz, clock event reasons 0x44"


def state(*slowed_by: str) -> GpuState:
    return GpuState(sm_mhz=1, memory_mhz=1, power_w=1.0, temperature_c=1, slowed_by=list(slowed_by))


def test_heat_that_comes_or_goes_makes_it_another_gpu_and_the_power_cap_does_not() -> None:
    assert not became_another_gpu([])
    assert not became_another_gpu([state(), state("power cap"), state()])
    assert not became_another_gpu([state("power brake"), state("power brake", "power cap")])
    assert became_another_gpu([state(), state("heat, by software")])
    assert became_another_gpu([state("hardware slowdown"), state()])


def hot_at(monkeypatch: pytest.MonkeyPatch, launches: range) -> None:
    """A GPU that is hot at the end of some launches."""
    number = -1

    def launch(index: int, *rest: Any, **options: Any) -> Any:
        nonlocal number
        number += 1
        record, measured = turns.launch(index, *rest, **options)
        if number in launches:
            record = record.model_copy(update={"dropped": "it was hot"})
        return record, measured

    monkeypatch.setattr(gate_run, "launch", launch)


def worked(folder: Path, **options: Any) -> GateRecord:
    trees = (gate_toys.tree(folder, name) for name in ("base", "head"))
    return run_gate(gate_toys.plan(*trees, **{"benchmarks": ("toy/work",), **options}))


def test_launches_in_which_the_gpu_changed_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot_at(monkeypatch, range(1, 4))
    record = worked(tmp_path)
    assert record.verdict == "pass"
    assert [bool(each.dropped) for each in record.launches] == [False, *[True] * 3, *[False] * 4]
    (benchmark,) = record.benchmarks
    assert [sample.launch for sample in benchmark.samples] == [0, 4, 5, 6, 7]


class Turns:
    """A worker whose turns take so long at such a clock; the reader of that clock."""

    def __init__(self, seconds: float, mhz: int | None, reader: dict[str, int | None]) -> None:
        self.seconds, self.mhz, self.reader = seconds, mhz, reader

    def prepare(self, key: str) -> None:
        pass

    def ask(self, *_: Any, **__: Any) -> dict[str, float]:
        self.reader["now"] = self.mhz
        return {"timer_ns": self.seconds * 1e9, "wall_ns": self.seconds * 1e9}


@pytest.mark.parametrize(("mhz", "cycles"), [(900, 0.0), (1800, math.log(2)), (None, None)])
def test_cycles_leave_out_what_another_clock_did(mhz: int | None, cycles: float | None) -> None:
    now: dict[str, int | None] = {}
    gpu = cast("GpuReader", SimpleNamespace(sm_mhz=lambda: now["now"], read=lambda: None))
    both = cast("Any", {"base": Turns(1.0, 1800, now), "head": Turns(2.0, mhz, now)})
    schedule = turns.Schedule(place=cast("Any", None), pairs=4, cores=(0,), seed=0, gpu=gpu)
    number = {"base": 1, "head": 1}
    found = turns._take_turns("a", both, number, schedule, random.Random(0), threading.Event())
    assert found is not None
    assert found["d_timer"] == pytest.approx(math.log(2))
    assert found["d_cycles"] == (None if cycles is None else pytest.approx(cycles))


def test_a_gpu_that_always_changes_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot_at(monkeypatch, range(1000))
    monkeypatch.setattr(gate_run, "MOST_DROPPED", 2)
    record = worked(tmp_path)
    assert (record.verdict, record.exit_code) == ("harness failed", 4)
    assert "3 launches were dropped" in record.reason


def test_a_gpu_that_is_not_there_is_no_verdict(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    record = worked(tmp_path, device="cuda", suite="bench.gate.suite", benchmarks=("gpu/copy",))
    assert record.exit_code == 4
    assert "torch finds no GPU here" in record.reason


TINY = gpu.Shape(num_seqs=2, query_len=1, seq_len=32, num_kv_heads=1, group_size=2, head_dim=16)


def test_cold_calls_go_round_over_inputs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_l2_bytes", lambda _: gpu.bytes_of(TINY))
    seen: list[int] = []
    monkeypatch.setattr(
        "kernels.attention.paged_attention", lambda batch: seen.append(id(batch.key_cache))
    )
    prepared = gpu.attention(TINY, device="cpu", graph=lambda launches: launches)
    prepared.call()
    assert len(seen) == len(set(seen)) == 3, "three times what L2 holds"
    prepared.call()
    assert seen[3:] == seen[:3]
    counted = prepared.counters()
    assert counted["bytes"].value == 3 * gpu.bytes_of(TINY) == 3 * 2 * 32 * 2 * 16 * 2

    seen.clear()
    warm = gpu.attention(TINY, warm=True, device="cpu", graph=lambda launches: launches)
    warm.call()
    assert len(seen) == gpu.WARM_LAUNCHES
    assert len(set(seen)) == 1


@pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn])
def test_a_batch_of_the_gpu_suite_is_right_in_the_interpreter(dtype: torch.dtype | None) -> None:
    shape = gpu.replace(TINY, cache_dtype=dtype)
    prepared = gpu.attention(shape, device="cpu", graph=lambda launches: launches)
    prepared.call()
    answers = prepared.outputs()
    assert set(answers) == {"out.first", "lse.first", "out.last", "lse.last"}
    assert all(torch.from_numpy(each.values).isfinite().all() for each in answers.values())
    assert (answers["out.first"].values != answers["out.last"].values).any()
