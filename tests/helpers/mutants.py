"""Wrong kernels made from the right ones: a copy of the Triton sources with one thing changed.

A mutant is text, not code: `kernels/` is copied into a package of its own, one passage is replaced
in one file, and the copy is imported. The interpreter reads kernels back from their files, so the
files are real. What is not changed is the project's own source, down to the line.

A harness holds the planted kernels to the project's own checks over drawn examples, and `hunt`
looks for the first example on which they fail.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import torch
from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from torch import Tensor
from triton import next_power_of_2
from triton.runtime.interpreter import interpreter_builder

import kernels
from kernels import interpreter
from kernels.interpreter.memory import watch_attention
from paged import cache as right_cache
from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.contract import AttentionKernel, Capabilities, PagedBatch, declares
from reference.attention.placement import GUARD_BLOCKS
from reference.attention.problem import (
    FP8_DTYPES,
    QUERY_DTYPES,
    AttentionProblem,
    Request,
    torch_dtype,
)
from reference.attention.strategies import problems

SOURCES: Final = Path(kernels.__file__).parent

MAX_EXAMPLES: Final = 60
"""Examples within which a bug must be rejected, in every profile: fewer would prove less."""

HEAD_DIMS: Final = (16, 32, 64, 80)
"""Drawn unless a harness says otherwise: larger ones cost time and show no more."""

MAX_LEN: Final = 100
"""Longest sequence unless a harness says otherwise, tokens."""

MAX_SEQS: Final = 3
"""Most sequences unless a harness says otherwise."""

INPUT_MARGIN: Final = 8
"""Rows around what a kernel reads: a mutant that reads beyond a tensor reads these."""

# Planting


class StaleMutant(ValueError):
    """The passage that a mutant replaces is not in the source, or not only once."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change to one kernel."""

    name: str
    """Of the bug; a Python identifier."""
    file: str
    """Module of `kernels` that is changed, such as `sweep`."""
    edits: tuple[tuple[str, str], ...]
    """(old, new) passages. Most mutants need one; a swap needs two. Each `old` stands exactly once
    in the file when its turn comes."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The public functions of one copy of `kernels`."""

    paged_attention: Callable[..., None]
    batch_invariant_attention: Callable[..., None]
    write_slots: Callable[..., None]
    copy_blocks: Callable[..., None]
    tiles: type[Any]

    def attention(
        self,
        *,
        num_splits: int | None = None,
        tiles: tuple[int, int] | None = None,
        margins: bool = True,
        invariant: bool = False,
    ) -> AttentionKernel:
        """Attention as a subject, with forced splits and forced tiles of (keys, rows at least); or
        the batch-invariant one, as it is.
        """

        @declares(Capabilities(promises=frozenset({"deterministic", "relabelling"})))
        def subject(batch: PagedBatch) -> None:
            launch = None
            if tiles is not None:
                rows = max(tiles[1], next_power_of_2(batch.group_size))
                launch = self.tiles(block_n=tiles[0], block_m=rows)
            batch = with_margins(batch) if margins else batch
            if invariant:
                self.batch_invariant_attention(batch)
                return
            self.paged_attention(batch, num_splits=num_splits, tiles=launch)

        return subject


_serial = itertools.count()


def plant(mutant: Mutant | None, folder: Path) -> Kernels:
    """Write a copy of `kernels` into a folder, change it (None: leave it as it is), and import it.

    The folder has to outlive the kernels. Raises StaleMutant if the mutant no longer applies and
    would test nothing, and SyntaxError if the changed source is not Python.
    """
    package = write_package(mutant, folder)
    import_package(package, folder / package)
    attention, cache_ops, launch = (
        importlib.import_module(f"{package}.{name}")
        for name in ("attention", "cache_ops", "launch")
    )
    return Kernels(
        attention.paged_attention,
        attention.batch_invariant_attention,
        cache_ops.write_slots,
        cache_ops.copy_blocks,
        launch.Tiles,
    )


def write_package(mutant: Mutant | None, folder: Path) -> str:
    """Write a changed copy of `kernels` into a folder; returns the name of the package."""
    package = f"mutant_{mutant.name if mutant else 'none'}_{next(_serial)}"
    home = folder / package
    home.mkdir()
    if mutant is not None and not (SOURCES / f"{mutant.file}.py").exists():
        raise StaleMutant(f"{mutant.name}: there is no kernels/{mutant.file}.py; name another file")
    for path in SOURCES.glob("*.py"):
        source = path.read_text()
        if mutant is not None and path.stem == mutant.file:
            source = mutate(mutant, source)
        (home / path.name).write_text(renamed(source, package))
    return package


