"""Every kind of illegal access is a finding with its line and its place; legal ones are none."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from helpers.mutants import programs_in_reverse
from kernels.attention import paged_attention
from kernels.cache_ops import copy_blocks, write_slots
from kernels.interpreter.memory import (
    Fault,
    Finding,
    MemoryReport,
    Role,
    attention_roles,
    copy_roles,
    watch_attention,
    watch_memory,
    write_roles,
)
from reference.attention.contract import PagedBatch
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem

HERE = Path(__file__).name


@triton.jit
def copy_kernel(source, target, n, shift, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + lane, tl.load(source + lane + shift, mask=lane < n, other=0), mask=lane < n)


@triton.jit
def wild_kernel(source, target, offset, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    values = tl.load(source + lane + offset)
    tl.store(target + lane, values)
    tl.store(target + lane + offset, values)


@triton.jit
def overlapping_kernel(target, BLOCK: tl.constexpr, STEP: tl.constexpr):
    program = tl.program_id(0)
    tl.store(target + program * STEP + tl.arange(0, BLOCK), program)


@triton.jit
def duplicate_kernel(target, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(target + lane // 2, lane)


@triton.jit
def neighbour_kernel(buffer, BLOCK: tl.constexpr):
    """Each program writes its element and reads the next program's."""
    program = tl.program_id(0)
    value = tl.load(buffer + program + 1)
    tl.store(buffer + program, value + 1)


@triton.jit
def accumulate_kernel(source, total, counter, BLOCK: tl.constexpr):
    """Adds up atomically; the last program to arrive reads the sum."""
    program = tl.program_id(0)
    values = tl.load(source + program * BLOCK + tl.arange(0, BLOCK))
    tl.atomic_add(total, tl.sum(values, 0), sem="relaxed")
    arrived = tl.atomic_add(counter, 1, sem="acq_rel")
    if arrived == tl.num_programs(0) - 1:
        tl.store(total + 1, tl.load(total))


@triton.jit
def impatient_kernel(source, total, BLOCK: tl.constexpr):
    """Adds up atomically, and reads the sum without knowing whether others are done."""
    program = tl.program_id(0)
    values = tl.load(source + program * BLOCK + tl.arange(0, BLOCK))
    tl.atomic_add(total, tl.sum(values, 0), sem="relaxed")
    tl.store(total + 1 + program, tl.load(total))


