"""Each correction of the interpreter, with it and without it.

The probes run in forks of one child process: see probes.py. Costs are counted, never timed.
"""

from collections.abc import Callable
from typing import Any

import pytest

from kernels.interpreter import CORRECTIONS


@pytest.fixture(scope="module")
def report(run_script: Callable[..., Any]) -> dict[str, Any]:
    return run_script("probes.py")


@pytest.mark.parametrize("correction", sorted(CORRECTIONS))
def test_every_probe_is_right_with_the_correction(report: dict[str, Any], correction: str) -> None:
    probes = report["corrections"][correction]
    assert {name: outcome["with"] for name, outcome in probes.items()} == dict.fromkeys(
        probes, "right"
    )


@pytest.mark.parametrize("correction", sorted(CORRECTIONS))
def test_probes_notice_that_the_correction_is_left_out(
    report: dict[str, Any], correction: str
) -> None:
    probes = report["corrections"][correction]
    noticing = {name for name, outcome in probes.items() if not outcome["control"]}
    assert noticing, f"no probe shows what {correction} is for"
    blind = {name for name in noticing if probes[name]["without"] == "right"}
    assert not blind, f"right without {correction}: {sorted(blind)}"


def test_kernels_that_ran_stock_are_right_after_a_late_installation(report: dict[str, Any]) -> None:
    assert report["late"] == ["wrong", "right"]
