"""Each detector finds a bug that no other one does; detectors.md has the whole table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from helpers.mutants import Kernels, hunt, plant
from studies.detectors.compiled import Compiler, compiler
from studies.detectors.judges import DETECTORS, INTERPRETED, detector
from studies.detectors.table import REPORT, SLOW_BUGS
from tests.meta.test_kernel_bugs import BUGS

NEEDED: Final = {
    "numbers": "quantised_by_multiplying",
    "needle": "query_too_large_for_float16",
    "poison": "range_of_the_whole_pool_looked_at",
    "laws": "splits_without_lse_are_merged_from_nothing",
    "overflow": "block_index_times_stride_in_int32",
    "memory": "values_of_padding_left_undefined",
    "bytes": "query_loaded_twice",
    "compiled": "no_pipeline",
}
"""For each detector a bug that it alone finds."""

FEW: Final = 2
"""Examples on which the other detectors are to find nothing; detectors.md has more."""

OTHERS: Final = [
    (alone, other)
    for alone, name in NEEDED.items()
    for other in INTERPRETED
    if other != alone and name in BUGS and detector(other, BUGS[name].by) is not None
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    with compiler(tmp_path_factory.mktemp("compiled")) as child:
        yield child


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernels]:
    folder = tmp_path_factory.mktemp("planted")
    return {name: plant(BUGS[name].mutant, folder) for name in NEEDED.values() if name in BUGS}


def test_every_detector_is_needed() -> None:
    assert set(NEEDED) == set(DETECTORS)


@pytest.mark.parametrize("name", [name for name in NEEDED if name != "compiled"])
def test_a_detector_finds_its_bug(name: str, planted: dict[str, Kernels]) -> None:
    harness = detector(name, BUGS[NEEDED[name]].by)
    assert harness is not None
    assert hunt(harness, planted[NEEDED[name]]) is not None


@pytest.mark.parametrize(("alone", "other"), OTHERS)
def test_no_other_detector_finds_it(alone: str, other: str, planted: dict[str, Kernels]) -> None:
    harness = detector(other, BUGS[NEEDED[alone]].by)
    assert harness is not None
    caught = hunt(harness, planted[NEEDED[alone]], max_examples=FEW)
    assert caught is None, caught


def but_long(names: Iterable[str], *, every_run: set[str]) -> list[ParameterSet]:
    """Compiling is dear: what stands for the others in every run, and they in the long one."""
    marks = {True: [], False: [pytest.mark.long]}
    return [pytest.param(name, marks=marks[name in every_run]) for name in names]


# The others' like is planted in tests/unit/kernels/compiled/test_planted_regressions.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", but_long(SLOW_BUGS, every_run={"no_pipeline", "one_warp"}))
def test_what_is_only_slow_shows_in_the_code(name: str, compiled: Compiler) -> None:
    assert compiled.worse(SLOW_BUGS[name], most=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    but_long([each for each in NEEDED.values() if each in BUGS], every_run={NEEDED["bytes"]}),
)
def test_the_code_of_the_others_is_not_worse(name: str, compiled: Compiler) -> None:
    assert compiled.worse(BUGS[name].mutant, most=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", but_long(SLOW_BUGS, every_run={"no_pipeline"}))
def test_what_is_only_slow_shows_nowhere_else(name: str, tmp_path: Path) -> None:
    if name == "tile_that_does_not_fit":
        pytest.skip("tiles of 512 keys are no other kernel in the interpreter, and slow there")
    slow = plant(SLOW_BUGS[name], tmp_path)
    for each in INTERPRETED:
        harness = detector(each, BUGS["last_token_lost"].by)
        # The simplest problem and one that is drawn: the answers are the right kernels' to the bit.
        assert harness is None or hunt(harness, slow, max_examples=2) is None


def test_the_report_names_every_bug_and_each_is_found() -> None:
    table = REPORT.read_text().partition("| bug |")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
    assert [name for name, _ in rows] == [*BUGS, *SLOW_BUGS]
    for name, cells in rows:
        found = [cell for cell in cells.split(" | ") if cell.strip() not in {"", "-"}]
        assert found, f"{name} is found by no detector"
