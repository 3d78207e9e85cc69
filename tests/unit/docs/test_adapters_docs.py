"""The adapters of docs/adapters.md are short, compile, and each is a kernel of the contract."""

import ast
import re
from textwrap import dedent

import pytest

from helpers.places import ROOT
from pagedbench import Capabilities, declares

PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
SECTIONS = [each.split("\n", 1) for each in PAGE.split("\n## ")[1:]]
CODE = re.compile(r"^(?: {4}.*\n|\n)+", re.MULTILINE)
ADAPTERS = [(name, dedent(max(CODE.findall(text), key=len))) for name, text in SECTIONS]


def test_there_is_one_for_each_that_has_no_wheel():
    assert [name for name, _ in ADAPTERS] == ["LMDeploy", "lightllm", "aiter"]


@pytest.mark.parametrize(("name", "code"), ADAPTERS)
def test_an_adapter_is_short_and_a_kernel(name, code):
    assert len([line for line in code.splitlines() if line.strip()]) < 25
    compile(code, name, "exec")
    kernel = ast.parse(code).body[-1]
    assert isinstance(kernel, ast.FunctionDef)
    (declared,) = kernel.decorator_list
    assert callable(
        eval(ast.unparse(declared), {"Capabilities": Capabilities, "declares": declares})
    )
    assert [each.arg for each in kernel.args.args] == ["batch"]
