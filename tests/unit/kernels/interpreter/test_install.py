"""When the corrections are installed, and when nothing is."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import triton.language as tl
from triton.runtime import interpreter as ti

from helpers.places import ROOT
from kernels import interpreter

COMPILING = """
import json
from triton.runtime import interpreter as ti
import triton.language as tl

def patched_places():
    places = (ti, ti.InterpreterBuilder, ti.TritonSemantic, ti.ReduceOps, tl.tensor, tl.block_type)
    return [
        {name: id(value) for name, value in vars(place).items()} for place in places
    ] + [ti.interpreter_builder.options]

before = patched_places()
import kernels.interpreter as interpreter
interpreter.install()
print(json.dumps([interpreter.interpreting(), interpreter.installed(), before == patched_places()]))
"""


def patched_functions() -> list[object]:
    return [
        ti._patch_lang,
        ti._get_np_dtype,
        ti.InterpreterBuilder.cast_impl,
        ti.InterpreterBuilder.create_dot,
        ti.TritonSemantic.broadcast_impl_value,
        tl.tensor.__init__,
    ]


def test_importing_installs_everything() -> None:
    assert interpreter.interpreting()
    assert interpreter.installed()


def test_second_installation_changes_nothing() -> None:
    before = patched_functions()
    interpreter.install()
    interpreter.install(without={"dot"})
    assert patched_functions() == before
    assert interpreter.installed()


def test_unknown_correction_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match=r"no corrections \['dots'\]: leave out some of .*'dot'"):
        interpreter.install(without={"dots"})


def test_switch_must_be_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDBENCH_STOCK_INTERPRETER", "yes")
    with pytest.raises(ValueError, match="PAGEDBENCH_STOCK_INTERPRETER='yes': set it to 1"):
        importlib.reload(interpreter)


def test_process_that_compiles_is_left_alone() -> None:
    run = subprocess.run(
        [sys.executable, "-c", COMPILING],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [False, False, True]