def mutate(mutant: Mutant, source: str) -> str:
    """Apply a mutant's edits to the source of its file; StaleMutant if one does not apply."""
    for old, new in mutant.edits:
        count = source.count(old)
        if count != 1 or old == new:
            raise StaleMutant(
                f"{mutant.name}: {old!r} stands {count} times in kernels/{mutant.file}.py and is "
                f"to become {new!r}; it must stand there once, and change. If the kernel was "
                f"rewritten, plant the same bug in the new text"
            )
        source = source.replace(old, new)
    return source


def renamed(source: str, package: str) -> str:
    """The source with its imports of `kernels` from a copy of it."""
    # The interpreter's corrections are the process's, not a kernel's: they are not copied.
    pattern = r"^(\s*)(from|import) kernels\b(?!\.(interpreter|compiled))"
    return re.sub(pattern, rf"\1\2 {package}", source, flags=re.MULTILINE)


def import_package(package: str, home: Path) -> None:
    """Import a package from its folder."""
    spec = importlib.util.spec_from_file_location(
        package, home / "__init__.py", submodule_search_locations=[str(home)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{home} is not a package: kernels/__init__.py is missing from the copy")
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)


# Surroundings in which a wrong kernel shows, and the process lives


def with_margins(batch: PagedBatch) -> PagedBatch:
    """The same call on inputs that lie inside larger tensors of harmless numbers.

    A mutant may read some rows beyond an input. Within the margins it gets finite queries and
    blocks of the pool, which help nobody to notice, and the process lives.
    """
    return batch.replace(
        query=_inside(batch.query, 0.5),
        block_table=_inside(batch.block_table, 0),
        seq_lens=_inside(batch.seq_lens, 1),
        query_start_loc=_inside(batch.query_start_loc, 0),
    )


def _inside(tensor: Tensor, filler: float) -> Tensor:
    rows = tensor.shape[0] + 2 * INPUT_MARGIN
    room = tensor.new_full((rows * tensor.stride(0),), filler)
    larger = room.as_strided((rows, *tensor.shape[1:]), tensor.stride())
    middle = larger[INPUT_MARGIN : rows - INPUT_MARGIN]
    middle.copy_(tensor)
    return middle


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let NaN arise without a warning, and let memory that nobody wrote hold NaN.

    Otherwise a kernel that reads uninitialised memory is right whenever the allocator hands it
    the right answer of the call before.
    """
    before = torch.are_deterministic_algorithms_enabled()
    # torch's own function imports its compiler to tell it, which takes a second.
    torch._C._set_deterministic_algorithms(True)  # noqa: FBT003
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        torch._C._set_deterministic_algorithms(before)


@contextmanager
def programs_in_reverse() -> Iterator[None]:
    """Run the programs of a grid from last to first: a GPU promises no order, and a race shows."""
    stock = interpreter_builder.set_grid_idx

    def set_grid_idx(*index: int) -> None:
        size = interpreter_builder.grid_dim
        stock(*(count - 1 - at for count, at in zip(size, index, strict=True)))

    interpreter_builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        del interpreter_builder.set_grid_idx  # the class's own method is seen again


def in_a_large_pool(kernel: AttentionKernel) -> AttentionKernel:
    """The same call, with the pool behind 2^31 elements that are never touched and cost nothing."""

    def subject(batch: PagedBatch) -> None:
        caches = []
        # Blocks may be larger in one of the pools; both need the same number of them.
        before = 2**31 // min(batch.key_cache.stride(0), batch.value_cache.stride(0)) + 1
        for pool in (batch.key_cache, batch.value_cache):
            step = pool.stride(0)
            guarded = pool.as_strided(
                (len(pool) + 2 * GUARD_BLOCKS, *pool.shape[1:]),
                pool.stride(),
                pool.storage_offset() - GUARD_BLOCKS * step,
            )
            larger = untouched((before + len(guarded)) * step, pool.dtype)
            larger = larger.as_strided((before + len(guarded), *pool.shape[1:]), pool.stride())
            larger[before:].view(torch.uint8).copy_(guarded.view(torch.uint8))
            caches.append(larger)
        table = batch.block_table + before + GUARD_BLOCKS
        kernel(batch.replace(key_cache=caches[0], value_cache=caches[1], block_table=table))

    return subject


def untouched(elements: int, dtype: torch.dtype) -> Tensor:
    """Memory of which only the pages that are written cost anything, [elements]."""
    return torch.from_numpy(np.empty(elements * dtype.itemsize, dtype=np.uint8)).view(dtype)


# Harnesses

Findings = list[str]


@dataclass(frozen=True, slots=True, eq=False)
class Harness:
    """What a bug is held to: examples, and a judge that says what is wrong with the kernels."""

    says: str
    """The harness in words."""
    examples: st.SearchStrategy[Any]
    """Problems, or cache calls."""
    judge: Callable[[Kernels, Any], Findings]
    """What is wrong with the kernels on an example."""
    operation: str = "attention"
    """`attention`, `write` or `copy`."""
    splits: int | None = None
    tiles: tuple[int, int] | None = None
    far: bool = False
    backwards: bool = False
    """As in `attention`."""

    def findings(self, planted: Kernels, example: Any) -> Findings:
        """What the judge says, in the harness's surroundings."""
        with ExitStack() as stack:
            stack.enter_context(as_on_a_gpu())
            if self.far:
                stack.enter_context(interpreter.overflow_checks())
            if self.backwards:
                stack.enter_context(programs_in_reverse())
            return self.judge(planted, example)


@cache
def attention(
    *,
    check: str = "truth",
    splits: int | None = None,
    tiles: tuple[int, int] | None = None,
    prefill: bool | None = None,
    head_dims: tuple[int, ...] = HEAD_DIMS,
    dtypes: tuple[str, ...] = tuple(QUERY_DTYPES),
    max_len: int = MAX_LEN,
    max_seqs: int = MAX_SEQS,
    problem: str | None = None,
    fp8: bool = False,
    window: bool = False,
    noncausal: bool = False,
    idle: bool = False,
    far: bool = False,
    backwards: bool = False,
    **fields: Any,
) -> Harness:
    """A named conformance check over drawn problems.

    `splits` and `tiles` (keys, rows) are forced upon the launch. With `problem`, a spec, nothing is
    drawn; with `fp8`, `window` or `noncausal` every problem is so, and with `idle` a sequence that
    asks for nothing comes first. With `far` the pool lies behind 2^31 elements and an int32
    overflow in a kernel raises; with `backwards` the programs of a grid run from last to first.
    `fields` of the problem are set to a value; the rest narrows as `strategies.problems` does.
    """
    named = {each.name: each for each in CHECKS}[check]
    drawn = problems(
        capabilities=Capabilities(head_dims=frozenset(head_dims), dtypes=frozenset(dtypes)),
        prefill=prefill,
        max_seqs=max_seqs,
        max_len=max_len,
    )
    chosen = {name: st.just(value) for name, value in fields.items()}
    if window:
        chosen |= {"causal": st.just(value=True), "window": st.integers(1, 40)}
    if noncausal:
        chosen |= {"causal": st.just(value=False), "window": st.none()}
    if fp8:
        scales = st.sampled_from((0.5, 0.03, 1.7))
        chosen["kv_dtype"] = st.sampled_from(list(FP8_DTYPES))
        chosen |= {"k_scale": scales, "v_scale": scales}

    def narrowed(problem: AttentionProblem, changes: dict[str, Any]) -> AttentionProblem:
        if idle:
            changes = {**changes, "requests": (Request(0, 9), *problem.requests)}
        # Margins and pools are laid around the usual places here.
        usual = {"layout": "", "strides": (), "spare": None, "pool": None}
        return problem.replace(**{**usual, **changes})

    def judge(planted: Kernels, problem: AttentionProblem) -> Findings:
        if not named.applies(problem):
            return []
        # Who watches needs no margins: whatever lies outside an input is outside it.
        kernel = planted.attention(num_splits=splits, tiles=tiles, margins=check != "memory")
        kernel = in_a_large_pool(kernel) if far else kernel
        verdict = run_check(named, kernel, problem, watch=watch_attention)
        return list(verdict.findings) if verdict.wrong else []

    narrow = {
        "decode": prefill is False,
        "prefill": prefill,
        "splits": splits,
        "tiles": tiles and f"{tiles[0]}x{tiles[1]}",
        "head_dims": "/".join(map(str, head_dims)) if head_dims != HEAD_DIMS else None,
        "dtypes": "/".join(dtypes) if dtypes != tuple(QUERY_DTYPES) else None,
        "max_len": max_len if max_len != MAX_LEN else None,
        "max_seqs": max_seqs if max_seqs != MAX_SEQS else None,
        "problem": problem,
        "float8": fp8,
        "window": window,
        "noncausal": noncausal,
        "idle": idle,
        "far": far,
        "backwards": backwards,
    }
    examples = st.builds(narrowed, drawn, st.fixed_dictionaries(chosen))
    if problem is not None:
        examples = st.just(AttentionProblem.parse(problem))
    return Harness(
        says=_says(check, narrow, fields),
        examples=examples,
        judge=judge,
        splits=splits,
        tiles=tiles,
        far=far,
        backwards=backwards,
    )


@cache
def caches(operation: str, *, fp8: bool = False, far: bool = False, **fields: Any) -> Harness:
    """`write` or `copy` against `paged.cache`: every bit of the cache and of what lies around it.

    `fields` of the `CacheCall` are set to a value; `fp8` and `far` are as in `attention`.
    """

    def judge(planted: Kernels, call: CacheCall) -> Findings:
        expected, got = call.storage(), call.storage()
        call.run(operation, right_cache, call.pool(expected))
        before = 0
        if far:
            width = got[0].shape[1]
            before = 2**31 // (width // call.cache_dtype.itemsize) + 1
            larger = untouched((before + len(got[0])) * width, torch.uint8).view(-1, width)
            larger[before:] = got[0]
            got = [larger]
        try:
            call.run(operation, planted, call.pool(got), before=before)
        except Exception as error:  # whatever a wrong kernel raises is a finding
            return [f"raised {type(error).__name__}: {error}"]
        wrong = sum(
            int((one != other[before:]).sum()) for one, other in zip(expected, got, strict=True)
        )
        return [f"{wrong} bytes of the cache differ"] if wrong else []

    says = _says(operation, {"float8": fp8, "far": far}, fields)
    return Harness(says, cache_calls(fp8=fp8, **fields), judge, operation, far=far)


def _says(what: str, narrowed: dict[str, Any], fields: dict[str, Any]) -> str:
    """The words of a harness: what it narrows, and which fields it sets."""
    options = {name: value for name, value in narrowed.items() if value}
    words = [
        name if value is True else f"{name}={value}" for name, value in (options | fields).items()
    ]
    return f"{what}: {', '.join(words)}" if words else what


# Cache calls


@dataclass(frozen=True, slots=True)
class CacheCall:
    """A cache of random bits, and what is to be written or copied in it."""

    dtype: str = "fp32"
    kv_dtype: str = "fp32"
    """Of the new tokens and of the cache, as in a problem's spec."""
    num_blocks: int = 2
    block_size: int = 16
    heads: int = 1
    head_dim: int = 16
    layout: str = "by block"
    """Keys and values `by block`: [num_blocks, 2, block_size, ...] in one storage; `by slot`:
    [num_blocks, block_size, 2, ...]; `apart`: two storages, with a gap after each value slot."""
    loud: bool = False
    """Whether the new tokens are so large that float8 saturates."""
    k_scale: float = 1.0
    v_scale: float = 1.0
    slots: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()
    """Where the tokens go, -1 for padding; which block is copied to which."""
    seed: int = 0

    @property
    def cache_dtype(self) -> torch.dtype:
        """Dtype of the cache."""
        return torch_dtype(self.kv_dtype)

    def storage(self) -> list[Tensor]:
        """Random bytes, [num_blocks + guards, bytes of a block] uint8: one tensor or two."""
        rng = torch.Generator().manual_seed(self.seed)
        slot = self.heads * self.head_dim * self.cache_dtype.itemsize
        sizes = [self.block_size * 2 * slot]
        if self.layout == "apart":
            sizes = [self.block_size * slot, self.block_size * (slot + 16)]
        rows = self.num_blocks + 2 * GUARD_BLOCKS
        return [torch.randint(0, 256, (rows, n), dtype=torch.uint8, generator=rng) for n in sizes]

    def pool(self, storage: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Key and value cache over a storage, without the guards around it."""
        shape = (self.block_size, self.heads, self.head_dim)
        typed = [part.view(self.cache_dtype) for part in storage]
        if self.layout == "apart":
            keys = typed[0].unflatten(1, shape)
            with_gap = typed[1].unflatten(1, (self.block_size, -1))
            values = with_gap[..., : self.heads * self.head_dim].unflatten(2, shape[1:])
        elif self.layout == "by block":
            keys, values = typed[0].unflatten(1, (2, *shape)).unbind(1)
        else:
            keys, values = typed[0].unflatten(1, (shape[0], 2, *shape[1:])).unbind(2)
        blocks = slice(GUARD_BLOCKS, len(keys) - GUARD_BLOCKS)
        return keys[blocks], values[blocks]

    def new_tokens(self) -> tuple[Tensor, Tensor]:
        """Keys and values [num_tokens, heads, head_dim] inside larger tensors, NaN among them."""
        rng = torch.Generator().manual_seed(self.seed + 1)
        count = len(self.slots) + 2
        fused = torch.randn(count, 3 * self.heads, self.head_dim, generator=rng)
        apart = torch.randn(count, self.heads, 2 * self.head_dim, generator=rng)
        for tensor in (fused, apart):
            tensor.view(-1)[:: 3 * self.head_dim + 1] = torch.nan
        gain, dtype = 900.0 if self.loud else 1.0, torch_dtype(self.dtype)
        keys = (gain * fused).to(dtype)[1:-1, self.heads : 2 * self.heads]
        return keys, (gain * apart).to(dtype)[1:-1, :, self.head_dim :]

    def run(
        self, operation: str, functions: Any, pool: tuple[Tensor, Tensor], *, before: int = 0
    ) -> None:
        """Write or copy with somebody's functions, in a pool with so many blocks before ours."""
        if operation == "copy":
            functions.copy_blocks(*pool, torch.tensor(self.pairs, dtype=torch.int64) + before)
            return
        slots = torch.tensor(self.slots, dtype=torch.int64)
        slots = torch.where(slots < 0, slots, slots + before * self.block_size)
        scales = {"k_scale": self.k_scale, "v_scale": self.v_scale}
        functions.write_slots(*pool, *self.new_tokens(), slots, **scales)


@st.composite
def cache_calls(draw: st.DrawFn, *, fp8: bool = False, **fields: Any) -> CacheCall:
    """Small caches of every layout and dtype; `fields` are set to a value instead of drawn."""
    dtype = draw(st.sampled_from(list(QUERY_DTYPES)))
    scales = st.sampled_from((1.0, 0.5, 0.03, 1.7))
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "dtype": st.just(dtype),
        "kv_dtype": st.sampled_from([*FP8_DTYPES] if fp8 else [dtype, *FP8_DTYPES]),
        "num_blocks": st.integers(2, 6),
        "block_size": st.sampled_from((1, 2, 4, 16)),
        "heads": st.integers(1, 3),
        "head_dim": st.sampled_from((16, 80, 64)),
        "layout": st.sampled_from(("by block", "apart", "by slot")),
        "loud": st.booleans(),
        "k_scale": scales,
        "v_scale": scales,
        "seed": st.integers(0, 99),
    }
    strategies |= {name: st.just(value) for name, value in fields.items()}
    call = CacheCall(**draw(st.fixed_dictionaries(strategies)))
    free = draw(st.permutations(range(call.num_blocks * call.block_size)))
    padding = draw(st.lists(st.sampled_from((False, False, True)), min_size=1, max_size=8))
    blocks = draw(st.permutations(range(call.num_blocks)))
    half = call.num_blocks // 2
    return replace(
        call,
        slots=tuple(-1 if gone else slot for slot, gone in zip(free, padding, strict=False)),
        pairs=tuple(zip(blocks[:half], blocks[half:], strict=False)),
    )


# The hunt


@dataclass(frozen=True, slots=True)
class Caught:
    """The first example on which a bug was rejected, what was said, and which example it was."""

    example: Any
    finding: str
    tried: int


def hunt(harness: Harness, planted: Kernels, *, max_examples: int = MAX_EXAMPLES) -> Caught | None:
    """Draw examples, the same ones in every run, until the judge finds something.

    Nothing is shrunk: it would cost more than all else, and only the finding counts here.
    """
    tried = 0
    caught: Caught | None = None

    def rejected(example: Any) -> bool:
        nonlocal tried, caught
        if caught is not None:  # Hypothesis shows the example that it found once more
            return bool(example == caught.example)
        tried += 1
        if findings := harness.findings(planted, example):
            caught = Caught(example, findings[0], tried)
        return caught is not None

    quick = settings(max_examples=max_examples, phases=[Phase.generate], database=None)
    try:
        find(harness.examples, rejected, settings=quick, random=Random(0))
    except NoSuchExample:
        return None
    return caught
