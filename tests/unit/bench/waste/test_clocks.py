"""The clock: as typed, from data sheets, and what counts as good."""

import pytest

from bench.waste.clocks import clock_words, read_clock, read_slo, roofline
from bench.waste.gpus import read_gpu
from bench.waste.models import read_model
from paged.clock import StepTime
from paged.latency import Slo
from reference.errors import BadInput


def test_a_clock_is_read_as_it_is_typed() -> None:
    clock = read_clock("base=25ms,prompt=89us,kv=0.105us,swap=5us")
    assert clock.time == StepTime(
        step_ns=25_000_000,
        prefill_ns_per_token=89_000,
        kv_ps_per_token=105_000,
        swap_ns_per_token=5_000,
    )
    assert read_clock("base=1s").time == StepTime(step_ns=10**9, prefill_ns_per_token=0)
    assert clock_words(clock.time) == (
        "25 ms a step, 89 us a prompt token, 0.105 us a token read, 5 us a token swapped"
    )


@pytest.mark.parametrize(
    "text", ["", "base", "base=25", "base=25ms,base=1ms", "step=1ms", "prompt=1us", "base=0ms"]
)
def test_a_clock_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=f"--clock {text}: .*base=25ms"):
        read_clock(text)


def test_data_sheets_give_a_clock() -> None:
    clock = roofline(read_model("Qwen2.5-7B"), read_gpu("GB200"))
    assert clock is not None
    # 15.24 GB of weights at 85 % of 8 TB/s and 3 ms; 15.24 GFLOP at 60 % of 2,500 TFLOP/s; 57,344
    # bytes at 85 % of 8 TB/s.
    assert clock.time.step_ns == pytest.approx(2.241e6 + 3e6, rel=1e-3)
    assert clock.time.prefill_ns_per_token == pytest.approx(10_160, rel=1e-3)
    assert clock.time.kv_ps_per_token == pytest.approx(8_433, rel=1e-3)
    assert "Qwen2.5-7B on GB200-186GB" in clock.source
    assert roofline(read_model("32x8x128"), read_gpu("H100")) is None


def test_four_gpus_read_a_quarter_each() -> None:
    one, four = (
        roofline(read_model("Llama-3.1-70B", ranks=ranks), read_gpu("H200")) for ranks in (1, 4)
    )
    assert one is not None
    assert four is not None
    assert four.time.step_ns - 3e6 == pytest.approx((one.time.step_ns - 3e6) / 4, rel=1e-6)
    assert four.time.kv_ps_per_token == pytest.approx(one.time.kv_ps_per_token / 4, rel=1e-3)


def test_an_slo_is_read_in_seconds() -> None:
    assert read_slo("ttft=2,tpot=0.05") == Slo(ttft_ns=2 * 10**9, tpot_ns=50_000_000)
    assert read_slo("e2e=30s,tpot=50ms") == Slo(e2e_ns=30 * 10**9, tpot_ns=50_000_000)


@pytest.mark.parametrize("text", ["", "ttft", "ttft=x", "ttft=1,ttft=2", "itl=1", "ttft=0"])
def test_an_slo_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=f"--slo {text}: "):
        read_slo(text)
