"""Results of single steps on disk: a comparison that was ended goes on where it was.

A result is kept under all that it depends on: the release, what was asked, and the code that drives
it. Text that does nothing, comments and docstrings, changes none of them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.machinery import PathFinder
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bench.machine.record import StrictRecord
from subjects.environments import BuiltIn
from subjects.loading import split

Result = TypeVar("Result", bound=StrictRecord)


class Store:
    """A folder of results, each a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[Path] = set()

    @property
    def last(self) -> datetime | None:
        """When the latest of the results was measured that were asked for; None without any."""
        times = [file.stat().st_mtime for file in self._used if file.is_file()]
        return datetime.fromtimestamp(max(times), UTC) if times else None

    def find(
        self, step: str, name: str, key: dict[str, Any], kind: type[Result]
    ) -> tuple[Path, Result | None]:
        """The file of a step's result, and the result if it is there.

        `name` is the release's; the file's name begins with it, and ends with a digest of `key`.
        """
        said = json.dumps({"step": step, **key}, sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()[:12]
        file = self._folder / f"{_slug(name)}-{step}-{digest}.json"
        self._used.add(file)
        try:
            return file, kind.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return file, None

    def once(
        self,
        step: str,
        name: str,
        key: dict[str, Any],
        kind: type[Result],
        do: Callable[[], Result],
    ) -> Result:
        """A step's result: what was kept of it, or what it comes to now, which is kept."""
        file, result = self.find(step, name, key, kind)
        if result is None:
            result = do()
            keep(file, result)
        return result

    def texts(self, name: str = "") -> dict[str, str]:
        """The files of a release as they are, by name; of all releases without one."""
        files = self._folder.glob(f"{_slug(name)}*.json")
        return {file.name: file.read_text(encoding="utf-8") for file in files}

    def take(self, texts: Mapping[str, str]) -> None:
        """Keep files that another folder has."""
        for name, text in texts.items():
            _write(self._folder / name, text)


def keep(file: Path, result: StrictRecord) -> None:
    """Write a result, whole or not at all."""
    _write(file, result.model_dump_json(indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[-60:]


def adapter_digest(subject: str, built_in: Mapping[str, BuiltIn]) -> str:
    """Digest of the code that drives a subject: its file, or all of its package.

    Of a package of ours it is the modules that the subject's own imports lead to: none of ours is
    imported by a name that is made up at run time.
    """
    known = built_in.get(subject)
    where, _ = split(known.where if known else subject, what="subject")
    if where.endswith(".py"):
        files = [Path(where)]
    else:
        files = _reached(where) if known else _modules_of(where.partition(".")[0])
    said = "".join(_code(file) for file in files)
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def _modules_of(package: str) -> list[Path]:
    """Its files, without importing it; none where there is no such package, which others say."""
    here = PathFinder.find_spec(package, [*sys.path, str(Path.cwd())])
    if here is None or here.origin is None:
        return []
    folders = here.submodule_search_locations
    return sorted(Path(folders[0]).rglob("*.py")) if folders else [Path(here.origin)]


def _reached(module: str) -> list[Path]:
    """Files of a module's package that importing it would run, by their import statements."""
    package = _modules_of(module.partition(".")[0])
    finder = ModuleFinder([str(package[0].parents[1])])
    finder.import_hook(module, None, ["*"])
    named = {Path(file) for each in finder.modules.values() if (file := vars(each)["__file__"])}
    return [file for file in package if file in named]


def _code(file: Path) -> str:
    """A file's syntax without docstrings; as it stands where it is no Python of this version."""
    text = file.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return text
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
