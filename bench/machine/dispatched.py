"""Counts what torch dispatches, and the bytes of it."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS: Final = frozenset(
    f"aten::{name}"
    for name in (
        *("view", "_unsafe_view", "as_strided", "expand", "permute", "transpose", "t", "detach"),
        *("select.int", "slice.Tensor", "unsqueeze", "squeeze", "unbind.int", "alias", "split"),
        *("view.dtype", "unfold", "diagonal", "_reshape_alias", "squeeze.dim", "transpose.int"),
    )
)
"""Operations that move no bytes: they are counted, their bytes are not."""

GATHERS: Final = frozenset({"aten::index.Tensor", "aten::index_select", "aten::gather"})
"""Operations that read as much of their input as their result has, not all of it."""

SCATTERS: Final = frozenset({"aten::index_put_", "aten::index_copy_", "aten::scatter_.src"})
"""Operations that write into a part of their first argument as large as their last."""


class Dispatched(TorchDispatchMode):
    """Counts the operations that torch dispatches while it is entered, and the bytes of them.

    Views are operations without bytes. Of others all elements that go in and come out count, but of
    what a gather reads from as many as come out, of what a scatter writes into as many as go in.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch does not annotate it
        self.operations = 0
        self.bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, to keep that from compiling this: more than a second."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        name = func.name()
        if name in VIEWS:
            return result
        written = _bytes(args[-1] if name in SCATTERS else result)
        read = _bytes((args, kwargs or {}))
        if name in SCATTERS:
            read -= _bytes(args[0])
        if name in GATHERS:
            read += written - _bytes(args[0])
        self.bytes += read + written
        return result


def _bytes(values: Any) -> int:
    return sum(
        value.numel() * value.element_size()
        for value in tree_leaves(values)
        if isinstance(value, torch.Tensor)
    )
