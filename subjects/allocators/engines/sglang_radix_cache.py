"""SGLang's paged allocator and RadixCache behind the allocator contract, in their own interpreter.

The adapter runs where requirements/engines/sglang.txt is installed and imports nothing of
pagedbench. It plays the part of SGLang's scheduler, `sglang/srt/managers/scheduler.py`, and of
`sglang/srt/mem_cache/allocation.py`, which allocates for it; the comments name the functions that
it stands for. What it drives is SGLang's own code, read from the installed wheel as it is: whole
files, and single definitions out of three large ones. Of the rest of SGLang, which would need some
forty packages, only empty shells are there.

Page 0 of SGLang's pool takes the writes of padding and is nobody's. The contract's block `b` is
SGLang's page `b + 1`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from array import array
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final, Self

import torch

DISTRIBUTION: Final = "sglang"

KNOWN: Final = "0.5.22 to 0.5.23"
"""Releases that this adapter drives."""

_FOUND = importlib.metadata.distributions(name=DISTRIBUTION)
VERSION: Final = next((found.version for found in _FOUND), "")
"""Of the wheel; empty if it is not installed."""

_MEM_CACHE: Final = "sglang.srt.mem_cache"

REAL: Final = frozenset(
    f"{_MEM_CACHE}.{module}"
    for module in (
        "allocator.base", "allocator.page_interleave", "allocator.paged", "allocator.token",
        "base_prefix_cache", "cache_init_params", "common", "events", "evict_policy",
        "radix_cache", "unified_cache.component_type", "utils",
    )
)  # fmt: skip
"""Modules that are SGLang's own."""

_UTILITIES: Final = (
    "ceil_align", "ceil_div", "get_bool_env_var", "get_num_new_pages", "is_hip",
    "next_power_of_2",
)  # fmt: skip

EXCERPTS: Final = {
    "sglang.srt.utils": ("utils/common.py", _UTILITIES),
    "sglang.srt.utils.common": ("utils/common.py", _UTILITIES),
    "sglang.srt.managers.schedule_batch": ("managers/schedule_batch.py", ("ReqKvInfo",)),
    f"{_MEM_CACHE}.memory_pool": ("mem_cache/memory_pool.py", ("ReqToTokenPool",)),
}
"""Modules of which single definitions are SGLang's own: the file, and their names. Everything else
in them is a shell, as is every module that is named neither here nor above."""

_ON_THE_CPU: Final = {"dtype": torch.float32, "device": "cpu", "kvcache": None, "need_sort": False}
"""How a page allocator is made here."""

MAX_RUNNING: Final = 256
"""Sequences that there are rows for at once (`max_running_requests`)."""


class _ShellType(type):
    """Classes that are false, and whose every attribute is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        shell = _shell(name)
        setattr(cls, name, shell)  # making a class takes long, and some are asked for in each call
        return shell

    def __bool__(cls) -> bool:
        return False


class _Shell(metaclass=_ShellType):
    """Can be named in an annotation, inherited from, called, and entered."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take anything."""

    def __getattr__(self, name: str) -> Any:
        return getattr(type(self), name)

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let an exception pass."""


def _shell(name: str) -> Any:
    return _ShellType(name, (_Shell,), {})


class _ShellLoader(Loader):
    """Fills a module with shells for the names that are asked of it, or takes them from a file."""

    def __init__(self, file: Path | None = None, names: Sequence[str] = ()) -> None:
        self._file = file
        self._names = names

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Answer for every name but Python's own."""
        if self._file is not None:
            self._take_definitions(module, self._file)

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return module.__dict__.setdefault(name, _shell(name))

        module.__dict__["__getattr__"] = attribute

    def _take_definitions(self, module: ModuleType, file: Path) -> None:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        kept = [node for node in tree.body if getattr(node, "name", None) in self._names]
        missing = set(self._names) - {getattr(node, "name", "") for node in kept}
        if missing:
            raise ImportError(f"{file} defines no {', '.join(sorted(missing))}")
        # What the definitions use besides each other.
        module.__dict__.update(
            torch=torch,
            os=os,
            dataclasses=dataclasses,
            lru_cache=functools.lru_cache,
            TorchMemorySaverAdapter=_shell("TorchMemorySaverAdapter"),
            GPU_MEMORY_TYPE_KV_CACHE="kv_cache",
        )
        # Annotations name what is not here; as in SGLang's files they stay unevaluated.
        code = compile(ast.Module(kept, []), str(file), "exec", annotations.compiler_flag)
        exec(code, module.__dict__)


