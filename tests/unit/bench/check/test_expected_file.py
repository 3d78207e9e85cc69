"""A file of expected failures: what it holds, and what is wrong with one that is refused."""

from pathlib import Path

import pytest

from bench.check.expected_file import read_expected
from reference.attention.expected import ExpectedFailure
from reference.errors import BadInput

RIGHT = """
[[expected]]
kernel = "my_kernel.py:attention"
check = "truth"
when = ["kv_dtype=e5m2", "window"]
reason = "https://example.org/issues/12"

[[expected]]
kernel = "torch"
check = "repeated"
reason = "It adds up in another order each time."
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "expected.toml"
    file.write_text(text)
    return file


def test_a_file_holds_what_is_written_in_it(tmp_path):
    assert read_expected(written(tmp_path, RIGHT)) == (
        ExpectedFailure(
            kernel="my_kernel.py:attention",
            check="truth",
            when=("kv_dtype=e5m2", "window"),
            reason="https://example.org/issues/12",
        ),
        ExpectedFailure(
            kernel="torch", check="repeated", reason="It adds up in another order each time."
        ),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected: Field required"),
        ("[[expected", "is no TOML: "),
        (RIGHT.replace('"torch"', "3"), "entry 2 of [[expected]], kernel: Input should be a valid"),
        (RIGHT.replace("reason =", "because =", 1), "entry 1 of [[expected]], reason: Field req"),
        (RIGHT + 'strict = "yes"\n', "entry 2 of [[expected]], strict: Unexpected key"),
        (RIGHT.replace('["kv_dtype=e5m2", "window"]', '"window"'), "entry 1 of [[expected]], when"),
        (RIGHT.replace("It adds up in another order each time.", ""), "entry 2 of [[expected]]: r"),
        (RIGHT.replace("kv_dtype", "dtype"), "entry 1 of [[expected]]: 'dtype=e5m2' is no feature"),
        (RIGHT.replace("repeated", "again"), "entry 2 of [[expected]]: check='again' is no check"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_entry_and_the_fault(text, message, tmp_path):
    file = written(tmp_path, text)
    with pytest.raises(BadInput) as refused:
        read_expected(file)
    assert str(refused.value).startswith(str(file))
    assert message in str(refused.value)


def test_a_file_that_cannot_be_read_is_said_to(tmp_path):
    with pytest.raises(BadInput, match="No such file or directory; name a TOML file"):
        read_expected(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not UTF-8 text"):
        read_expected(tmp_path / "bytes.toml")
