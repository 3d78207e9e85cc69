"""Reads expected failures from a TOML file: one table `[[expected]]` for each."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from reference.attention.expected import ExpectedFailure
from reference.errors import BadInput


class ExpectedFileError(BadInput):
    """A file that cannot be read, or an entry that is not one; the message says which and why."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    kernel: str
    check: str
    reason: str
    when: list[str] = []


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    expected: list[_Entry]


def read_expected(path: Path) -> tuple[ExpectedFailure, ...]:
    """The expected failures of a file.

    ::

        [[expected]]
        kernel = "my_kernel.py:attention"    # or the function's name alone
        check = "truth"
        when = ["kv_dtype=e5m2"]             # left out: every problem
        reason = "https://example.org/issues/12"

    Raises ExpectedFileError if the file cannot be read, is no TOML, or an entry lacks a field, has
    one too many, or breaks a rule of `ExpectedFailure`.
    """
    try:
        entries = _File.model_validate(tomllib.loads(path.read_text())).expected
    except OSError as error:
        raise ExpectedFileError(
            f"{path}: {error.strerror or error}; name a file that can be read"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExpectedFileError(f"{path} is no TOML: {error}") from None
    except ValidationError as error:
        raise ExpectedFileError(f"{path}: {_complaint(error)}") from None
    found = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(
                ExpectedFailure(
                    kernel=entry.kernel,
                    check=entry.check,
                    reason=entry.reason,
                    when=tuple(entry.when),
                )
            )
        except ValueError as error:
            raise ExpectedFileError(f"{path}, entry {number} of [[expected]]: {error}") from None
    return tuple(found)


def _complaint(error: ValidationError) -> str:
    """The first thing wrong, and where: `entry 2 of [[expected]], reason: Field required`."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if len(where) > 1 and first["loc"][0] == "expected":
        where = [f"entry {int(first['loc'][1]) + 1} of [[expected]]", *where[2:]]
    return f"{', '.join(where)}: {first['msg']}"
