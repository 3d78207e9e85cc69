"""One version of everything: requirements/, pyproject.toml and asv.conf.json say the same."""

import tomllib
from itertools import chain

import pytest
from asv.config import Config
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirement_lines(file: str) -> list[str]:
    lines = (ROOT / "requirements" / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    lines = chain.from_iterable(map(requirement_lines, ("runtime.txt", "triton.txt", "dev.txt")))
    return {
        canonicalize_name(name): version for name, _, version in (r.partition("==") for r in lines)
    }


ENGINES = sorted(f"engines/{path.name}" for path in (ROOT / "requirements/engines").glob("*.txt"))


@pytest.mark.parametrize("file", ENGINES)
def test_an_engine_has_our_torch_and_all_that_it_needs(file: str) -> None:
    # They are installed with --no-deps: what is missing here is missing there.
    theirs = {name for name, _, _ in (line.partition("==") for line in requirement_lines(file))}
    closure = {"filelock", "fsspec", "Jinja2", "mpmath", "networkx", "sympy", "typing_extensions"}
    assert {"torch", "numpy"} | closure <= theirs
    assert f"torch=={pins()['torch']}" in requirement_lines(file)


@pytest.mark.parametrize("file", ["runtime.txt", "triton.txt", "dev.txt", *ENGINES])
def test_requirements_are_exact_and_of_no_particular_build(file: str) -> None:
    lines = requirement_lines(file)
    assert lines
    loose = [line for line in lines if line.count("==") != 1 or set(line) & set("<>~!+*;@ ")]
    assert loose == []


@pytest.mark.parametrize(
    "requirement",
    [
        *PROJECT["dependencies"],
        *(r for r in chain(*PROJECT["optional-dependencies"].values()) if "pagedbench" not in r),
    ],
)
def test_pin_lies_in_the_range_that_the_project_declares(requirement: str) -> None:
    declared = Requirement(requirement)
    assert declared.specifier.contains(pins()[canonicalize_name(declared.name)])


def test_asv_measures_the_pinned_pair_under_every_supported_python() -> None:
    pinned = pins()
    conf = Config.load(str(ROOT / "asv.conf.json"))
    rows = [row for row in conf.include if row["req"]["torch"] == pinned["torch"]]
    prefix = "Programming Language :: Python :: 3."
    supported = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert [row["python"] for row in rows] == supported
    for row in rows:
        versions = {canonicalize_name(n.removeprefix("pip+")): v for n, v in row["req"].items()}
        assert versions == {name: pinned[name] for name in versions}
        assert list(versions)[:2] == ["torch", "triton"], "asv installs in this order"
