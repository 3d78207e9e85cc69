"""Builds the wheel: the rooms of the checkout go into the one package that is installed.

In a checkout the rooms are top-level packages with short names. Installed so, `kernels` would lie
over the package of that name from Hugging Face, and `bench` over anybody's. So each is copied to
`pagedbench/ROOM`, and what its modules import of each other gets the new name: `from kernels.x`
becomes `from pagedbench.kernels.x`. Nothing else in a file changes, and an editable install
uses the checkout as it is. Modules that are named in strings ask `subjects.starting`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOMS = ("reference", "subjects", "paged", "kernels", "bench")
IMPORT = re.compile(rf"^(\s*(?:from|import)\s+)(?=(?:{'|'.join(ROOMS)})\b)", re.MULTILINE)


def inside_the_package(text: str, file: Path) -> str:
    """A module's text with the rooms' names as they are in the package."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names if alias.asname is None}
            plain = {name.partition(".")[0] for name in names} & set(ROOMS)
            used = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
            if plain & used:
                raise SystemExit(
                    f"{file}:{node.lineno}: `import {min(names)}` binds the room's short name, "
                    f"which an installed package does not have; write `from ... import ...`"
                )
    return IMPORT.sub(r"\1pagedbench.", text)


class BuildRooms(build_py):
    """build_py, and then the rooms."""

    def run(self) -> None:
        """Copy the package, then each room into it."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, "pagedbench")
        for file in (file for room in ROOMS for file in sorted(Path(room).rglob("*"))):
            if file.suffix not in {".py", ".c", ".json", ".txt", ".yml", ".html", ".css", ".js"}:
                continue
            target = package / file
            target.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text(encoding="utf-8")
            is_code = file.suffix == ".py"
            target.write_text(inside_the_package(text, file) if is_code else text, "utf-8")
        for file in package.glob("*.py"):
            file.write_text(inside_the_package(file.read_text("utf-8"), file), "utf-8")


setup(cmdclass={"build_py": BuildRooms})
