"""Reads expected failures from a TOML file: one table `[[expected]]` for each."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from reference.attention.expected import ExpectedFailure
from reference.errors import BadInput
from reference.reading import read_text

_REMEDY = "give each [[expected]] a kernel, a check, a reason and, where it matters, a list when"


class _File(BaseModel, extra="forbid"):
    expected: list[ExpectedFailure]


def read_expected(path: Path) -> tuple[ExpectedFailure, ...]:
    """The expected failures of a file.

    ::

        [[expected]]
        kernel = "my_kernel.py:attention"    # or the function's name alone
        check = "truth"
        when = ["kv_dtype=e5m2"]             # left out: every problem
        reason = "https://example.org/issues/12"
    """
    text = read_text(path, what="a TOML file")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError: 5,000 digits
        raise BadInput(f"{path} is no TOML: {error}; {_REMEDY}") from None
    try:
        return tuple(_File.model_validate(content).expected)
    except ValidationError as error:
        raise BadInput(f"{path}: {_complaint(error)}; {_REMEDY}") from None


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if len(where) > 1 and first["loc"][0] == "expected":
        where = [f"entry {int(first['loc'][1]) + 1} of [[expected]]", *where[2:]]
    said = first.get("ctx", {}).get("error", first["msg"])
    return f"{', '.join(where)}: {said}"
