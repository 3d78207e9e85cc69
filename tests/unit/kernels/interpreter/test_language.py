"""What kernels may do in the interpreter, with the corrections installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter as ti
from triton.runtime.errors import InterpreterError
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.attention import paged_attention
from kernels.cache_ops import copy_blocks, write_slots
from kernels.interpreter import overflow_checks
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.tolerance import worst_excess
from reference.attention.truth import attend


class Pair(NamedTuple):
    first: Tensor
    second: float


@triton.jit
def largest(x):
    return tl.max(x, 0)


@triton.jit
def loops_kernel(out, bound, STEPS: tl.constexpr):
    total = 0
    for i in tl.static_range(STEPS):
        total += i
    for i in tl.range(0, bound, num_stages=2):
        total += 10 * i
    for i in range(bound):
        total += 100 * i
    while total < 1000:
        total += 1000
    tl.store(out, total)


@triton.jit
def early_return_kernel(out, limit):
    program = tl.program_id(0)
    if program >= limit:
        return
    tl.store(out + program, program + 1)


@triton.jit
def tuples_kernel(pair, rest, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    values = tl.load(pair[0] + at) * pair[1] + tl.load(rest[1] + at)
    tl.store(out + at, values + rest[0])


@triton.jit
def nested_kernel(x, out, BLOCK: tl.constexpr):
    tl.store(out, largest(tl.load(x + tl.arange(0, BLOCK))) + tl.cdiv(BLOCK, 3))


@triton.jit
def optional_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    values = tl.zeros([BLOCK], tl.float32)
    if x is not None:
        values += tl.load(x + at)
    tl.store(out + at, values)


@triton.jit
def count_kernel(counter, kind, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.atomic_add(counter + lanes * 0, kind, mask=lanes < 5)


@triton.jit
def fails_kernel(x, BLOCK: tl.constexpr):
    tl.load(x + tl.arange(0, BLOCK)) + tl.load(x + tl.arange(0, 2 * BLOCK))


@triton.jit
def pointers_kernel(x):
    x * x


@triton.jit
def stride_kernel(out, block, stride):
    tl.store(out, block * stride)


@triton.jit
def last_kernel(cache, at):
    tl.store(cache + at, tl.load(cache + at) + 7)


@triton.jit
def scaled_kernel(x, out, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at) * FACTOR)


autotuned_kernel = triton.autotune(configs=[triton.Config({"FACTOR": 3})], key=[])(scaled_kernel)
heuristic_kernel = triton.heuristics({"FACTOR": lambda args: args["BLOCK"] // 2})(scaled_kernel)


@triton.jit
def descriptor_kernel(source, target, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    first = tl.program_id(0) * ROWS
    target.store([first, 0], source.load([first, 0]) * 2.0)


@triton.jit
def bitcast_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    column = tl.load(x + at)[:, None].broadcast_to([BLOCK, BLOCK])
    bits = column.to(tl.int16, bitcast=True)
    tl.store(out + at[:, None] * BLOCK + at[None, :], bits)


@triton.jit
def mixed_layout_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    square = at[:, None] * BLOCK + at[None, :]
    values = tl.trans(tl.load(x + square)).to(tl.bfloat16)
    flipped = values + tl.load(x + at).to(tl.bfloat16)[:, None]
    tl.store(out + square, flipped.to(tl.float8e5).to(tl.float32))


def load_module(path: Path, source: str) -> ModuleType:
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_loops_of_every_kind() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    loops_kernel[(1,)](out, 4, STEPS=5)
    assert out.item() == 10 + 60 + 600 + 1000


def test_early_return_ends_one_program_only() -> None:
    out = torch.zeros(4, dtype=torch.int32)
    early_return_kernel[(4,)](out, 2)
    assert out.tolist() == [1, 2, 0, 0]


def test_tuples_and_named_tuples_as_arguments() -> None:
    x, y, out = torch.arange(8.0), torch.full((8,), 0.25), torch.zeros(8)
    tuples_kernel[(1,)](Pair(x, 2.0), (1, y), out, BLOCK=8)
    assert torch.equal(out, 2 * x + 1.25)


def test_nested_calls_and_functions_of_the_language() -> None:
    out = torch.zeros(1)
    nested_kernel[(1,)](torch.tensor([1.0, 7.0, 3.0, 2.0]), out, BLOCK=4)
    assert out.item() == 7 + 2


def test_none_as_argument() -> None:
    out = torch.ones(4)
    optional_kernel[(1,)](None, out, BLOCK=4)
    assert torch.equal(out, torch.zeros(4))


def test_atomics_take_a_broadcast_operand() -> None:
    counter = torch.zeros(1, dtype=torch.int32)
    count_kernel[(3,)](counter, 2, BLOCK=8)
    assert counter.item() == 3 * 5 * 2


def test_autotune_with_one_configuration() -> None:
    out = torch.zeros(4)
    autotuned_kernel[(1,)](torch.ones(4), out, BLOCK=4)
    assert out.tolist() == [3.0] * 4


def test_heuristics() -> None:
    out = torch.zeros(4)
    heuristic_kernel[(1,)](torch.ones(4), out, BLOCK=4)
    assert out.tolist() == [2.0] * 4


def test_an_error_in_a_kernel_names_its_cause() -> None:
    with pytest.raises(InterpreterError, match="incompatible dimensions") as caught:
        fails_kernel[(1,)](torch.zeros(8), BLOCK=4)
    assert isinstance(caught.value.__cause__, ValueError)


def test_pointers_are_not_multiplied() -> None:
    with pytest.raises(InterpreterError, match="IncompatibleTypeErrorImpl"):
        pointers_kernel[(1,)](torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_descriptors(dtype: torch.dtype) -> None:
    source = torch.randn(5, 16).to(dtype)
    target = torch.zeros(8, 16, dtype=dtype)
    source_at, target_at = (
        TensorDescriptor.from_tensor(tensor, block_shape=[4, 16]) for tensor in (source, target)
    )
    descriptor_kernel[(2,)](source_at, target_at, ROWS=4, COLUMNS=16)
    assert torch.equal(target[:5], source * 2)
    assert torch.equal(target[5:], torch.zeros(3, 16, dtype=dtype))


def test_bitcast_of_a_broadcast_view() -> None:
    x = torch.randn(4).to(torch.bfloat16)
    out = torch.zeros(4, 4, dtype=torch.int16)
    bitcast_kernel[(1,)](x, out, BLOCK=4)
    assert torch.equal(out, x.view(torch.int16)[:, None].expand(4, 4))


def test_narrow_types_in_any_layout() -> None:
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(8, 8)
    mixed_layout_kernel[(1,)](x, out, BLOCK=8)
    expected = x.T.bfloat16() + x.flatten()[:8].bfloat16()[:, None]
    assert torch.equal(out, expected.to(torch.float8_e5m2).float())


@pytest.mark.parametrize(
    "imports", ["import triton.language as T", "from triton import language as T"]
)
def test_language_under_another_name_beside_globals_that_compare(
    tmp_path: Path, imports: str
) -> None:
    module = load_module(
        tmp_path / "foreign.py",
        f"import numpy, torch, triton\nimport triton.language as tl\n{imports}\n"
        "from triton.language import core\nTABLE = numpy.arange(3)\nOTHER = torch.arange(3)\n\n"
        "@triton.jit\ndef kernel(x, out, BLOCK: tl.constexpr):\n"
        "    at = T.arange(0, BLOCK)\n"
        "    total = core.reshape(T.load(x + at), [BLOCK // 2, 2])\n"
        "    T.store(out, tl.sum(T.max(total, 1), 0))\n",
    )
    out = torch.zeros(1)
    module.kernel[(1,)](torch.tensor([1.0, 5.0, 2.0, 3.0]), out, BLOCK=4)
    assert out.item() == 8


def test_overflow_wraps_silently_outside_and_raises_inside_the_checks() -> None:
    out = torch.zeros(1, dtype=torch.int64)
    stride_kernel[(1,)](out, 40000, 65536)
    assert out.item() == 40000 * 65536 - 2**32
    with overflow_checks(), pytest.raises(InterpreterError, match=r"int32 overflow .* mul"):
        stride_kernel[(1,)](out, 40000, 65536)
    stride_kernel[(1,)](out, 40000, 65536)
    assert out.item() == 40000 * 65536 - 2**32


def test_overflow_checks_end_with_an_error() -> None:
    before = ti.interpreter_builder.options
    with pytest.raises(RuntimeError, match="inside"), overflow_checks():
        raise RuntimeError("inside")
    assert ti.interpreter_builder.options == before


@pytest.mark.parametrize(
    "spec",
    [
        "2x(q1 k129) (q1 k0) g4 d64 b16 bf16 window=40 softcap=20.0",
        "(q1 k200) h2 d80 b128 fp16 kv=e4m3 kscale=0.5 vscale=0.3",
        "(q20 k129) (q1 k40) (q5 k5) (q1 k0) g3 d64 b1 fp32 alibi sinks",
    ],
)
def test_attention_kernels_compute_no_overflow(spec: str) -> None:
    problem = AttentionProblem.parse(spec)
    inputs = make_inputs(problem)
    placement = place(inputs)
    with overflow_checks():
        paged_attention(placement.batch)
    truth = attend(inputs)
    assert worst_excess(problem, truth, placement.batch.out, placement.batch.lse) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_cache_kernels_compute_no_overflow(dtype: torch.dtype) -> None:
    keys, values = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    key_cache, value_cache = (torch.zeros(4, 4, 2, 16).to(dtype) for _ in range(2))
    slots = torch.tensor([5, -1, 15])
    with overflow_checks():
        write_slots(key_cache, value_cache, keys.bfloat16(), values.bfloat16(), slots)
        copy_blocks(key_cache, value_cache, torch.tensor([[1, 2]]))
    assert torch.equal(key_cache[2].float(), key_cache[1].float())
    assert torch.equal(value_cache[3, 3].float(), values[2].bfloat16().to(dtype).float())


def test_a_cache_beyond_2_31_elements_is_shared_and_not_allocated() -> None:
    size = 2**31 + 4096
    cache = torch.empty(size, dtype=torch.int8)  # the system gives pages on their first use
    cache[-1] = 35
    before = _resident_bytes()
    last_kernel[(1,)](cache, size - 1)
    assert cache[-1].item() == 42
    assert _resident_bytes() - before < 2**28


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


def test_types_of_one_shape_print_and_compare_as_ever() -> None:
    one, other = tl.block_type(tl.float32, [4, 8]), tl.block_type(tl.int32, [4, 8])
    assert one != other
    assert one == tl.block_type(tl.float32, [tl.constexpr(4), tl.constexpr(8)])
    assert one != tl.block_type(tl.float32, [8, 4])
    assert "4" in str(one)
    assert str(one).endswith("fp32>")
    assert one.numel == 32


def test_shapes_are_remembered_by_value_not_by_identity() -> None:
    # Types made and dropped: their shapes' addresses are given to others.
    for rows in (1, 2, 4, 8) * 50:
        shape = [rows, 2 * rows]
        block = tl.block_type(tl.float32, list(shape))
        handle = ti.TensorHandle(np.zeros(shape, dtype=np.float32), tl.float32)
        tensor = tl.tensor(handle, block)
        assert [size.value for size in tensor.shape] == shape
        assert tensor.numel.value == 2 * rows * rows


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: tl.block_type(tl.float32, [3]), ValueError),
        (lambda: tl.block_type(tl.float32, [2**21]), ValueError),
        (lambda: tl.block_type(tl.float32, []), TypeError),
        (lambda: ti.TensorHandle(np.zeros(4), tl.float32), ValueError),
    ],
)
def test_impossible_blocks_are_still_refused(
    make: Callable[[], object], error: type[Exception]
) -> None:
    for _ in range(2):  # the second time from memory, if there were one
        with pytest.raises(error):
            make()
