"""The face: every public name leads somewhere, and none is imported before it is asked for."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pagedbench
import pagedbench.testing
from helpers.places import ROOT

OLD_PATHS = {
    "reference.contract": ("reference.attention.contract", "Capabilities"),
    "reference.conformance.allocator": ("reference.allocator.machine", "run_program"),
    "reference.conformance.expected": ("reference.attention.expected", "ExpectedFailure"),
    "reference.programs": ("reference.allocator.programs", "Program"),
    "reference.attention": ("reference.attention.truth", "attend"),
    "subjects.allocators": ("subjects.allocators.resolve", "open_allocator"),
    "subjects.resolve": ("subjects.attention.resolve", "resolve_kernel"),
    "bench.testing": ("bench.check.testing", "parametrize_with_checks"),
    "bench.fuzzing.record": ("bench.fuzz.record", "FuzzRecord"),
}


def run(code: str, *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_is_quick_and_brings_in_neither_torch_nor_triton() -> None:
    asked = run(
        "import time, sys, json; began = time.process_time(); import pagedbench; "
        "took = time.process_time() - began; import pagedbench.testing; "
        "names = sorted({name.partition('.')[0] for name in sys.modules}); "
        "print(json.dumps([took, names]))"
    )
    took_s, modules = json.loads(asked.stdout)
    assert took_s < 0.05
    assert not {"torch", "triton", "numpy", "pydantic", "hypothesis", "bench"} & set(modules)


@pytest.mark.parametrize("face", [pagedbench, pagedbench.testing])
def test_every_name_leads_somewhere(face: object) -> None:
    assert face.__all__ == sorted(dir(face))
    for name in face.__all__:
        assert callable(getattr(face, name))


@pytest.mark.parametrize("face", [pagedbench, pagedbench.testing])
def test_type_checkers_are_told_the_same(face: object) -> None:
    tree = ast.parse(Path(face.__file__).read_text())
    (told,) = (node for node in tree.body if isinstance(node, ast.If) and "TYPE" in node.test.id)
    pairs = {(alias.name, line.module) for line in told.body for alias in line.names}
    pairs.discard(("Any", "typing"))
    assert pairs == {(name, home) for home, names in face._HOMES.items() for name in names}


def test_unknown_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no 'Nothing'; it offers .*Capabilities"):
        _ = pagedbench.Nothing


def test_old_paths_warn_and_lead_to_the_same_objects() -> None:
    asked = run(
        "import importlib, warnings\n"
        f"for old, (new, name) in {OLD_PATHS!r}.items():\n"
        "    with warnings.catch_warnings(record=True) as said:\n"
        "        warnings.simplefilter('always')\n"
        "        before = getattr(importlib.import_module(old), name)\n"
        "    now = importlib.import_module(new)\n"
        "    assert before is getattr(now, name), old\n"
        "    assert now.__spec__.name == now.__name__ == new, old\n"
        "    told = [str(one.message) for one in said if one.category is DeprecationWarning]\n"
        "    assert any('and this path goes with the next release' in one for one in told)\n"
    )
    assert asked.returncode == 0, asked.stderr


def test_module_that_never_was_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        __import__("reference.never_was")


def test_python_m_pagedbench_works_where_a_folder_has_the_name_of_a_room(tmp_path: Path) -> None:
    for room in ("bench", "kernels"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise ImportError('not ours')\n")
    asked = subprocess.run(
        [sys.executable, "-m", "pagedbench", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert "pagedbench gate HEAD~1" in asked.stdout
