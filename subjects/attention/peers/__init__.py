"""Other people's kernels under the attention contract, on equal terms with ours.

Each module feeds one foreign kernel: it translates a `PagedBatch` into that kernel's arguments, and
declares what its documentation says that it can do. What the kernel needs is imported when it is
prepared, not when the module is: all modules import where nothing foreign is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Kernel = TypeVar("Kernel", bound=Callable[..., object])


def prepared_by(prepare: Callable[[str], object]) -> Callable[[Kernel], Kernel]:
    """Decorate a kernel with what has to be called first, with the device; see `resolve_kernel`."""

    def mark(kernel: Kernel) -> Kernel:
        vars(kernel)["prepare"] = prepare
        return kernel

    return mark
