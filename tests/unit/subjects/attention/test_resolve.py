"""From a name to a kernel, and what is refused on the way."""

import sys
from pathlib import Path

import pytest

from helpers import wrong_kernels
from paged.attention import paged_attention
from reference.attention.contract import Capabilities
from subjects.attention.resolve import BUILT_IN, resolve_kernel
from subjects.loading import SubjectError


@pytest.fixture(autouse=True)
def imports_are_undone(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)) or (
            name.startswith("subject_")
        ):
            del sys.modules[name]


def kernel_file(source: str, name: str = "mine.py") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(source)
    return name


def test_built_in_names_are_short_for_names_like_anybodys():
    assert resolve_kernel("torch").kernel is paged_attention
    assert resolve_kernel(BUILT_IN["torch"].where).kernel is paged_attention
    assert resolve_kernel("triton").name == "triton"
    cascade = resolve_kernel("triton-cascade").kernel
    assert cascade.__name__ == "paged_attention_with_cascade"


def test_a_file_with_what_lies_beside_it():
    kernel_file("def attend(batch): return 'beside'", "deep/beside.py")
    name = kernel_file("from beside import attend", "deep/mine.py")
    subject = resolve_kernel(f"{name}:attend")
    assert subject.kernel(None) == "beside"
    assert subject.name == "deep/mine.py:attend"
    assert subject.capabilities == Capabilities()


def test_a_file_beside_a_package_of_an_installed_name_gets_its_own():
    kernel_file("where = 'beside'", "rich_tables.py")
    kernel_file("from rich_tables import where\ndef attend(batch): return where")
    assert resolve_kernel("mine.py:attend").kernel(None) == "beside"


def test_a_module_of_the_folder_it_is_named_in_and_a_dotted_function():
    kernel_file("class Kernels:\n    @staticmethod\n    def attend(batch): ...", "its_module.py")
    subject = resolve_kernel("its_module:Kernels.attend")
    assert subject.kernel.__qualname__ == "Kernels.attend"


def test_what_a_kernel_declares_comes_with_it():
    subject = resolve_kernel(wrong_kernels.named("narrow"))
    assert subject.capabilities == wrong_kernels.NARROW


@pytest.mark.parametrize("name", ["", "attend", "mine.py", ":attend", "mine.py:", "triton_"])
def test_a_name_without_both_parts_is_told_the_three_kinds(name):
    with pytest.raises(SubjectError, match=r"module:function, path/to/file.py:function, or one of"):
        resolve_kernel(name)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("other.py:attend", "", r"other\.py is not a file \(looked from /"),
        ("mine.py:other", "def attend(batch): ...\n_x = int", r"no 'other'; it offers attend$"),
        ("mine.py:attend", "", r"mine\.py has no 'attend'; it offers nothing callable"),
        ("mine.py:N", "N = 3", r"mine\.py:N is int, not callable: name a function that takes"),
        ("mine.py:attend", "1 / 0", r"cannot import mine\.py: ZeroDivisionError"),
        ("mine.py:attend", "def", r"cannot import mine\.py: SyntaxError"),
        ("mine.py:attend", "import not_there", r"ModuleNotFoundError: No module named 'not_there'"),
        ("not_there:attend", "", r"cannot import 'not_there' from /.*ModuleNotFoundError"),
    ],
)
def test_what_leads_nowhere_says_where_it_ended(name, source, message):
    kernel_file(source)
    with pytest.raises(SubjectError, match=message):
        resolve_kernel(name)


def test_a_package_that_has_the_name_of_ours_is_told_apart():
    kernel_file("def attend(batch): ...", "paged/theirs.py")
    with pytest.raises(SubjectError, match=r"'paged' is pagedbench's own package: name the kernel"):
        resolve_kernel("paged.theirs:attend")
    assert resolve_kernel("paged/theirs.py:attend").kernel(None) is None
    kernel_file("import kernels.theirs")
    with pytest.raises(SubjectError, match=r"let it import nothing called kernels"):
        resolve_kernel("mine.py:attend")


def test_capabilities_of_another_type_are_refused():
    with pytest.raises(SubjectError, match=r"must be a pagedbench.Capabilities"):
        resolve_kernel(wrong_kernels.named("declares_a_dict"))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"dtypes": frozenset()}, "dtypes is empty"),
        ({"head_dims": frozenset()}, r"head_dims is \[\]; name multiples of 8 from 16 to 576"),
        ({"head_dims": frozenset({64, 20})}, r"head_dims is \[20, 64\]"),
        ({"head_dims": frozenset({584}), "max_head_dim": 584}, r"head_dims is \[584\]"),
        ({"head_dims": 64}, "head_dims is 64; name"),
        ({"head_dims": frozenset({"64"})}, r"head_dims is \['64'\]"),
        ({"head_dims": {64, 128}, "max_head_dim": 64}, "head_dims has 128, but max_head_dim is 64"),
        ({"max_head_dim": 8}, "max_head_dim is 8; the smallest"),
        ({"block_sizes": frozenset()}, r"block_sizes is \[\]; name powers of two from 1 to 256"),
        ({"block_sizes": {16, 24}}, r"block_sizes is \[16, 24\]"),
        ({"block_sizes": {512}}, r"block_sizes is \[512\]"),
    ],
)
def test_capabilities_that_leave_nothing_to_draw_are_refused(declared, message):
    kernel_file(
        "from reference.attention.contract import Capabilities, declares\n"
        f"@declares(Capabilities(**{declared!r}))\ndef attend(batch): ..."
    )
    with pytest.raises(SubjectError, match=f"^mine.py:attend: its capabilities' {message}"):
        resolve_kernel("mine.py:attend")


@pytest.mark.parametrize("declared", ["{16, 32}", "[16, 32]", "frozenset({32, 16})"])
def test_any_collection_of_sizes_will_do(declared):
    kernel_file(
        "from reference.attention.contract import Capabilities, declares\n"
        f"@declares(Capabilities(block_sizes={declared}))\ndef attend(batch): ..."
    )
    assert set(resolve_kernel("mine.py:attend").capabilities.block_sizes) == {16, 32}
