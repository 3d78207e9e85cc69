"""Run as a script: what each correction of the interpreter mends, with it and without it.

Writes JSON: {"corrections": {correction: {probe: {"with": outcome, "without": outcome, "control":
bool}}}, "late": outcomes}. An outcome is "right", "wrong", or the error that the probe raised. A
control is right stock as well; `install_late` says what is late. The corrections are the process's,
so that each outcome comes from a fork of its own. Start it with TRITON_INTERPRET=1 and
PAGEDBENCH_STOCK_INTERPRETER=1: the forks install what they need.
"""

import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from forks import in_fork
from torch import Tensor
from triton.language.extra import libdevice
from triton.runtime import interpreter as ti

from kernels.interpreter import CORRECTIONS, install

Probe = Callable[[], bool]
PROBES: dict[str, dict[str, Probe]] = {name: {} for name in sorted(CORRECTIONS)}
CONTROLS: set[str] = set()  # right stock as well: the correction must not break them
PLANTS: dict[str, Callable[[], None]] = {}

STOCK = {
    name: function.__code__
    for name, function in {
        "builtin": tl.core.builtin(lambda: None),  # every builtin's wrapper runs this code
        "patch": ti._patch_builtin,
        "numpy_type": ti._get_np_dtype,
        "common_type": ti.TritonSemantic.computation_type_impl,
        "operands": ti.TritonSemantic.binary_op_type_checking_impl,
        "assertion": ti.TritonSemantic.device_assert,
        "shape": tl.core.validate_block_shape,
        "size_check": ti.TensorHandle.__post_init__,
        "unwrap": tl.core._unwrap_if_constexpr,
        "type_comparison": tl.core.dtype.__eq__,
        "splat": ti.InterpreterBuilder.create_splat,
        "broadcast": ti.InterpreterBuilder.create_broadcast,
    }.items()
}


def shows(correction: str) -> Callable[[Probe], Probe]:
    def add(probe: Probe) -> Probe:
        PROBES[correction][probe.__name__] = probe
        return probe

    return add


def control(probe: Probe) -> Probe:
    CONTROLS.add(probe.__name__)
    return probe


def plants(correction: str) -> Callable[[Callable[[], None]], None]:
    """Register what brings back a fault of an earlier release, where this one has it no more."""

    def add(plant: Callable[[], None]) -> None:
        PLANTS[correction] = plant

    return add


def calls(stock: str, run: Callable[[], object]) -> int:
    """How often a function of Triton's, as it came, is called in a run."""
    count = 0

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal count
        code = frame.f_code
        mended = code.co_name == "wrapper" and code.co_filename.endswith("interpreter/language.py")
        is_it = code is STOCK[stock] or (stock == "builtin" and mended)
        count += event == "call" and is_it

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


# --- Formats, from their definition and in float64: nothing here is Triton's, torch's or ours. ---

FORMATS = {
    torch.bfloat16: (8, 7),
    torch.float8_e4m3fn: (4, 3),
    torch.float8_e5m2: (5, 2),
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def values_of(dtype: torch.dtype) -> np.ndarray:
    """float64 values of every code of a format."""
    exponent_bits, mantissa_bits = FORMATS[dtype]
    bias = 2 ** (exponent_bits - 1) - 1
    code = np.arange(2 ** (1 + exponent_bits + mantissa_bits))
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    mantissa = code & (2**mantissa_bits - 1)
    normal = (1 + mantissa / 2.0**mantissa_bits) * 2.0 ** (exponent - bias)
    value = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias - mantissa_bits), normal)
    last = exponent == 2**exponent_bits - 1
    if dtype == torch.float8_e4m3fn:  # no infinities, one NaN
        value[last & (mantissa == 2**mantissa_bits - 1)] = np.nan
    else:
        value[last] = np.where(mantissa == 0, np.inf, np.nan)[last]
    return np.where(code >> (exponent_bits + mantissa_bits), -value, value)


