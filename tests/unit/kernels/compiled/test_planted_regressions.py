"""Each planted regression is compiled, compared with the stored baseline, and named in words."""

from __future__ import annotations

import re

import pytest

from bench.compile.run import ask, start
from bench.machine.facts import version_of
from kernels.compiled.baseline import Status, built_in_path, compare, read_baseline
from kernels.compiled.explain import Judgement
from kernels.compiled.targets import TARGETS
from kernels.compiled.variants import VARIANTS, Variant

from .planting import PLANTS, Plant

TARGET, DECODE = TARGETS["sm_90"], VARIANTS[0]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not built_in_path(version_of("triton")).is_file(),
        reason=f"there is no baseline for triton {version_of('triton')}",
    ),
]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Compiles a plant in the one child of this module and compares it with the baseline."""
    baseline = read_baseline(built_in_path(version_of("triton")))
    base = baseline.targets[TARGET.name].variants[DECODE.name]
    folder = tmp_path_factory.mktemp("plants")
    with start(TARGET, cache=folder / "cache") as child:

        def compile_and_compare(plant):
            figures = ask(child, Variant(plant.name, plant.write(folder), DECODE.problem))
            return compare(TARGET.name, DECODE.name, base, figures)

        yield compile_and_compare


def test_a_copy_without_a_plant_is_the_same(compared):
    assert compared(Plant("nothing", words=())).status is Status.SAME


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_regression_is_named(plant, compared):
    comparison = compared(plant)
    assert comparison.status is Status.WORSE
    said = [each.words for each in comparison.changes if each.judgement is Judgement.WORSE]
    missing = [words for words in plant.words if not any(re.search(words, each) for each in said)]
    assert not missing, said
