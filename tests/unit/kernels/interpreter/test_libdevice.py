"""Functions of libdevice in an interpreted kernel, by whatever name and module."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as nvidia
from triton.language.extra.hip import libdevice as amd
from triton.language.extra.libdevice import log1p

from kernels.interpreter.libdevice import FUNCTIONS, function_of

tanh = tl.extra.cuda.libdevice.tanh


@triton.jit
def all_ways(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(out + at, tanh(value))
    tl.store(out + N + at, libdevice.tanh(value))
    tl.store(out + 2 * N + at, nvidia.tanh(value))
    tl.store(out + 3 * N + at, amd.tanh(value))
    tl.store(out + 4 * N + at, log1p(value))
    tl.store(out + 5 * N + at, nvidia.fast_dividef(value, value + 1.0))
    tl.store(out + 6 * N + at, nvidia.fma(value, value, -1.0))


def test_all_modules_and_names_lead_to_the_same_functions() -> None:
    x = torch.linspace(0.0, 3.0, 16)
    out = torch.empty(7, 16)
    all_ways[(1,)](x, out, 16)
    expected = [x.tanh()] * 4 + [x.log1p(), x / (x + 1), (x.double() ** 2 - 1).float()]
    torch.testing.assert_close(out, torch.stack(expected), rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("__nv_tanhf", "tanh"),
        ("__nv_tanh", "tanh"),
        ("__ocml_tanh_f32", "tanh"),
        ("__ocml_native_exp_f32", "exp"),
        ("__nv_fast_expf", "exp"),
        ("__nv_fast_fdividef", "divide"),
        ("__nv_fdiv_rn", "div"),
        ("__nv_ddiv_rn", "div"),
        ("__nv_fmaf_rn", "fma"),
        ("__nv_isnand", "isnan"),
        ("__nv_isinff", "isinf"),
        ("__nv_finitef", "finite"),
        ("__nv_saturatef", "saturate"),
        ("__nv_fmodf", "fmod"),
        ("__nv_erff", "erf"),
    ],
)
def test_a_symbol_leads_to_its_function(symbol: str, name: str) -> None:
    assert function_of(symbol) is FUNCTIONS[name]


@pytest.mark.parametrize("symbol", ["__nv_hadd", "__nv_fadd_rz", "__nv_sinpif", "__nv_mul24"])
def test_another_function_is_not_taken_for_it(symbol: str) -> None:
    with pytest.raises(NotImplementedError, match=f"^{symbol} of libdevice is not interpreted"):
        function_of(symbol)


def test_a_product_and_a_sum_are_rounded_once() -> None:
    x = np.float32([1 + 2**-12])
    (once,) = FUNCTIONS["fma"](x, x, np.float32([-1])).astype(np.float32)
    assert once == np.float32((1 + 2**-12) ** 2 - 1)
    assert once != x[0] * x[0] - np.float32(1)


def test_functions_give_numbers_of_the_type_that_they_are_given() -> None:
    x = np.float32([0.25, 0.5, 0.75])
    for name in ("erf", "exp10", "rsqrt", "round", "lgamma", "saturate"):
        assert FUNCTIONS[name](x).dtype == np.float32, name
    assert FUNCTIONS["round"](np.float32([0.5, -2.5, 1.2])).tolist() == [1, -3, 1]