def nearest(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Codes nearest to float64 values; ties to even; float8 saturates. NaN has no code: -1."""
    exponent_bits, mantissa_bits = FORMATS[dtype]
    table = values_of(dtype)[: 2 ** (exponent_bits + mantissa_bits)]
    table = table[np.isfinite(table)]
    magnitude = np.abs(values)
    if dtype in FLOAT8:
        magnitude = np.minimum(magnitude, table[-1])
    else:  # the code after the largest finite value's is infinity's
        table = np.append(table, 2.0 ** (2 ** (exponent_bits - 1)))
        magnitude = np.minimum(magnitude, table[-1])
    above = np.clip(np.searchsorted(table, magnitude), 1, len(table) - 1)
    below = above - 1
    middle = (table[below] + table[above]) / 2
    upper = (magnitude > middle) | ((magnitude == middle) & (above % 2 == 0))
    code = np.where(upper, above, below)
    code += np.signbit(values) * 2 ** (exponent_bits + mantissa_bits)
    return np.where(np.isnan(values), -1, code)


def codes(tensor: Tensor) -> np.ndarray:
    """Codes of a tensor of one of the formats, with -1 for every NaN."""
    unsigned = {1: torch.uint8, 2: torch.uint16}[tensor.element_size()]
    code = tensor.view(unsigned).numpy().astype(np.int64)
    return np.where(np.isnan(values_of(tensor.dtype)[code]), -1, code)


def every(dtype: torch.dtype) -> Tensor:
    """Each code of a type of 8 or 16 bits once."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).view(dtype)
    return torch.from_numpy(np.arange(65536, dtype=np.uint16)).view(dtype)


def float32_around_ties() -> Tensor:
    """Each upper half of a float32 with the lower halves around 0 and 1/2: 393,216 values."""
    upper = np.arange(65536, dtype=np.uint32)[:, None] << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    return torch.from_numpy((upper | lower).T.reshape(-1).view(np.float32))


def float64(tensor: Tensor) -> np.ndarray:
    if tensor.dtype in FORMATS:
        unsigned = {1: torch.uint8, 2: torch.uint16}[tensor.element_size()]
        return values_of(tensor.dtype)[tensor.view(unsigned).numpy()]
    return tensor.numpy().astype(np.float64)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def random(shape: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


# --- Casts -----------------------------------------------------------------------------------


@triton.jit
def cast_kernel(source, target, ROUNDING: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source + at)
    if ROUNDING is None:
        values = values.to(target.dtype.element_ty)
    else:
        values = values.to(target.dtype.element_ty, fp_downcast_rounding=ROUNDING)
    tl.store(target + at, values)


@triton.jit
def copy_kernel(source, target, limit, other, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < limit, other=other))


def cast(source: Tensor, dtype: torch.dtype, *, rounding: str | None = None) -> Tensor:
    target = torch.zeros(source.shape, dtype=dtype)
    block = min(65536, source.numel())
    cast_kernel[(source.numel() // block,)](source, target, rounding, block)
    return target


def integers() -> Tensor:
    edges = [0, 1, -1, 255, 257, 259, -2359297, 2**24 + 1, 2**31 - 1, -(2**31)]
    return torch.tensor([*edges, *range(-1000, 14)], dtype=torch.int32)


# Through float32, rounded to nearest, the last 40th bit is lost and the tie goes down.
NEAR_TIES = torch.tensor(
    [1 + 2**-8 + 2**-40, -1 - 2**-8 - 2**-40, 1e300, 1e-300], dtype=torch.float64
)
E4M3, E5M2 = FLOAT8
# What is cast, and to what: rounded to the nearest, or as it is.
ROUNDED = {
    "float32 to bfloat16": ([float32_around_ties()], [torch.bfloat16]),
    "float16 to bfloat16": ([every(torch.float16)], [torch.bfloat16]),
    "float64 to bfloat16 rounds once": ([NEAR_TIES], [torch.bfloat16]),
    "integers to bfloat16": ([integers()], [torch.bfloat16]),
    "float32 to float8": ([float32_around_ties()], FLOAT8),
    "halves to float8": ([every(torch.float16), every(torch.bfloat16)], FLOAT8),
    "e4m3 to e5m2": ([every(E4M3)], [E5M2]),
    "e5m2 to e4m3": ([every(E5M2)], [E4M3]),
}
KEPT = {
    "bfloat16 to float32": ([every(torch.bfloat16)], [torch.float32]),
    "float8 decodes": (list(map(every, FLOAT8)), [torch.float32, torch.float16, torch.bfloat16]),
}


def rounds(sources: list[Tensor], targets: list[torch.dtype]) -> bool:
    return all(
        same(codes(cast(source, dtype)), nearest(float64(source), dtype))
        for source in sources
        for dtype in targets
    )


def keeps(sources: list[Tensor], targets: list[torch.dtype]) -> bool:
    return all(
        same(float64(cast(source, dtype)), float64(source))
        for source in sources
        for dtype in targets
    )


for _table, _holds in ((ROUNDED, rounds), (KEPT, keeps)):
    for _name, _cast in _table.items():
        PROBES["casts"][_name] = partial(_holds, *_cast)


@shows("casts")
@control
def bfloat16_to_float16() -> bool:
    values = every(torch.bfloat16)
    with np.errstate(over="ignore"):
        expected = float64(values).astype(np.float16)
    result = cast(values, torch.float16).numpy()
    return same(result, expected)


@shows("casts")
@control
def bfloat16_to_integers() -> bool:
    values = every(torch.bfloat16)
    values = values[torch.isfinite(values) & (values.abs() < 2**31)][:32768]
    return same(cast(values, torch.int32).numpy(), float64(values).astype(np.int32))


@shows("casts")
@control
def bfloat16_from_and_to_a_float8_type_of_amd() -> bool:
    # By the builder's own calls: 3.6 does not know the type's name in a kernel.
    convert, nearest_even = ti.interpreter_builder.create_fp_to_fp, ti._ir.ROUNDING_MODE.RTNE
    source = torch.arange(8, 128, dtype=torch.uint8)  # from the least normal number on
    wide = convert(ti.TensorHandle(source.numpy(), tl.float8e4b8), tl.bfloat16, nearest_even)
    back = convert(wide, tl.float8e4b8, nearest_even)
    expected = float64(source.view(torch.float8_e4m3fnuz).float())
    return same(values_of(torch.bfloat16)[wide.data], expected) and same(back.data, source.numpy())


@shows("casts")
def truncating_casts() -> bool:
    values = float32_around_ties()
    bits = values.view(torch.int32).numpy().view(np.uint32) >> 16
    nan = np.isnan(values.numpy())
    bfloat16 = codes(cast(values, torch.bfloat16, rounding="rtz"))
    e5m2 = cast(values, torch.float8_e5m2, rounding="rtz")
    # Truncation: never above in magnitude, and less than one step below.
    magnitude, exact = np.abs(float64(e5m2)), np.abs(values.numpy().astype(np.float64))
    table = np.append(values_of(torch.float8_e5m2)[:0x7C], np.inf)
    step = table[np.searchsorted(table[:-1], magnitude, side="right")]
    finite = np.isfinite(exact)
    return (
        same(bfloat16, np.where(nan, -1, bits.astype(np.int64)))
        and bool(((magnitude <= exact) & ((exact < step) | (magnitude == 57344)))[finite].all())
        and same(np.isnan(magnitude), nan)
        and bool((magnitude[np.isinf(exact)] == np.inf).all())
    )


@shows("casts")
def implicit_casts_of_load_and_store() -> bool:
    source = random((16,), torch.bfloat16)
    loaded = torch.zeros(16)
    copy_kernel[(1,)](source, loaded, 4, 1.005, BLOCK=16)
    other = float64(torch.tensor(1.005)[None])
    expected = np.append(float64(source)[:4], np.repeat(other, 12))
    expected = values_of(torch.bfloat16)[nearest(expected, torch.bfloat16)]
    stored = torch.zeros(16, dtype=torch.bfloat16)
    exact = random((16,), torch.float32, seed=1)
    copy_kernel[(1,)](exact, stored, 16, 0.0, BLOCK=16)
    return same(float64(loaded), expected) and same(
        codes(stored), nearest(float64(exact), torch.bfloat16)
    )


# --- What compiles ---------------------------------------------------------------------------

exp2_by_another_name = tl.exp2
counted = tl.static_range


@triton.jit
def aliases_kernel(out, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    values = exp2_by_another_name(at.to(tl.float32))
    for _ in counted(STEPS):
        values += 1
    tl.store(out + at, values)


@shows("names")
def a_builtin_by_another_name() -> bool:
    out = torch.zeros(8)
    aliases_kernel[(1,)](out, STEPS=tl.constexpr(3), BLOCK=8)
    return same(out.numpy(), 2.0 ** np.arange(8, dtype=np.float32) + 3)


@triton.jit
def libdevice_kernel(out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, libdevice.tanh(at.to(tl.float32)))


@shows("libdevice")
def a_function_of_libdevice() -> bool:
    out = torch.zeros(8)
    libdevice_kernel[(1,)](out, BLOCK=8)
    return same(out.numpy(), np.tanh(np.arange(8, dtype=np.float32)))


@triton.jit
def boolean_kernel(out, low, high, BOTH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    if BOTH and low < high:  # noqa: SIM108 - as kernels write it
        inside = at >= low and at < high
    else:
        inside = at < low or at >= high
    tl.store(out + at, inside.to(tl.int32))


@shows("and, or")
def blocks_are_combined_elementwise() -> bool:
    at = np.arange(16)
    both, either = (torch.zeros(16, dtype=torch.int32) for _ in "ab")
    boolean_kernel[(1,)](both, 3, 9, BOTH=True, BLOCK=16)
    boolean_kernel[(1,)](either, 3, 9, BOTH=False, BLOCK=16)
    inside = (at >= 3) & (at < 9)
    return same(both.numpy().astype(bool), inside) and same(either.numpy().astype(bool), ~inside)


@shows("constexprs")
def constants_have_positions() -> bool:
    return list(boolean_kernel.constexprs) == [3, 4]


# --- Arithmetic ------------------------------------------------------------------------------


@triton.jit
def binary_kernel(x, y, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a = tl.load(x + at)
    b = tl.load(y + at)
    if OP == "add":
        tl.store(out + at, a + b)
    elif OP == "sub":
        tl.store(out + at, a - b)
    elif OP == "mul":
        tl.store(out + at, a * b)
    elif OP == "neg":
        tl.store(out + at, -a)
    elif OP == "maximum":
        tl.store(out + at, tl.maximum(a, b))
    elif OP == "minimum":
        tl.store(out + at, tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL))
    elif OP == "clamp":
        tl.store(out + at, tl.clamp(a, -b * b, b * b, propagate_nan=tl.PropagateNan.ALL))
    elif OP == "fma":
        tl.store(out + at, tl.fma(a, b, a))
    elif OP == "less":
        tl.store(out + at, (a < b).to(tl.int8))
    elif OP == "equal":
        tl.store(out + at, (a == b).to(tl.int8))
    elif OP == "half":
        tl.store(out + at, a * 0.5)


EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a, b: -a,
    "maximum": np.fmax,
    "minimum": np.minimum,
    "clamp": lambda a, b: np.clip(a, -squared(b), squared(b)),
    "fma": lambda a, b: a * b + a,
    "half": lambda a, b: a * 0.5,
}


def squared(b: np.ndarray) -> np.ndarray:
    return values_of(torch.bfloat16)[nearest(b * b, torch.bfloat16)]


def elementwise(operation: str) -> bool:
    x, y = (random((1024,), torch.bfloat16, seed=seed) for seed in (2, 3))
    x[:2] = torch.tensor([float("inf"), float("-inf")])
    out = torch.zeros(1024, dtype=torch.bfloat16)
    binary_kernel[(1,)](x, y, out, operation, BLOCK=1024)
    expected = EXACT[operation](float64(x), float64(y))
    return same(codes(out), nearest(expected, torch.bfloat16))


for _operation in EXACT:
    PROBES["arithmetic"][f"bfloat16 {_operation}"] = partial(elementwise, _operation)
# Triton 3.6 promotes these two to float32 of itself.
CONTROLS |= {"bfloat16 maximum", "bfloat16 minimum"}


@shows("arithmetic")
def bfloat16_comparisons() -> bool:
    x, y = (random((1024,), torch.bfloat16, seed=seed) for seed in (4, 5))
    y[::4] = x[::4]
    x[0], y[0] = 0.0, -0.0
    x[4] = y[4] = float("nan")
    out = torch.zeros(1024, dtype=torch.int8)
    binary_kernel[(1,)](x, y, out, "less", BLOCK=1024)
    less = same(out.numpy(), (float64(x) < float64(y)).astype(np.int8))
    binary_kernel[(1,)](x, y, out, "equal", BLOCK=1024)
    return less and same(out.numpy(), (float64(x) == float64(y)).astype(np.int8))


@shows("arithmetic")
def float8_sums() -> bool:
    return all(_float8_sum(dtype) for dtype in FLOAT8)


def _float8_sum(dtype: torch.dtype) -> bool:
    x = every(dtype)
    y = x.view(torch.uint8).flip(0).view(dtype)
    out = torch.zeros(256, dtype=dtype)
    binary_kernel[(1,)](x, y, out, "add", BLOCK=256)
    with np.errstate(invalid="ignore"):
        expected = float64(x) + float64(y)
    return same(codes(out), nearest(expected, dtype))


@triton.jit
def exp2_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.exp2(tl.load(x + at)))


@shows("overflow")
def overflow_is_infinity_and_no_warning() -> bool:
    x, out = torch.tensor([200.0, 3.0]), torch.zeros(2)
    # The probes run without numpy's warnings; this one is about them.
    with warnings.catch_warnings(), np.errstate(over="warn"):
        warnings.simplefilter("error")
        exp2_kernel[(1,)](x, out, BLOCK=2)
    return out.tolist() == [float("inf"), 8.0]


# --- Matrix products -------------------------------------------------------------------------


@triton.jit
def dot_kernel(a, b, out, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    row = tl.arange(0, M)
    column = tl.arange(0, N)
    left = tl.load(a + row[:, None] * N + column[None, :])
    right = tl.load(b + column[:, None] * M + row[None, :])
    product = tl.dot(left, right, input_precision=PRECISION)
    tl.store(out + row[:, None] * M + row[None, :], product)


def product_is(a: Tensor, b: Tensor, precision: str, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether tl.dot gives the float64 product of two matrices, to float32's accuracy."""
    out = torch.zeros(16, 16)
    dot_kernel[(1,)](a, b, out, precision, M=16, N=64)
    error = np.abs(out.numpy() - one @ other)
    return bool((error <= 64 * 2.0**-24 * (np.abs(one) @ np.abs(other))).all())


@shows("dot")
def bfloat16_products() -> bool:
    a, b = random((16, 64), torch.bfloat16), random((64, 16), torch.bfloat16, seed=1)
    return product_is(a, b, "ieee", float64(a), float64(b))


@shows("dot")
def mixed_float8_products() -> bool:
    a, b = random((16, 64), FLOAT8[1]), random((64, 16), FLOAT8[0], seed=1)
    right = product_is(a, b, "ieee", float64(a), float64(b))
    # Stock reads e4m3's NaN as 480.
    b[0, 0] = float("nan")
    out = torch.zeros(16, 16)
    dot_kernel[(1,)](a, b, out, "ieee", M=16, N=64)
    return right and bool(out[:, 0].isnan().all()) and bool(out[:, 1:].isfinite().all())


@shows("dot")
def tf32_products_are_truncated() -> bool:
    a, b = random((16, 64), torch.float32).abs(), random((64, 16), torch.float32, seed=1).abs()
    one, other = (
        (x.numpy().view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
        for x in (a, b)
    )
    return product_is(a, b, "tf32", one, other) and product_is(a, b, "ieee", float64(a), float64(b))


# --- Reductions ------------------------------------------------------------------------------


@triton.jit
def reduce_kernel(x, out, index, OP: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    row = tl.arange(0, M)
    column = tl.arange(0, N)
    values = tl.load(x + row[:, None] * N + column[None, :])
    if OP == "sum":
        tl.store(out + row, tl.sum(values, 1))
    elif OP == "total":
        tl.store(out, tl.sum(values))
    elif OP == "max":
        best, where = tl.max(values, 1, return_indices=True)
        tl.store(out + row, best)
        tl.store(index + row, where)
    elif OP == "cumsum":
        total = tl.associative_scan(values, 1, tl.standard._sum_combine)
        tl.store(out + row[:, None] * N + column[None, :], total)
    elif OP == "cumprod":
        total = tl.associative_scan(values, 1, tl.standard._prod_combine)
        tl.store(out + row[:, None] * N + column[None, :], total)


def reduced(x: Tensor, operation: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    out, index = torch.zeros(shape, dtype=x.dtype), torch.zeros(shape, dtype=torch.int32)
    reduce_kernel[(1,)](x, out, index, operation, M=4, N=32)
    return out, index


def small_integers(dtype: torch.dtype) -> Tensor:
    """Numbers whose sums are exact in float32."""
    generator = torch.Generator().manual_seed(6)
    return torch.randint(-4, 5, (4, 32), generator=generator).float().to(dtype)


@shows("reductions")
def bfloat16_sums() -> bool:
    x = random((4, 32), torch.bfloat16)
    exact = float64(small_integers(torch.bfloat16))
    rows, _ = reduced(small_integers(torch.bfloat16), "sum", (4,))
    total, _ = reduced(small_integers(torch.bfloat16), "total", (1,))
    near, _ = reduced(x, "sum", (4,))
    return (
        same(codes(rows), nearest(exact.sum(1), torch.bfloat16))
        and same(codes(total), nearest(exact.sum()[None], torch.bfloat16))
        and bool(np.allclose(float64(near), float64(x).sum(1), rtol=2**-7, atol=2**-6))
    )


@shows("reductions")
def float8_maximum_and_its_index() -> bool:
    x = random((4, 32), FLOAT8[1], seed=7)
    best, index = reduced(x, "max", (4,))
    values = float64(x)
    return same(float64(best), values.max(1)) and same(
        index.numpy(), values.argmax(1).astype(np.int32)
    )


@shows("reductions")
def bfloat16_running_sums() -> bool:
    x = small_integers(torch.bfloat16)
    out, _ = reduced(x, "cumsum", (4, 32))
    return same(codes(out), nearest(float64(x).cumsum(1), torch.bfloat16))


@shows("reductions")
def bfloat16_running_products() -> bool:
    x = torch.tensor([1.0, -1.0, 2.0, 0.5] * 32).reshape(32, 4).T.contiguous().bfloat16()
    out, _ = reduced(x, "cumprod", (4, 32))
    return same(codes(out), nearest(float64(x).cumprod(1), torch.bfloat16))


# --- Earlier releases ------------------------------------------------------------------------


@triton.jit
def loop_kernel(bound, out):
    total = 0.0
    for step in range(tl.load(bound)):
        total += step
    tl.store(out, total)


@plants("index")
def int_of_array() -> None:
    stock = ti._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        stock(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data))

    ti._patch_lang_tensor = patch


@shows("index")
def loaded_loop_bound() -> bool:
    out = torch.zeros(1)
    loop_kernel[(1,)](torch.tensor([5]), out)
    return out.item() == 10


@triton.jit
def nan_kernel(x, y, out, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a = tl.load(x + at)
    b = tl.load(y + at)
    if OP == "maximum":
        tl.store(out + at, tl.maximum(a, b))
    elif OP == "minimum":
        tl.store(out + at, tl.minimum(a, b))
    else:
        tl.store(out + at, tl.clamp(a, b, 3.0))


@plants("nan")
def propagate_nan() -> None:
    builder = ti.InterpreterBuilder
    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.maximum)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.minimum)
    builder.create_clampf = lambda self, x, lo, hi, _: self.ternary_op(x, lo, hi, np.clip)


def dropped_nan(operation: str, expected: list[float]) -> bool:
    nan = float("nan")
    x, y = torch.tensor([nan, 1.0, 2.0, 5.0]), torch.tensor([1.0, nan, 1.0, 1.0])
    out = torch.zeros(4)
    nan_kernel[(1,)](x, y, out, operation, BLOCK=4)
    return out.tolist() == expected


for _operation, _expected in {
    "maximum": [1.0, 1.0, 2.0, 5.0],
    "minimum": [1.0, 1.0, 1.0, 1.0],
    "clamp": [1.0, 1.0, 2.0, 3.0],
}.items():
    PROBES["nan"][f"{_operation} with nan"] = partial(dropped_nan, _operation, _expected)


@triton.jit
def full_kernel(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.full([BLOCK], 1.005, tl.bfloat16))


@plants("bfloat16 constants")
def no_constant() -> None:
    if hasattr(ti.InterpreterBuilder, "get_bf16"):
        del ti.InterpreterBuilder.get_bf16


@shows("bfloat16 constants")
def full_of_bfloat16() -> bool:
    out = torch.zeros(4, dtype=torch.bfloat16)
    full_kernel[(1,)](out, BLOCK=4)
    return same(codes(out), nearest(np.full(4, 1.005), torch.bfloat16))


# --- Costs: counted, not timed ----------------------------------------------------------------


@triton.jit
def doubled(x):
    return tl.maximum(tl.max(x, 0) + tl.sum(x, 0), 0.0) + x + x


@triton.jit
def work_kernel(x, out, factor, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    values = tl.load(x + at)
    for _ in range(TIMES):
        values = doubled(values * factor)
    tl.store(out + at, values)


def work(*, times: int = 4) -> None:
    out = torch.zeros(16)
    work_kernel[(2,)](torch.ones(16), out, 0.5, times, BLOCK=16)


def not_called_when_warm(stock: str) -> bool:
    work()
    return calls(stock, work) == 0


for _correction, _stock in {
    "language patched once": "patch",
    "direct builtins": "builtin",
    "numpy types": "numpy_type",
    "common types": "common_type",
    "shapes": "shape",
    "sizes": "size_check",
}.items():
    PROBES[_correction][f"no call of {_stock}"] = partial(not_called_when_warm, _stock)


@triton.jit
def sums_kernel(out, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    total = at
    for _ in range(TIMES):
        total = total + at
    tl.store(out + at, total)


def sums(*, times: int) -> Tensor:
    out = torch.zeros(16, dtype=torch.int32)
    sums_kernel[(1,)](out, times, BLOCK=16)
    return out


@shows("sizes")
@control
def an_array_that_is_too_wide_is_refused() -> bool:
    for dtype, wide in ((tl.int1, np.int16), (tl.float32, np.float64)):
        try:
            ti.TensorHandle(np.zeros(4, wide), dtype)
        except ValueError:
            continue
        return False
    return True


@shows("unwrapping")
def what_is_no_constant_is_handed_on() -> bool:
    seen: list[object] = []

    def unwrap() -> None:
        values = 1, None, tl.int32, tl.constexpr(3), tl.constexpr(0.5)
        seen.extend(tl.core._unwrap_if_constexpr(each) for each in values)

    one_by_one = calls("unwrap", unwrap)
    inside = tl.core._unwrap_if_constexpr([tl.constexpr(1), (tl.constexpr(2), 3)])
    return one_by_one == 0 and seen == [1, None, tl.int32, 3, 0.5] and inside == [1, (2, 3)]


@shows("same types")
def no_names_are_compared() -> bool:
    pointers = tl.pointer_type(tl.int8), tl.pointer_type(tl.int8), tl.pointer_type(tl.int16)
    sums = calls("type_comparison", lambda: tl.int32 == tl.int32)
    equal = pointers[0] == pointers[1] and tl.int32 == tl.dtype("int32")
    return sums == 0 and equal and pointers[0] != pointers[2] and tl.int32 != tl.int64


@shows("dead overflow checks")
def no_check_of_integers() -> bool:
    return calls("assertion", lambda: sums(times=9)) == 0


@shows("equal types")
def no_cast_of_equal_types() -> bool:
    few, many = (calls("operands", lambda n=n: sums(times=n)) for n in (1, 9))
    return few == many and sums(times=9).tolist() == [10 * i for i in range(16)]


@triton.jit
def outer_kernel(out, scale, M: tl.constexpr, N: tl.constexpr):
    row = tl.arange(0, M)
    column = tl.arange(0, N)
    tl.store(out + (row[:, None] * N + column[None, :]), (row[:, None] + column[None, :]) * scale)


@shows("views")
def no_filled_copy() -> bool:
    out = torch.zeros(4, 8)

    def launch() -> None:
        outer_kernel[(1,)](out, 0.5, M=4, N=8)

    launch()
    expected = (torch.arange(4)[:, None] + torch.arange(8)[None, :]) * 0.5
    copies = calls("splat", launch) + calls("broadcast", launch)
    return copies == 0 and torch.equal(out, expected)


def outcome_of(probe: Probe) -> str:
    try:
        return "right" if probe() else "wrong"
    except Exception as error:  # which may be just what it shows
        return f"{type(error).__name__}: {error}"


def outcomes(correction: str, without: frozenset[str]) -> dict[str, str]:
    PLANTS.get(correction, lambda: None)()
    install(without=without)
    return {name: outcome_of(probe) for name, probe in PROBES[correction].items()}


def compare(correction: str) -> dict[str, dict[str, str | bool]]:
    with_it = in_fork(lambda: outcomes(correction, frozenset()))
    without_it = in_fork(lambda: outcomes(correction, frozenset({correction})))
    return {
        name: {"with": with_it[name], "without": without_it[name], "control": name in CONTROLS}
        for name in with_it
    }


def install_late() -> list[str]:
    """Outcomes of all probes of values, before and after an installation between launches."""
    probes = [probe for name in ("casts", "arithmetic", "dot") for probe in PROBES[name].values()]
    before = {outcome_of(probe) for probe in probes}
    install()
    after = {outcome_of(probe) for probe in probes}
    return ["wrong" if "wrong" in before else "right", *after]


def main() -> None:
    torch.set_num_threads(1)
    with np.errstate(all="ignore"):
        report = {
            "corrections": {correction: compare(correction) for correction in PROBES},
            "late": in_fork(install_late),
        }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