class _SlimFinder(MetaPathFinder):
    """Finds the real modules and the excerpts in the wheel, and a shell for every other one."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the import system asks it."""
        package, _, rest = fullname.partition(".")
        if package != "sglang":
            return None
        if fullname in REAL:
            file = self._root.joinpath(*rest.split(".")).with_suffix(".py")
            return importlib.util.spec_from_file_location(fullname, file)
        loader = _ShellLoader()
        if fullname in EXCERPTS:
            where, names = EXCERPTS[fullname]
            loader = _ShellLoader(self._root / "srt" / where, names)
        return ModuleSpec(fullname, loader, is_package=True)


def _check_known() -> None:
    """Raise ImportError: this adapter was not tried with the release that is installed."""
    first, last, this = (re.findall(r"\d+", each) for each in (*KNOWN.split(" to "), VERSION))
    if not [*map(int, first)] <= [*map(int, this[: len(first)])] <= [*map(int, last)]:
        raise ImportError(f"{DISTRIBUTION} {VERSION}: this adapter drives {KNOWN}; install one")


def _import_engine() -> SimpleNamespace:
    """Import what is driven, by its names in SGLang."""
    package = importlib.util.find_spec("sglang")
    if package is None or not package.submodule_search_locations:
        raise ImportError(f"{DISTRIBUTION} is installed, but there is no sglang in {sys.prefix}")
    sys.meta_path.insert(0, _SlimFinder(Path(package.submodule_search_locations[0])))
    places = {
        "CacheInitParams": f"{_MEM_CACHE}.cache_init_params",
        "MatchPrefixParams": f"{_MEM_CACHE}.base_prefix_cache",
        "PagedTokenToKVPoolAllocator": f"{_MEM_CACHE}.allocator.paged",
        "RadixCache": f"{_MEM_CACHE}.radix_cache",
        "RadixKey": f"{_MEM_CACHE}.radix_cache",
        "ReqKvInfo": "sglang.srt.managers.schedule_batch",
        "ReqToTokenPool": f"{_MEM_CACHE}.memory_pool",
        "TokenToKVPoolAllocator": f"{_MEM_CACHE}.allocator.token",
        "release_kv_cache": f"{_MEM_CACHE}.common",
    }
    return SimpleNamespace(
        **{name: getattr(importlib.import_module(place), name) for name, place in places.items()}
    )


class _Request:
    """What is read of a `sglang.srt.managers.schedule_batch.Req`: text only, nothing speculated."""

    __slots__ = (
        "cache_salt", "full_untruncated_fill_ids", "kv", "last_node", "lock", "origin_input_ids",
        "rid",
    )  # fmt: skip

    extra_key = None
    priority = None
    skip_radix_cache_insert = False

    def __init__(self, rid: str, tokens: Sequence[int], salt: str) -> None:
        self.rid = rid
        self.origin_input_ids = array("q", tokens)
        self.full_untruncated_fill_ids = self.origin_input_ids[:]
        self.cache_salt = salt or None
        self.kv: Any = _engine.ReqKvInfo()
        self.lock: Any = None
        self.last_node: Any = None

    def owned_kv_len(self) -> int:
        """Tokens whose keys and values it has: all that there is room for."""
        return int(self.kv.kv_committed_len)

    def finished(self) -> bool:
        """Whether it has ended; nobody asks before it is released."""
        return False


