"""Systems: an allocator, a writer and attention in one object, driven through time."""

from reference.system.contract import System

__all__ = ["System"]
