"""Where Hypothesis keeps the programs that failed, so that the next run tries them first."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    GitHubArtifactDatabase,
    MultiplexedDatabase,
    ReadOnlyDatabase,
)

from reference.errors import BadInput

DEFAULT_FOLDER: Final = Path(".pagedbench") / "examples"


def open_database(name: str, *, local: Path = DEFAULT_FOLDER) -> ExampleDatabase | None:
    """Open a folder, `redis://HOST:PORT/NUMBER`, `github:OWNER/REPO` beside `local`, or `none`."""
    if name == "none":
        return None
    if name.startswith(("redis://", "rediss://")):
        return _redis(name)
    if name.startswith("github:"):
        match = re.fullmatch(r"github:([\w.-]+)/([\w.-]+)", name)
        if match is None:
            raise BadInput(f"database {name}: write github:OWNER/REPOSITORY")
        shared = GitHubArtifactDatabase(match[1], match[2])
        return MultiplexedDatabase(DirectoryBasedExampleDatabase(local), ReadOnlyDatabase(shared))
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"database {name}: that is a file; name a folder")
    return DirectoryBasedExampleDatabase(folder)


def _redis(url: str) -> ExampleDatabase:
    try:
        redis = importlib.import_module("redis")
        from hypothesis.extra.redis import RedisExampleDatabase
    except ImportError:
        raise BadInput(
            f"database {url}: the package redis is not installed; pip install redis"
        ) from None
    database: ExampleDatabase = RedisExampleDatabase(redis.Redis.from_url(url))
    return database


class Drawer(ExampleDatabase):
    """One compartment of a database, whatever the key that Hypothesis comes up with.

    Hypothesis knows a test by its source. Here the same few lines test every allocator.
    """

    def __init__(self, database: ExampleDatabase, name: str) -> None:
        super().__init__()
        self._database = database
        self._name = name.encode()

    def save(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        self._database.save(self._own(key), value)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Every value of a key."""
        return self._database.fetch(self._own(key))

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a value."""
        self._database.delete(self._own(key), value)

    def _own(self, key: bytes) -> bytes:
        # Behind the digest of the test, if anything, stands which of its values are meant.
        _, dot, kind = key.rpartition(b".")
        return self._name + dot + kind if kind in (b"secondary", b"pareto") else self._name
