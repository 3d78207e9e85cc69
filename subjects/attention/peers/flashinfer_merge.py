"""FlashInfer's reference of merging states, `_merge_states_reference`, in torch.

Its operators are described by references in Python, against which its own tests and its users hold
them (flashinfer/trace/templates/cascade.py). This one, like the operator, takes log-sum-exps in
base 2, tokens before parts. The operator itself needs a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

from reference.attention.contract import Capabilities, MergeBatch, declares
from subjects.attention.peers import prepared_by
from subjects.loading import SubjectError

_PACKAGES: Final = ("flashinfer", "flashinfer.trace", "flashinfer.trace.templates")

_module: Any = None


def _prepare(_: str) -> None:
    global _module  # noqa: PLW0603 - one kernel in one process
    spec = importlib.util.find_spec("flashinfer")
    if spec is None or not spec.submodule_search_locations:
        raise SubjectError(
            f"flashinfer-python is not installed in {sys.prefix}: build its environment with "
            f"'make engine-flashinfer', or name an interpreter with --engine-python"
        )
    folder = Path(spec.submodule_search_locations[0]).parent
    for name in _PACKAGES:
        # Empty, as the package itself imports what only a GPU's machine has.
        package = ModuleSpec(name, None, is_package=True)
        package.submodule_search_locations = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = importlib.util.module_from_spec(package)
    _module = importlib.import_module("flashinfer.trace.templates.cascade")


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="merge",
        lse_base="2",
        declines=frozenset({"empty"}),
        promises=frozenset({"deterministic"}),
    )
)
def attention(batch: MergeBatch) -> None:
    """Fill `batch.out` and `batch.lse`."""
    parts = batch.part_out.transpose(0, 1), batch.part_lse.transpose(0, 1)
    out, lse = _module._merge_states_reference(*parts)
    batch.out.copy_(out)
    if batch.lse is not None:
        batch.lse.copy_(lse)
