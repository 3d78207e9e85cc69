"""Keeps the problems that kernels got wrong, so that the next run tries them first."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from reference.attention.problem import AttentionProblem, InvalidProblem
from reference.attention.size import check_reference
from reference.reading import read_whole


@dataclass(frozen=True, slots=True)
class FailureStore:
    """One text file for each kernel: a spec a line, oldest first."""

    folder: Path
    """Where the files lie; made when something is saved."""

    def path(self, kernel: str) -> Path:
        """The file of a kernel."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", kernel).strip("-")[-60:]
        return self.folder / f"{slug}-{hashlib.sha256(kernel.encode()).hexdigest()[:8]}.txt"

    def load(self, kernel: str) -> list[AttentionProblem]:
        """Problems saved for a kernel, without lines that do not parse or are too large."""
        problems = []
        for line in _lines(self.path(kernel)):
            try:
                problem = AttentionProblem.parse(line)
                check_reference(problem)
                problems.append(problem)
            except InvalidProblem:
                continue
        return problems

    def save(self, kernel: str, problem: str) -> Path:
        """Add a problem, once."""
        path = self.path(kernel)
        known = _lines(path)
        if problem not in known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([*known, problem]) + "\n")
        return path


def _lines(path: Path) -> list[str]:
    # Anybody may have edited it: bytes that are no text spoil their line, not the others.
    if not path.is_file():
        return []
    return read_whole(path, what="a list of failures").decode(errors="replace").splitlines()
