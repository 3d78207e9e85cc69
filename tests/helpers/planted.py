"""Lists of bugs beside the tests that must reject them, and modules with such a bug in them.

A list is a TOML file: a table per bug, with the `file` that is changed, its `edits` as pairs of old
and new text, and whatever else the test wants to know.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from helpers.mutants import Mutant, mutate


def bugs_beside(test: str) -> dict[str, tuple[Mutant, dict[str, Any]]]:
    """The bugs listed for `tests/meta/test_NAME.py`: what is changed, and the other fields."""
    listed = Path(test).with_name(f"{Path(test).stem.removeprefix('test_')}.toml")
    bugs = {}
    for name, fields in tomllib.loads(listed.read_text(encoding="utf-8")).items():
        edits = tuple((old, new) for old, new in fields.pop("edits"))
        bugs[name] = Mutant(name, fields.pop("file"), edits), fields
    return bugs


def changed_module(name: str, mutant: Mutant | None, *, called: str | None = None) -> ModuleType:
    """Run a module's text, with a change where it is the mutant's, as a module of its own.

    It stays among the loaded modules under the name it is `called`, or is gone again: while it runs
    it has to be there, since dataclasses look their module up.
    """
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    if mutant is not None and mutant.file == name:
        source = mutate(mutant, source)
    changed = ModuleType(called or f"changed_{name.replace('.', '_')}")
    sys.modules[changed.__name__] = changed
    try:
        exec(compile(source, f"changed {spec.origin}", "exec"), vars(changed))
    finally:
        if called is None:
            del sys.modules[changed.__name__]
    return changed


def until_found(max_examples: int, **more: Any) -> settings:
    """The same examples in every run and every profile; what is found is not shrunk."""
    return settings(
        settings.get_profile("default"),
        max_examples=max_examples,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        **more,
    )