class SglangAllocator:
    """A page allocator with a radix tree in front of it, which without prefix caching keeps
    nothing.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool) -> None:
        num_tokens = num_blocks * block_size
        # The choice of `kv_cache_configurator`: pages of one token have an allocator of their own.
        if block_size == 1:
            self._pool = _engine.TokenToKVPoolAllocator(num_tokens, **_ON_THE_CPU)
        else:
            self._pool = _engine.PagedTokenToKVPoolAllocator(num_tokens, block_size, **_ON_THE_CPU)
        self._rows = _engine.ReqToTokenPool(
            MAX_RUNNING, num_tokens, "cpu", enable_memory_saver=False
        )
        self._table = self._rows.req_to_token
        self._tree = _engine.RadixCache(
            _engine.CacheInitParams(
                disable=not prefix_caching,
                req_to_token_pool=self._rows,
                token_to_kv_pool_allocator=self._pool,
                page_size=block_size,
            )
        )
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._requests: dict[str, _Request] = {}
        self._freed: dict[str, _Request] = {}
        if not prefix_caching:
            # Without a tree there is nothing to publish.
            self.commit = lambda sequence: None  # type: ignore[method-assign]

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """`Req.init_next_round_input`, `PrefillAdder.add_one_req`, `alloc_for_extend`."""
        tree = self._tree
        request = _Request(sequence, tokens, salt)
        # One token is left to compute, whatever is cached: `Req._compute_max_prefix_len`.
        key = _engine.RadixKey(
            request.full_untruncated_fill_ids, limit=len(tokens) - 1, cache_salt=request.cache_salt
        )
        match = tree.match_prefix(_engine.MatchPrefixParams(key=key))
        hit: int = match.device_prefix_len
        end = max(num_tokens, hit + 1)
        # The prefix is locked before it is asked what could be evicted: else it would count.
        lock = tree.lock(match.last_device_node)
        if not self._rows.available_size() or not self._make_room(hit, end):
            tree.unlock(lock)
            return None
        self._rows.alloc([request])
        row = self._table[request.kv.req_pool_idx]
        if hit:
            prefix = tree.path_device_indices(match.last_device_node)
            row[:hit] = prefix
            row[hit:end] = self._extend(hit, end, prefix[-1:])
        else:
            row[:end] = self._extend(0, end, _NO_SLOT)
        kv = request.kv
        kv.cache_protected_len = hit
        kv.kv_allocated_len = kv.kv_committed_len = end
        request.lock = lock
        request.last_node = match.last_device_node
        self._requests[sequence] = request
        return hit

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """`alloc_for_decode` for one token, `alloc_for_extend` for several."""
        request = self._requests[sequence]
        kv = request.kv
        start: int = kv.kv_allocated_len
        count = len(tokens)
        end = start + count
        if not self._make_room(start, end):
            return False
        row = self._table[kv.req_pool_idx]
        last = row[start - 1 : start]
        if count == 1:
            row[start:end] = self._decode(end, last)
        else:
            row[start:end] = self._extend(start, end, last)
        kv.kv_allocated_len = kv.kv_committed_len = end
        surplus = end - len(request.full_untruncated_fill_ids)
        if surplus > 0:
            # `Req.refresh_fill_ids`: what is left of the prompt is there already.
            request.full_untruncated_fill_ids.extend(tokens[count - surplus :])
        return True

    def append_each(self, sequences: Sequence[str], tokens: Sequence[int]) -> bool:
        """One token for each of many sequences: a decoding step. False if not all have room."""
        requests = [self._requests[sequence] for sequence in sequences]
        lengths = [request.kv.kv_allocated_len for request in requests]
        size = self._block_size
        pages = sum(length % size == 0 for length in lengths)
        if pages and not self._evict_for(pages * size):
            return False
        rows = torch.tensor([request.kv.req_pool_idx for request in requests])
        ends = torch.tensor(lengths)
        if size == 1:
            slots = self._pool.alloc(len(requests))
        else:
            last = self._table[rows, ends - 1]
            slots = self._pool.alloc_decode(ends + 1, ends + 1, last)
        self._rows.write((rows, ends), slots.to(torch.int32))
        for request, token in zip(requests, tokens, strict=True):
            kv = request.kv
            kv.kv_allocated_len += 1
            kv.kv_committed_len += 1
            request.full_untruncated_fill_ids.append(token)
        return True

    def free(self, sequence: str) -> None:
        """`release_kv_cache`, once a request has finished.

        SGLang first lets the tree keep what the request computed; here `commit` has done so, and
        what was never committed must not be kept. The request that was freed last can be freed once
        more: SGLang is then asked with the very same request.
        """
        request = self._requests.pop(sequence, None) or self._freed[sequence]
        self._freed = {sequence: request}
        _engine.release_kv_cache(request, self._tree, checkpoint=False)

    def preempt(self, sequence: str) -> None:
        """`schedule_batch.release_req`. The request that it keeps for later is made anew."""
        _engine.release_kv_cache(self._requests.pop(sequence), self._tree, checkpoint=False)

    def commit(self, sequence: str) -> None:
        """`checkpoint_kv_cache` for every full page; SGLang does generated ones at the end."""
        request = self._requests[sequence]
        length = request.kv.kv_committed_len
        if length - request.kv.cache_protected_len >= self._block_size:
            self._tree.checkpoint(request, up_to=length)

    def slots(self, sequence: str) -> list[int]:
        """The row of the request."""
        kv = self._requests[sequence].kv
        row = self._table[kv.req_pool_idx, : kv.kv_allocated_len] - self._block_size
        slots: list[int] = row.tolist()
        return slots

    def counts(self) -> tuple[int, int, int]:
        """The allocator counts free tokens, and the tree those that nobody has locked."""
        free = self._pool.available_size() // self._block_size
        idle = self._tree.evictable_size() // self._block_size
        return free, idle, self._num_blocks - free - idle

    def idle_blocks(self) -> list[int]:
        """Pages of the tree's nodes that nobody has locked."""
        blocks: list[int] = []
        nodes = list(self._tree.root_node.children.values())
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            if node.lock_ref == 0:
                pages = node.value[:: self._block_size] // self._block_size - 1
                blocks += pages.tolist()
        return blocks

    def reset(self) -> bool:
        """`Scheduler.flush_cache`, which is refused while any request is there."""
        if self._requests:
            return False
        self._tree.reset()
        self._rows.clear()
        self._pool.clear()
        return True

    def _make_room(self, start: int, end: int) -> bool:
        """Evict what positions `start` to `end` of a sequence need; False if that is too little."""
        size = self._block_size
        pages = -(-end // size) + -start // size
        return pages == 0 or self._evict_for(pages * size)

    def _evict_for(self, num_tokens: int) -> bool:
        """`evict_from_tree_cache`, for what the scheduler's `PrefillBudget` has found to fit.

        SGLang asks for one page more per request than it may need, so that it evicts earlier.
        """
        pool, tree = self._pool, self._tree
        available = pool.available_size()
        if num_tokens <= available:
            return True
        if num_tokens > available + tree.evictable_size():
            return False
        pool.evict_to_free_tokens(tree, num_tokens)
        return True

    def _extend(self, start: int, end: int, last: Any) -> Any:
        """`alloc_paged_token_slots_extend`: slots of positions `start` to `end`."""
        if self._block_size == 1:
            return self._pool.alloc(end - start)
        return _extended(self._pool, start, end, last.long())

    def _decode(self, end: int, last: Any) -> Any:
        """`alloc_paged_token_slots_decode`: the slot of the position before `end`."""
        if self._block_size == 1:
            return self._pool.alloc(1)
        return _decoded(self._pool, end, last)


def _extended(pool: Any, start: int, end: int, last: Any) -> Any:
    """Slots of positions `start` to `end`, behind the slot `last`."""
    before, after = torch.tensor([start]), torch.tensor([end])
    return pool.alloc_extend(before, before, after, after, last, end - start)


def _decoded(pool: Any, end: int, last: Any) -> Any:
    """The slot of the position before `end`, behind the slot `last`."""
    length = torch.tensor([end])
    return pool.alloc_decode(length, length, last)


class SglangPages:
    """The page allocator by itself, with pages of any size and no tree in front of it.

    It is what is left when somebody calls the allocator's own methods: `free` takes slots, and
    keeps no account of whose they are.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        num_tokens = num_blocks * block_size
        self._pool = _engine.PagedTokenToKVPoolAllocator(num_tokens, block_size, **_ON_THE_CPU)
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._slots: dict[str, Any] = {}
        self._freed: dict[str, Any] = {}

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """`alloc_extend` from nothing."""
        if not self._has_room(0, len(tokens)):
            return None
        self._slots[sequence] = _extended(self._pool, 0, len(tokens), _NO_SLOT)
        return 0

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """`alloc_decode` for one token, `alloc_extend` for several."""
        held = self._slots[sequence]
        start, end = len(held), len(held) + len(tokens)
        if not self._has_room(start, end):
            return False
        if len(tokens) == 1:
            fresh = _decoded(self._pool, end, held[-1:])
        else:
            fresh = _extended(self._pool, start, end, held[-1:])
        self._slots[sequence] = torch.cat([held, fresh])
        return True

    def free(self, sequence: str) -> None:
        """`free` of the slots. Those that were freed last can be freed once more."""
        held = self._slots.pop(sequence, None)
        if held is None:
            held = self._freed[sequence]
        self._freed = {sequence: held}
        self._pool.free(held)

    def slots(self, sequence: str) -> list[int]:
        """What was handed out."""
        slots: list[int] = (self._slots[sequence] - self._block_size).tolist()
        return slots

    def counts(self) -> tuple[int, int, int]:
        """The allocator counts free tokens."""
        free = self._pool.available_size() // self._block_size
        return free, 0, self._num_blocks - free

    def _has_room(self, start: int, end: int) -> bool:
        pages = -(-end // self._block_size) + -start // self._block_size
        return bool(pages * self._block_size <= self._pool.available_size())


def make_pages(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> SglangPages:
    """An empty page allocator without a tree. Raises ImportError: the wheel is not installed."""
    _check_installed()
    return SglangPages(num_blocks, block_size)


def make(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> SglangAllocator:
    """An empty allocator. Raises ImportError: the wheel is not installed. ValueError: a window."""
    _check_installed()
    if window is not None:
        raise ValueError(f"window {window}: this adapter drives SGLang's full-attention pool only")
    return SglangAllocator(num_blocks, block_size, prefix_caching=prefix_caching)


def _check_installed() -> None:
    if _engine is None:
        raise ImportError(
            f"{DISTRIBUTION} is not installed in {sys.prefix}; "
            f"requirements/engines/sglang.txt says what this adapter needs"
        )


make.version = f"{DISTRIBUTION} {VERSION or '(not installed)'}"  # type: ignore[attr-defined]
make.capabilities = {  # type: ignore[attr-defined]
    "prefix_caching": True,
    "salt": True,
    "chunked_prefill": True,
    "commit": True,
    "preempt": True,
    "reset": True,
    "reset_while_running": False,
    # The front end refuses prompts without tokens, and nothing is ever decoded without one.
    "empty_calls": False,
    "batching": True,
    # Nothing is published before `commit`.
    "abort_before_write": True,
    "append_each": True,
    "finds_every_prefix": True,
    # The least recently used leaf of the tree goes first, with all its pages: `RadixCache.evict`.
    "eviction": "leaf",
    # What is freed twice is the request: `release_kv_cache` is how the scheduler frees, and never
    # `allocator.free`, which keeps no account of who owns a slot. Requests are objects and have no
    # names there, so nothing can be asked about one that is unknown or there already. Counts of
    # tokens that make no sense are out because the adapter's own arithmetic, in the place of
    # `PrefillBudget`, answers them.
    "hostile": ["free_twice"],
}

make_pages.version = make.version  # type: ignore[attr-defined]
make_pages.capabilities = {  # type: ignore[attr-defined]
    "prefix_caching": False,
    "empty_calls": False,
    "batching": True,
    "abort_before_write": True,
    # Slots have no names: nothing can be asked about a sequence that is not there.
    "hostile": ["free_twice"],
}

_NO_SLOT = torch.tensor([-1])
# At once, so that whoever is forked off this process has it; and where it is not installed, one can
# still ask for the capabilities.
if VERSION:
    _check_known()
_engine: Any = _import_engine() if VERSION else None
