"""What kernels that need a GPU and a package of their own have in common."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import torch

from subjects.loading import SubjectError


def import_for_gpu(module: str, *, distribution: str, device: str) -> Any:
    """Import the package of a kernel that runs compiled only, or raise SubjectError: which is
    missing.
    """
    if device != "cuda":
        found = "one" if torch.cuda.is_available() else "none"
        raise SubjectError(
            f"{distribution} runs on a GPU only, and this is --device {device}: use --device cuda "
            f"(torch {torch.__version__} finds {found} here)"
        )
    if not torch.cuda.is_available():
        raise SubjectError(f"{distribution} needs a GPU: torch {torch.__version__} finds none")
    try:
        found_spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that it is part of
        found_spec = None
    if found_spec is None:
        raise SubjectError(
            f"{distribution} is not installed in {sys.prefix}: install it there, or name an "
            f"interpreter that has it with --engine-python"
        )
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SubjectError(f"{distribution} cannot be imported: {error}") from None
