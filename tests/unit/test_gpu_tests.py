"""The tests of tests/gpu, on a made-up device: the first run on a real one fails on no typo.

What is put on the GPU lies on the CPU, and the kernels are interpreted. Graphs and streams are not
made up: tests of them are only read.
"""

import time
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench.machine import roof
from bench.machine.timing import CudaDevice, Timer
from kernels import interpreter
from kernels.attention import batch_invariant_attention, paged_attention
from kernels.shared_prefix import SharedPrefix
from reference.attention.problem import AttentionProblem
from tests.gpu import (
    test_cascade_on_a_gpu,
    test_decode_on_a_gpu,
    test_kernels_on_a_gpu,
    test_throughput_on_a_gpu,
)

interpreter.install()

SMALL = "(q1 k90) 3x(q1 k7) (q1 k0) h2 g2 d16 b16 bf16 sinks"
MIXED = "(q1 k40) (q6 k70) h1 g2 d16 b16 bf16"
SHARING = AttentionProblem.parse("4x(q1 k40) h1 g2 d16 b16 bf16 shared=32")
CACHE_BYTES = 2**15


class OnTheHost(TorchFunctionMode):
    """Whoever names the GPU gets the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if _named(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return func(*["cpu" if _named(each) else each for each in args], **kwargs)


def _named(device) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


class Event:
    """An event of the host's clock."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.at - self.at)


@pytest.fixture
def _made_up(monkeypatch):
    known = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(
            name="made up", L2_cache_size=CACHE_BYTES, uuid=None, multi_processor_count=8
        ),
        "synchronize": lambda *_: None,
        "_sleep": lambda _: None,
        "Event": Event,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda _: None,
    }
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, value)
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator("cpu"))
    with OnTheHost():
        yield


def case(module: ModuleType, name: str, **given):
    """A test of a module, and what it is given."""
    return pytest.param(module, name, given, id=f"{module.__name__[15:-9]}-{name[5:]}")


@pytest.mark.usefixtures("_made_up")
@pytest.mark.parametrize(
    ("module", "name", "given"),
    [
        case(
            test_decode_on_a_gpu,
            "test_a_thousand_repeats_give_the_same_bits",
            spec=SMALL,
            attention=paged_attention,
        ),
        case(
            test_decode_on_a_gpu,
            "test_the_host_never_waits",
            spec=MIXED,
            attention=batch_invariant_attention,
        ),
        case(
            test_decode_on_a_gpu,
            "test_a_sequence_gets_the_same_bits_alone_and_in_its_batch",
            spec=MIXED,
        ),
        case(
            test_decode_on_a_gpu,
            "test_every_float8_value_comes_out_as_it_is",
            kv_dtype=torch.float8_e5m2,
        ),
        case(test_kernels_on_a_gpu, "test_truth", problem=AttentionProblem.parse(MIXED)),
        case(test_kernels_on_a_gpu, "test_laws", problem=AttentionProblem.parse("(q1 k20) d16")),
        case(test_kernels_on_a_gpu, "test_splits", num_splits=2),
        case(test_kernels_on_a_gpu, "test_every_block_size", block_size=128),
        case(test_kernels_on_a_gpu, "test_a_cache_of_more_than_two_to_the_31_elements"),
        case(test_kernels_on_a_gpu, "test_tiles_do_not_change_the_answer", block_n=64),
        case(
            test_kernels_on_a_gpu,
            "test_cache_write_and_copy_give_torch_bits",
            dtype="e5m2",
            block_size=16,
            num_tokens=20,
            scale=0.03,
        ),
        case(
            test_cascade_on_a_gpu,
            "test_cascade_and_plain_attention_are_both_right",
            spec=str(SHARING),
        ),
        case(
            test_cascade_on_a_gpu,
            "test_a_thousand_repeats_give_the_same_bits",
            attention=test_cascade_on_a_gpu.in_cascade,
            problem=SHARING,
        ),
        case(test_cascade_on_a_gpu, "test_without_groups_nothing_waits_for_the_device"),
        case(
            test_cascade_on_a_gpu,
            "test_cache_operations_give_torch_bits_for_any_number_of_warps",
            heads=2,
            dtype="bf16",
        ),
    ],
)
def test_a_test_for_a_gpu_runs(module, name, given, monkeypatch):
    """A few repeats stand for a thousand, and a small batch for a large one."""
    monkeypatch.setattr(module, "range", lambda *bounds: range(*bounds)[:3], raising=False)
    if module is test_cascade_on_a_gpu:
        monkeypatch.setattr(module, "SHARING", SHARING)
        monkeypatch.setattr(module, "SharedPrefix", lambda members, _: SharedPrefix(members, 2))
    test = getattr(module, name)
    test = getattr(test, "hypothesis", SimpleNamespace(inner_test=test)).inner_test
    test(**given)


@pytest.mark.usefixtures("_made_up")
def test_calls_are_timed_by_events(monkeypatch):
    monkeypatch.setattr(roof, "COPY_BYTES", {"cuda": 2**20})
    monkeypatch.setattr(roof, "MATRIX_SIZE", {"cuda": 256})
    monkeypatch.setattr(test_throughput_on_a_gpu, "MIB", 2**10)
    measured = roof.measure_roof(CudaDevice())
    assert measured.read_gigabytes_per_s > 0
    assert measured.matrix_dtype == "bfloat16"
    device, side = test_throughput_on_a_gpu.reading_side(2**16)
    assert device.cache_bytes == CACHE_BYTES
    times = Timer(device, rounds=3, warm=True).time([side])[side.name]
    assert len(times.cold_s) == len(times.warm_s) == 3
    assert times.sm_mhz == []
