"""Failures between runs: a spec a line, in a file for each kernel."""

from pathlib import Path

import pytest

from bench.check.failures import FailureStore
from reference.attention.problem import AttentionProblem

ONE = "(q1 k41) d16 b16 fp32"
TWO = "2x(q1 k129) g4 d80 b16 bf16 window=32"


def test_what_is_saved_comes_back_in_order_and_once(tmp_path):
    store = FailureStore(tmp_path / "deep" / "failures")
    assert store.load("k.py:f") == []
    assert not store.folder.parent.exists()
    for spec in (TWO, ONE, TWO):
        path = store.save("k.py:f", spec)
    assert store.load("k.py:f") == [AttentionProblem.parse(TWO), AttentionProblem.parse(ONE)]
    assert path.read_text() == f"{TWO}\n{ONE}\n"
    assert FailureStore(store.folder).load("k.py:f") == store.load("k.py:f")


def test_kernels_have_files_of_their_own_also_where_the_names_look_alike(tmp_path):
    store = FailureStore(tmp_path)
    names = ["a/b.py:f", "a-b.py:f", "a/b.py:F", f"{'x' * 200}a/b.py:f", "[red]", "../../escape:f"]
    assert len({store.path(name) for name in names}) == len(names)
    for name in names:
        assert store.save(name, ONE).parent == tmp_path
    assert store.load("torch") == []


@pytest.mark.parametrize(
    "junk", [b"# a note\n", b"(q1 k4) d64 b16 bf99\n", b"\xff\xfe\x00\n", b"\n"]
)
def test_a_line_that_is_no_problem_spoils_no_other(junk, tmp_path):
    store = FailureStore(tmp_path)
    path = store.save("k", ONE)
    path.write_bytes(junk + path.read_bytes() + junk)
    assert store.load("k") == [AttentionProblem.parse(ONE)]
    store.save("k", TWO)
    assert store.load("k") == [AttentionProblem.parse(ONE), AttentionProblem.parse(TWO)]


def test_a_folder_that_cannot_be_made_is_an_error_and_loads_nothing(tmp_path):
    (tmp_path / "file").touch()
    store = FailureStore(Path(tmp_path / "file" / "failures"))
    assert store.load("k") == []
    with pytest.raises(OSError, match="file"):
        store.save("k", ONE)
