"""Timing on a real device: events, graphs, cold and warm, and a small run of the command.

Nothing here says how fast anything is; docs/performance.md has the command that does.
"""

import pytest
import torch
from typer.testing import CliRunner

from bench.cli import app
from bench.machine.gpu import GpuReader
from bench.machine.roof import measure_roof
from bench.machine.timing import CudaDevice, Side, Timer, copies_needed
from bench.throughput.record import ThroughputRecord

MIB = 2**20


def reading_side(input_bytes, *, count=None):
    """Reads one input after the other."""
    device = CudaDevice()
    count = count or copies_needed(input_bytes, device.cache_bytes)
    inputs = [torch.ones(input_bytes, dtype=torch.uint8, device="cuda") for _ in range(count)]
    result = torch.zeros((), dtype=torch.int64, device="cuda")

    def call(tensor):
        return lambda: torch.sum(tensor.view(torch.int32), dim=0, out=result)

    return device, Side(name="sum", calls=tuple(call(tensor) for tensor in inputs))


def test_an_input_that_fits_the_cache_is_read_faster_when_it_is_warm():
    device, side = reading_side(16 * MIB)
    times = Timer(device, rounds=15, warm_up=3, warm=True).time([side])["sum"]
    assert sorted(times.warm_s)[7] < sorted(times.cold_s)[7]


def test_short_calls_are_captured():
    device, side = reading_side(4096, count=8)
    times = Timer(device, rounds=5).time([side])["sum"]
    assert times.captured
    assert all(0 < seconds < 1e-3 for seconds in times.cold_s)


def test_what_waits_for_the_device_is_not_captured_and_leaves_it_usable():
    device = CudaDevice()
    tensor = torch.ones(1, device="cuda")
    waits = Side(name="waits", calls=(tensor.item,))
    _, reads = reading_side(4096, count=8)
    times = Timer(device, rounds=5).time([waits, reads])
    assert not times["waits"].captured
    assert times["sum"].captured
    assert len(times["waits"].cold_s) == 5


def test_the_roofs_are_of_a_gpu():
    device = CudaDevice()
    roof = measure_roof(device)
    assert roof.copy_gigabytes_per_s > 50
    assert roof.matrix_teraflops_per_s > 1
    assert GpuReader(device.describe()["uuid"]).clocks().startswith(("SM ", "not read: "))


@pytest.mark.parametrize(
    "batch", [("--batch", "4x512"), ("--prefill", "2x256"), ("--batch", "azure:4")]
)
def test_the_command_times_our_kernel_and_finds_it_right(tmp_path, batch):
    file = tmp_path / "t.json"
    result = CliRunner().invoke(
        app,
        ["throughput", *batch, "--subject", "triton", "--subject", "torch", "--rounds", "3",
         "--splits", "auto,4", "--json", str(file)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (point,) = ThroughputRecord.model_validate_json(file.read_text()).points
    assert point.find("triton").status == point.find("torch").status == "timed"
    assert point.cold
