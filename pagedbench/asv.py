"""For a suite of asv: benchmarks of the kernels and allocators that `[tool.pagedbench]` names.

    # benchmarks/__init__.py
    from pagedbench.asv import suite

    globals().update(suite())

asv then has their times, peak memory and exact counters in its history, commit by commit.
"""

from typing import TYPE_CHECKING, Any

from pagedbench import _room

if TYPE_CHECKING:
    from bench.gate.discovered.subjects import suite as suite

__all__ = ["suite"]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in __all__:
        raise AttributeError(f"pagedbench.asv has no {name!r}; it has {', '.join(__all__)}")
    return getattr(_room("bench.gate.discovered.subjects"), name)


def __dir__() -> list[str]:
    return __all__