@triton.jit
def undefined_kernel(source, target, n, BLOCK: tl.constexpr, USED: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    values = tl.load(source + lane, mask=lane < n)
    if USED:
        tl.store(target + lane, tl.sum(values, 0) + tl.zeros_like(values))
    else:
        tl.store(target + lane, values, mask=lane < n)


@triton.jit
def descriptor_kernel(source, target, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    box = tl.make_tensor_descriptor(
        source, shape=[rows, columns], strides=[columns, 1], block_shape=[ROWS, COLUMNS]
    )
    values = box.load([tl.program_id(0) * ROWS, 0])
    to = tl.program_id(0) * ROWS * COLUMNS + tl.arange(0, ROWS * COLUMNS)
    tl.store(target + to, tl.reshape(values, [ROWS * COLUMNS]), mask=to < rows * columns)


@triton.jit
def choose_kernel(one, other, target, BLOCK: tl.constexpr):
    """Pointers of two tensors in one load."""
    lane = tl.arange(0, BLOCK)
    pointer = tl.where(lane % 2 == 0, one + lane, other + lane)
    tl.store(target + lane, tl.load(pointer))


@triton.jit
def address_kernel(address, target, BLOCK: tl.constexpr):
    """The address comes as a number."""
    lane = tl.arange(0, BLOCK)
    tl.store(target + lane, tl.load(address.to(tl.pointer_type(tl.float32)) + lane))


@triton.jit
def bytes_kernel(source, target, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    narrow = source.to(tl.pointer_type(tl.uint8))
    tl.store(target + lane, tl.load(narrow + lane))


@triton.jit
def crooked_kernel(source, target, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    crooked = (source.to(tl.pointer_type(tl.uint8)) + 2).to(tl.pointer_type(tl.float32))
    tl.store(target + lane, tl.load(crooked + lane))


def line_of(kernel: object, text: str) -> int:
    lines, start = inspect.getsourcelines(kernel.fn)  # type: ignore[attr-defined]
    (line,) = (start + number for number, each in enumerate(lines) if text in each)
    return line


def watched(
    kernel: Any,
    programs: int,
    *arguments: object,
    roles: list[Role] | None = None,
    **constants: int,
) -> MemoryReport:
    """What is found of one launch."""
    with watch_memory(roles or ()) as memory:
        kernel[(programs,)](*arguments, **constants)
    return memory


def only(memory: MemoryReport) -> Finding:
    (finding,) = memory.findings
    return finding


def test_what_is_legal_gives_no_finding_and_the_same_answer() -> None:
    source, target = torch.randn(50), torch.empty(50)
    memory = watched(copy_kernel, 4, source, target, 50, 0, BLOCK=16)
    assert memory.findings == []
    assert memory.launches == 1
    assert torch.equal(source, target)
    read, written = (memory.traffic[f"copy_kernel.{name}"] for name in ("source", "target"))
    assert (read.loaded, read.stored) == (200, 0)
    assert (written.loaded, written.stored_distinct) == (0, 200)


def test_a_load_past_the_end_names_the_line_the_program_and_the_place() -> None:
    source, target = torch.randn(50), torch.empty(50)
    memory = watched(copy_kernel, 4, source, target, 50, 3, BLOCK=16)
    finding = only(memory)
    assert finding.fault is Fault.OUT_OF_BOUNDS
    assert (finding.operation, finding.tensor, finding.kernel) == ("load", "source", "copy_kernel")
    assert Path(finding.file).name == HERE
    assert finding.line == line_of(copy_kernel, "tl.store")
    # Lane 47 of program 2, and 48 and 49 of program 3, read the elements 50, 51 and 52.
    assert finding.program == (2, 0, 0)
    assert (finding.lanes, finding.of_lanes, finding.times) == (1, 16, 2)
    assert "index 0 50" in str(finding)
    assert torch.equal(target[:47], source[3:])


@pytest.mark.parametrize("offset", [10**7, -(10**7), 2**33, -(2**33)])
def test_wild_pointers_are_findings_and_the_process_lives(offset: int) -> None:
    source, target = torch.randn(16), torch.zeros(16)
    memory = watched(wild_kernel, 1, source, target, offset, BLOCK=16)
    assert [(f.fault, f.operation, f.tensor) for f in memory.findings] == [
        (Fault.OUT_OF_BOUNDS, "load", "source"),
        (Fault.OUT_OF_BOUNDS, "store", "target"),
    ]
    assert torch.equal(target, torch.zeros(16))


def test_a_pointer_of_one_tensor_that_lands_in_another_is_out_of_bounds() -> None:
    whole = torch.randn(64)
    source, beside, target = whole[:16], whole[16:], torch.empty(16)
    roles = [Role("source", source, ("n",)), Role("beside", beside, ("n",))]
    memory = watched(copy_kernel, 1, source, target, 16, 8, BLOCK=16, roles=roles)
    assert only(memory).fault is Fault.OUT_OF_BOUNDS
    assert only(memory).lanes == 8


def test_elements_between_the_rows_are_not_the_tensor_s() -> None:
    fused = torch.randn(4, 24)
    query, target = fused[:, :16], torch.empty(64)
    memory = watched(
        copy_kernel,
        4,
        query,
        target,
        64,
        0,
        BLOCK=16,
        roles=[Role("query", query, ("token", "dim"))],
    )
    finding = only(memory)
    assert finding.fault is Fault.BETWEEN_ROWS
    assert "token 0, dim 16" in str(finding)


def test_overlapping_stores_of_two_programs_are_a_race() -> None:
    target = torch.zeros(64, dtype=torch.int32)
    memory = watched(overlapping_kernel, 4, target, BLOCK=16, STEP=12)
    finding = only(memory)
    assert finding.fault is Fault.RACE
    assert (finding.lanes, finding.program, finding.times) == (4, (1, 0, 0), 3)
    assert "another program stored" in str(finding)


def test_two_launches_do_not_race() -> None:
    target = torch.zeros(64, dtype=torch.int32)
    with watch_memory() as memory:
        overlapping_kernel[(4,)](target, BLOCK=16, STEP=16)
        overlapping_kernel[(1,)](target, BLOCK=16, STEP=16)
        neighbour_kernel[(1,)](target, BLOCK=1)
    assert memory.findings == []


def test_what_is_outside_is_said_of_the_view_that_the_kernel_was_given() -> None:
    table, target = torch.zeros(2, 5), torch.empty(12)
    role = Role("table", table, ("sequence", "column"), "read")
    memory = watched(copy_kernel, 1, table[:, :3], target, 9, 0, BLOCK=16, roles=[role])
    assert (only(memory).place, only(memory).held) == ("sequence 1, column 3", "element 8 of 2 x 3")
    memory = watched(copy_kernel, 1, table[:1, :1], target, 2, 0, BLOCK=16, roles=[role])
    assert (only(memory).place, only(memory).held) == ("sequence 0, column 1", "element 1 of 1 x 1")


def test_lanes_of_one_store_at_one_address() -> None:
    memory = watched(duplicate_kernel, 1, torch.zeros(16, dtype=torch.int32), BLOCK=16)
    assert only(memory).fault is Fault.DUPLICATE_LANES
    assert only(memory).lanes == 8


@pytest.mark.parametrize(
    ("order", "did"), [(nullcontext, "loaded"), (programs_in_reverse, "stored")]
)
def test_a_program_that_reads_what_another_writes(order: Any, did: str) -> None:
    with watch_memory() as memory, order():
        neighbour_kernel[(8,)](torch.zeros(9, dtype=torch.int32), BLOCK=1)
    finding = only(memory)
    assert finding.fault is Fault.RACE
    assert did in finding.held
    assert finding.times == 7


def test_atomics_do_not_race_and_who_acquires_has_seen_what_was_released() -> None:
    source, total, counter = torch.ones(64), torch.zeros(2), torch.zeros(1, dtype=torch.int32)
    memory = watched(accumulate_kernel, 4, source, total, counter, BLOCK=16)
    assert memory.findings == []
    assert total.tolist() == [64, 64]


def test_reading_an_atomic_sum_without_acquiring_it_is_a_race() -> None:
    source, total = torch.ones(64), torch.zeros(5)
    memory = watched(impatient_kernel, 4, source, total, BLOCK=16)
    assert {finding.fault for finding in memory.findings} == {Fault.RACE}
    # A program's own addition is the last before its load; the next one's comes after the load.
    assert only(memory).line == line_of(impatient_kernel, "tl.atomic")


def test_memory_that_the_host_left_empty_must_be_written_before_it_is_read() -> None:
    target = torch.empty(16)
    with watch_memory() as memory:
        copy_kernel[(1,)](torch.empty(16), target, 16, 0, BLOCK=16)
        copy_kernel[(1,)](target, torch.empty_like(target), 16, 0, BLOCK=16)
    finding = only(memory)
    assert finding.fault is Fault.UNWRITTEN
    assert finding.tensor == "source"


def test_what_the_host_writes_counts_and_only_where_it_writes() -> None:
    with watch_memory() as memory:
        source = torch.empty(32)
        source[:16].fill_(1.0)
        filled = torch.full((16,), 2.0)
        copy_kernel[(1,)](source, torch.empty(16), 16, 0, BLOCK=16)
        copy_kernel[(1,)](filled, torch.empty(16), 16, 0, BLOCK=16)
        assert memory.findings == []
        copy_kernel[(1,)](source, torch.empty(16), 16, 1, BLOCK=16)
    assert only(memory).fault is Fault.UNWRITTEN
    assert only(memory).lanes == 1


def test_undefined_lanes_are_found_and_are_not_zero() -> None:
    source, target = torch.ones(16), torch.zeros(16)
    memory = watched(undefined_kernel, 1, source, target, 5, BLOCK=16, USED=True)
    finding = only(memory)
    assert finding.fault is Fault.UNDEFINED_LANES
    assert (finding.lanes, finding.of_lanes, finding.tensor) == (11, 16, "source")
    assert target.isnan().all()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64]
)
def test_undefined_lanes_of_every_type(dtype: torch.dtype) -> None:
    source = torch.ones(16).to(dtype)
    target = torch.zeros(16, dtype=dtype)
    with watch_memory():
        undefined_kernel[(1,)](source, target, 5, BLOCK=16, USED=False)
    assert torch.equal(target[:5].float(), torch.ones(5))
    kept: dict[str, Tensor] = {}
    with watch_memory():
        kept["all"] = torch.zeros(16, dtype=dtype)
        spill_kernel[(1,)](source, kept["all"], 5, BLOCK=16)
    undefined = kept["all"][5:]
    assert undefined.float().isnan().all() if dtype.is_floating_point else (undefined > 16).all()


@triton.jit
def spill_kernel(source, target, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(target + lane, tl.load(source + lane, mask=lane < n))


def test_descriptors_are_watched_too() -> None:
    source, target = torch.randn(6, 16), torch.empty(6, 16)
    memory = watched(descriptor_kernel, 2, source, target, 6, 16, ROWS=4, COLUMNS=16)
    assert memory.findings == []
    assert torch.equal(source, target)
    memory = watched(
        descriptor_kernel, 2, source[:5], torch.empty(8, 16), 8, 16, ROWS=4, COLUMNS=16
    )
    assert only(memory).fault is Fault.OUT_OF_BOUNDS


def test_one_load_from_two_tensors() -> None:
    one, other, target = torch.randn(16), torch.randn(12), torch.zeros(16)
    memory = watched(choose_kernel, 1, one, other, target, BLOCK=16)
    finding = only(memory)
    assert (finding.fault, finding.tensor, finding.lanes) == (Fault.OUT_OF_BOUNDS, "other", 2)
    assert torch.equal(target[:12:2], one[:12:2])
    assert torch.equal(target[1:12:2], other[1::2])


def test_an_address_that_is_a_number_comes_from_no_tensor() -> None:
    source, target = torch.randn(16), torch.zeros(16)
    memory = watched(address_kernel, 1, source.data_ptr(), target, BLOCK=16)
    assert only(memory).fault is Fault.WILD
    assert "no tensor" in str(only(memory))


def test_a_tensor_can_be_read_byte_by_byte() -> None:
    source, target = torch.randn(4), torch.zeros(16, dtype=torch.uint8)
    memory = watched(bytes_kernel, 1, source, target, BLOCK=16)
    assert memory.findings == []
    assert torch.equal(source.view(torch.uint8), target)


def test_an_address_within_an_element_is_misaligned() -> None:
    memory = watched(crooked_kernel, 1, torch.randn(17), torch.zeros(16), BLOCK=16)
    assert only(memory).fault is Fault.MISALIGNED


def test_watching_is_not_nested_and_leaves_nothing_behind() -> None:
    from triton.runtime import interpreter as ti

    before = ti._interpreter, ti._implicit_cvt, ti.GridExecutor.__call__
    with (
        watch_memory(),
        pytest.raises(RuntimeError, match="watched already"),
        watch_memory(),
    ):
        pass
    assert (ti._interpreter, ti._implicit_cvt, ti.GridExecutor.__call__) == before


# --- roles ---------------------------------------------------------------------------------------


def batch_of(spec: str) -> PagedBatch:
    return place(make_inputs(AttentionProblem.parse(spec))).batch


@triton.jit
def read_kernel(
    query,
    key_cache,
    block_table,
    out,
    block,
    stride_block,
    stride_q,
    stride_t,
    stride_o,
    WHO: tl.constexpr,
    COLUMN: tl.constexpr,
    D: tl.constexpr,
):
    """Works for the sequence of its number; reads the block of sequence WHO, or a given one."""
    sequence = tl.program_id(0)
    dim = tl.arange(0, D)
    rows = tl.load(query + sequence * stride_q + dim)
    if WHO >= 0:
        block = tl.load(block_table + WHO * stride_t + COLUMN)
    keys = tl.load(key_cache + block * stride_block + dim)
    tl.store(out + sequence * stride_o + dim, rows + keys)


def read(batch: PagedBatch, *, who: int = -1, column: int = 0, block: int = 0) -> list[Finding]:
    with watch_memory(attention_roles(batch)) as memory:
        read_kernel[(1,)](
            batch.query,
            batch.key_cache,
            batch.block_table,
            batch.out,
            block,
            batch.key_cache.stride(0),
            batch.query.stride(0),
            batch.block_table.stride(0),
            batch.out.stride(0),
            WHO=who,
            COLUMN=column,
            D=16,
        )
    return memory.findings


BATCH = "2x(q1 k20) d16 b16 fp32"


def test_another_sequence_s_slots_and_table_row_are_not_the_program_s_own() -> None:
    assert read(batch_of(BATCH), who=0) == []
    table, keys = read(batch_of(BATCH), who=1)
    assert (table.fault, table.tensor) == (Fault.NOT_OWNED, "block_table")
    assert (keys.fault, keys.tensor) == (Fault.NOT_OWNED, "key_cache")
    assert "token 0 of sequence 1, the program works for sequence 0" in str(keys)


def test_a_block_of_nobody() -> None:
    batch = batch_of(BATCH)
    used = set(batch.block_table[:, :2].flatten().tolist())
    free = next(block for block in range(len(batch.key_cache)) if block not in used)
    (finding,) = read(batch, block=free)
    assert finding.fault is Fault.NOT_OWNED
    assert f"block {free}, offset 0, head 0, dim 0: a slot that no sequence owns" in str(finding)


def test_the_tail_of_a_sequence_s_last_block() -> None:
    batch = batch_of("2x(q1 k16) d16 b16 fp32")
    short = batch.replace(seq_lens=batch.seq_lens - 16)
    (finding,) = read(batch_of("2x(q1 k15) d16 b16 fp32"), who=0)[:1] or [None]
    assert finding is None
    roles = {role.name: role for role in attention_roles(short)}
    assert not roles["key_cache"].readers.group.any()
    slots = {role.name: role for role in attention_roles(batch_of(BATCH))}["key_cache"]
    tail = [slots.contents(slot) for slot in range(slots.readers.group.size)]
    assert (
        sum(words == "past the 20 tokens of sequence 1, in its last block" for words in tail) == 12
    )


def test_blocks_of_a_shared_prefix_belong_to_all_that_share_them() -> None:
    batch = batch_of("3x(q1 k40) d16 b16 fp32 shared=32")
    assert len(set(batch.block_table[:, 0].tolist())) == 1
    assert read(batch, who=0, column=1) == []
    with watch_memory(attention_roles(batch)) as memory:
        paged_attention(batch)
    assert memory.findings == []
    shared, own = batch.block_table[0, 1], batch.block_table[1, 2]
    assert read(batch, block=int(shared)) == []
    (finding,) = read(batch, block=int(own))
    assert "token 32 of sequence 1" in finding.held


def test_inputs_are_not_written() -> None:
    batch = batch_of(BATCH)
    memory = watched(
        overlapping_kernel, 1, batch.seq_lens, BLOCK=2, STEP=1, roles=attention_roles(batch)
    )
    assert only(memory).fault is Fault.READ_ONLY
    assert only(memory).tensor == "seq_lens"


def test_answers_of_another_sequence_are_not_the_program_s_to_write() -> None:
    batch = batch_of(BATCH)
    memory = watched(
        copy_kernel, 1, batch.query, batch.out[1:], 16, 0, BLOCK=16, roles=attention_roles(batch)
    )
    finding = only(memory)
    assert (finding.fault, finding.tensor) == (Fault.NOT_OWNED, "out")


def test_a_kernel_that_reads_no_query_itself_is_judged_by_what_it_writes() -> None:
    """Keys are loaded before anything says for whom: they are judged at the end."""
    batch = batch_of(BATCH)
    own = batch.key_cache[int(batch.block_table[0, 0]), :, 0].stride(0)
    assert own == 16
    for sequence, faults in ((0, []), (1, [Fault.NOT_OWNED])):
        keys = batch.key_cache[int(batch.block_table[sequence, 0])]
        with watch_memory(attention_roles(batch)) as memory:
            copy_kernel[(1,)](keys, batch.out, 16, 0, BLOCK=16)
        assert [finding.fault for finding in memory.findings] == faults


def test_a_cache_write_touches_the_slots_of_its_tokens() -> None:
    caches = [torch.zeros(4, 16, 2, 16) for _ in range(2)]
    new = [torch.randn(3, 2, 16) for _ in range(2)]
    slots = torch.tensor([5, -1, 33])
    with watch_memory(write_roles(*caches, *new, slots)) as memory:
        write_slots(*caches, *new, slots)
    assert memory.findings == []
    with watch_memory(write_roles(*caches, *new, slots)) as memory:
        write_slots(*caches, *new, slots.clone().add_(1))
    assert {finding.fault for finding in memory.findings} == {Fault.NOT_OWNED}
    assert "a slot to which nothing goes, the program works for token 0" in str(memory.findings[0])


@pytest.mark.parametrize(
    ("declared", "copied", "faults"),
    [
        ([[0, 1], [0, 2]], [[0, 1], [0, 2]], set()),
        ([[0, 1], [0, 2]], [[1, 0], [2, 0]], {Fault.NOT_OWNED, Fault.RACE}),
        ([[0, 1], [1, 2]], [[0, 1], [1, 2]], {Fault.RACE}),  # one reads what another writes
    ],
)
def test_a_block_copy_reads_its_source_and_writes_its_destination(
    declared: list[list[int]], copied: list[list[int]], faults: set[Fault]
) -> None:
    caches = [torch.randn(4, 16, 2, 16) for _ in range(2)]
    with watch_memory(copy_roles(*caches, torch.tensor(declared))) as memory:
        copy_blocks(*caches, torch.tensor(copied))
    assert {finding.fault for finding in memory.findings} == faults


# --- as a check of conformance -------------------------------------------------------------------


def test_a_kernel_without_launches_cannot_be_judged() -> None:
    from paged.attention import paged_attention as in_torch

    assert watch_attention(in_torch, batch_of(BATCH)) is None


def test_undefined_lanes_count_only_where_they_reach_the_answer() -> None:
    def harmless(batch: PagedBatch) -> None:
        undefined_kernel[(1,)](batch.query, batch.out, 5, BLOCK=16, USED=False)

    def harmful(batch: PagedBatch) -> None:
        undefined_kernel[(1,)](batch.query, batch.out, 5, BLOCK=16, USED=True)

    assert watch_attention(harmless, batch_of("(q1 k20) d16 b16 fp32")) == []
    (finding,) = watch_attention(harmful, batch_of("(q1 k20) d16 b16 fp32"))
    assert finding.startswith(str(Fault.UNDEFINED_LANES))


def test_what_a_kernel_raises_comes_after_what_it_did() -> None:
    def raises(batch: PagedBatch) -> None:
        raise ValueError("no tile")

    def breaks(batch: PagedBatch) -> None:
        wild_kernel[(1,)](batch.query, batch.out, 2**33, BLOCK=16)
        raises(batch)

    with pytest.raises(ValueError, match="no tile"):
        watch_attention(raises, batch_of(BATCH))
    assert watch_attention(breaks, batch_of(BATCH))
