"""The adapters of docs/peers.md for kernels that no wheel brings: Python, short, and declared."""

import ast
import re

import pytest

from helpers.places import ROOT
from reference.attention.contract import Capabilities

PAGE = (ROOT / "docs" / "peers.md").read_text()
ADAPTERS = re.findall(r"\n\n(    # (\w+)_decode\.py: .*?)\n\n(?![ \n])", PAGE, re.DOTALL)


def test_there_are_three() -> None:
    assert [name for _, name in ADAPTERS] == ["lightllm", "aiter", "lmdeploy"]


@pytest.mark.parametrize(("text", "name"), ADAPTERS, ids=lambda value: value[:8])
def test_it_has_under_25_lines_and_declares_what_there_is(text: str, name: str) -> None:
    source = re.sub(r"^    ", "", text, flags=re.MULTILINE)
    lines = [line for line in source.splitlines() if line and not line.startswith("#")]
    assert len(lines) < 25, name
    *_, kernel = ast.parse(source).body
    assert isinstance(kernel, ast.FunctionDef)
    (decorator,) = kernel.decorator_list
    assert isinstance(decorator, ast.Call)
    declared = compile(ast.Expression(decorator.args[0]), name, "eval")
    assert isinstance(eval(declared, {"Capabilities": Capabilities}), Capabilities)
