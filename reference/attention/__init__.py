"""What attention over a paged cache has to compute, and the checks that a kernel runs through."""

from reference.moved import moved_names


def __getattr__(name: str) -> object:
    """What `reference.attention` held when it was a module."""
    return moved_names(__name__, {"attend": "truth", "visible": "truth"}, name)
