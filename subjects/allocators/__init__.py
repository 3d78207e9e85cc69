"""Allocators by name: ours, those of engines, and the user's."""

from reference.moved import moved_names


def __getattr__(name: str) -> object:
    """What `subjects.allocators` held when it was a module."""
    homes = dict.fromkeys(("BUILT_IN", "AllocatorSubject", "open_allocator"), "resolve")
    return moved_names(__name__, homes, name)
