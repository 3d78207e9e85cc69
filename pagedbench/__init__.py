"""A test bench for paged-attention kernels and KV-cache allocators: its public names.

    from pagedbench import Capabilities, declares                  # a kernel says what it can do
    from pagedbench import AllocatorCapabilities, declares_allocator
    from pagedbench.testing import parametrize_with_checks         # in a test file

Nothing is imported before it is asked for: `import pagedbench` takes milliseconds and brings in
neither torch nor triton. In an installed package the rooms `reference`, `subjects`, `paged`,
`kernels` and `bench` lie inside this one; in a checkout they lie beside it.
"""

from __future__ import annotations

import importlib
import os
import sys

TYPE_CHECKING = False  # not typing's: importing that takes longer than all that is done here
if TYPE_CHECKING:
    from typing import Any

    from bench.workloads.arrivals import arriving as arriving
    from bench.workloads.builtin import builtin_stream as builtin_stream
    from bench.workloads.fits import fitted as fitted
    from bench.workloads.mix import mix as mix
    from bench.workloads.need import contiguous_need as contiguous_need
    from bench.workloads.need import paged_need as paged_need
    from bench.workloads.source import fitting as fitting
    from bench.workloads.source import generating as generating
    from bench.workloads.source import head as head
    from bench.workloads.source import read_all as read_all
    from bench.workloads.spec import parse_source as parse_source
    from bench.workloads.system_prompt import with_system_prompt as with_system_prompt
    from bench.workloads.traces import TraceSource as TraceSource
    from bench.workloads.traces import first_turns as first_turns
    from bench.workloads.traces import read_trace as read_trace
    from kernels.cascade import cascade_attention as cascade_attention
    from kernels.shared_prefix import PrefixGroups as PrefixGroups
    from kernels.shared_prefix import SharedPrefix as SharedPrefix
    from kernels.shared_prefix import find_prefix_groups as find_prefix_groups
    from reference.allocator.contract import Allocator as Allocator
    from reference.allocator.contract import AllocatorCapabilities as AllocatorCapabilities
    from reference.allocator.contract import AllocatorFactory as AllocatorFactory
    from reference.allocator.contract import Counts as Counts
    from reference.allocator.contract import declares_allocator as declares_allocator
    from reference.attention.contract import AttentionKernel as AttentionKernel
    from reference.attention.contract import Capabilities as Capabilities
    from reference.attention.contract import CopyBatch as CopyBatch
    from reference.attention.contract import MergeBatch as MergeBatch
    from reference.attention.contract import PagedBatch as PagedBatch
    from reference.attention.contract import WriteBatch as WriteBatch
    from reference.attention.contract import declares as declares
    from reference.attention.inputs import make_inputs as make_inputs
    from reference.attention.placement import place as place
    from reference.attention.problem import AttentionProblem as AttentionProblem
    from reference.attention.problem import InvalidProblem as InvalidProblem
    from reference.attention.problem import Request as Request
    from reference.system.contract import System as System
    from subjects.allocators.resolve import open_allocator as open_allocator

_HOMES = {
    "reference.attention.contract": (
        "AttentionKernel",
        "Capabilities",
        "CopyBatch",
        "MergeBatch",
        "PagedBatch",
        "WriteBatch",
        "declares",
    ),
    "reference.attention.problem": ("AttentionProblem", "InvalidProblem", "Request"),
    "reference.attention.inputs": ("make_inputs",),
    "reference.attention.placement": ("place",),
    "reference.allocator.contract": (
        "Allocator",
        "AllocatorCapabilities",
        "AllocatorFactory",
        "Counts",
        "declares_allocator",
    ),
    "reference.system.contract": ("System",),
    "subjects.allocators.resolve": ("open_allocator",),
    "kernels.cascade": ("cascade_attention",),
    "kernels.shared_prefix": ("PrefixGroups", "SharedPrefix", "find_prefix_groups"),
    "bench.workloads.need": ("contiguous_need", "paged_need"),
    "bench.workloads.arrivals": ("arriving",),
    "bench.workloads.builtin": ("builtin_stream",),
    "bench.workloads.fits": ("fitted",),
    "bench.workloads.mix": ("mix",),
    "bench.workloads.source": ("fitting", "generating", "head", "read_all"),
    "bench.workloads.spec": ("parse_source",),
    "bench.workloads.system_prompt": ("with_system_prompt",),
    "bench.workloads.traces": ("TraceSource", "first_turns", "read_trace"),
}
_HERE = os.path.dirname(os.path.abspath(__file__))
_INSTALLED = os.path.isdir(os.path.join(_HERE, "reference"))


def _room(name: str) -> Any:
    """Import a module of ours by its name in a checkout, as `reference.attention.problem`."""
    if _INSTALLED:
        return importlib.import_module(f"{__name__}.{name}")
    root = os.path.dirname(_HERE)
    sys.path.insert(0, root)  # another package may have the name of a room: ours are meant here
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(root)


def _offering(module: str, homes: dict[str, tuple[str, ...]]) -> tuple[list[str], Any, Any]:
    """`__all__`, `__getattr__` and `__dir__` of a module whose names lie in these homes."""
    home_of = {name: home for home, names in homes.items() for name in names}
    names = sorted(home_of)

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"{module} has no {name!r}; it offers {', '.join(names)}")
        found = getattr(_room(home_of[name]), name)
        setattr(sys.modules[module], name, found)
        return found

    return names, find, lambda: names


__all__, __getattr__, __dir__ = _offering(__name__, _HOMES)
