"""Wrong kernels, each of which the project's own checks must reject.

Every bug is one change to the text of `kernels/`, listed in kernel_bugs.toml. Attention is held to
the checks over drawn problems, cache writes and block copies to `paged.cache`, bit for bit. A
harness narrows what is drawn until the bug can show, and no further. README.md has the table of
what rejects what.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from helpers.counted_bytes import counted_bytes
from helpers.mutants import (
    MAX_EXAMPLES,
    Caught,
    Findings,
    Harness,
    Mutant,
    attention,
    caches,
    hunt,
    plant,
)
from helpers.planted import bugs_beside
from reference.attention.catalogue import LAWS
from reference.attention.contract import Capabilities

README: Final = Path(__file__).with_name("README.md")
TABLE_COMMAND: Final = "PYTHONPATH=.:tests python -m tests.meta.test_kernel_bugs"

RIGHT_EXAMPLES: Final = 2
"""Examples of each harness that the unchanged kernels must pass."""

NOT_AN_EXCEPTION: Final = r"^(?!raised)"


@dataclass(frozen=True, slots=True)
class Bug:
    """A mutant, and how it must come to light."""

    mutant: Mutant
    by: Harness
    """The harness that must reject it."""
    finding: str = NOT_AN_EXCEPTION
    """Pattern of what the harness says. By default anything but an exception: a mutant that does
    not run proves nothing."""
    seen: str = ""
    """Where a bug of the kind was reported, as owner/repository#number."""
    blind: str = ""
    """Why it is not rejected, if it is not: a known gap, and a failure once the gap is closed."""


class Survived(AssertionError):
    """A wrong kernel that was not rejected."""


def harness_of(narrowed: dict[str, Any]) -> Harness:
    """What a bug's `by` narrows: attention unless an `operation` is named, or its `bytes`."""
    narrowed = {name: tuple(v) if isinstance(v, list) else v for name, v in narrowed.items()}
    if narrowed.pop("bytes", False):
        return counted_bytes(harness_of(narrowed))
    return caches(**narrowed) if "operation" in narrowed else attention(**narrowed)


BUGS: Final = {
    name: Bug(mutant, harness_of(fields.pop("by")), **fields)
    for name, (mutant, fields) in bugs_beside(__file__).items()
}
SMALL: Final = (16, 16)

# What every bug and every harness must do

LAW_BUGS: Final = {
    "relabelled-pages": ("pages_taken_for_consecutive", {"prefill": False, "block_size": 64}),
    "history": ("lengths_of_the_first_call_in_these_tensors", {"prefill": False}),
    "repeated": ("splits_chosen_anew_at_every_call", {"prefill": False}),
    "without-lse": ("splits_without_lse_are_merged_from_nothing", {"prefill": False, "splits": 3}),
    "shared-prefix": (
        "pages_taken_for_consecutive",
        {"prefill": False, "block_size": 16, "shared_prefix": 64},
    ),
    "alone": ("table_row_of_the_neighbour", {"prefill": False}),
    "last-row": ("causal_mask_strict", {"prefill": True}),
    "growth": ("causal_mask_one_token_ahead", {"prefill": True}),
    "scaled-values": ("value_scale_ignored", {"prefill": False, "fp8": True}),
    "shards": ("lse_in_binary_units", {"prefill": False}),
}
"""For each law a bug that it rejects by itself, and what to draw."""

LAW_HARNESSES: Final = {
    law: attention(check=law, tiles=SMALL, **narrowed) for law, (_, narrowed) in LAW_BUGS.items()
}
HARNESSES: Final = {
    harness.says: harness for harness in (*(b.by for b in BUGS.values()), *LAW_HARNESSES.values())
}


Right = Callable[[Harness, Any], Findings]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Right:
    """What a harness says of the unchanged copy: many bugs show in the same example."""
    unchanged = plant(None, tmp_path_factory.mktemp("right"))
    return cache(lambda harness, example: harness.findings(unchanged, example))


def catch(mutant: Mutant, harness: Harness, right: Right, folder: Path) -> Caught:
    """Plant, hunt, and let the right kernels answer the example that gave the mutant away."""
    caught = hunt(harness, plant(mutant, folder))
    if caught is None:
        raise Survived(f"{mutant.name} survived {MAX_EXAMPLES} examples of {harness.says}")
    assert right(harness, caught.example) == []
    return caught


def expected_to_fail(bug: Bug) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(raises=Survived, reason=bug.blind)] if bug.blind else []


@pytest.mark.parametrize(
    "bug", [pytest.param(b, id=name, marks=expected_to_fail(b)) for name, b in BUGS.items()]
)
def test_bug_is_rejected(
    bug: Bug, right: Right, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    caught = catch(bug.mutant, bug.by, right, tmp_path)
    record_property("examples", caught.tried)
    record_property("finding", caught.finding)
    assert re.search(bug.finding, caught.finding), f"{caught.example}: {caught.finding}"


# Where the bug's own harness is the law alone, `test_bug_is_rejected` has shown it.
@pytest.mark.parametrize(
    "law",
    [law for law, each in LAW_HARNESSES.items() if each.says != BUGS[LAW_BUGS[law][0]].by.says],
)
def test_law_alone_rejects_a_bug(law: str, right: Right, tmp_path: Path) -> None:
    name, _ = LAW_BUGS[law]
    caught = catch(BUGS[name].mutant, LAW_HARNESSES[law], right, tmp_path)
    assert re.search(NOT_AN_EXCEPTION, caught.finding), f"{caught.example}: {caught.finding}"


@pytest.mark.parametrize("harness", HARNESSES.values(), ids=HARNESSES)
def test_unchanged_copy_passes(harness: Harness, right: Right) -> None:
    look = Harness(harness.says, harness.examples, lambda _, example: right(harness, example))
    assert hunt(look, None, max_examples=RIGHT_EXAMPLES) is None


def test_every_law_has_a_bug() -> None:
    assert set(LAW_BUGS) == {law.name for law in LAWS if law.concerns(Capabilities())}


def listed() -> str:
    """The table of README.md."""
    head = "| bug | file | harness | seen in |\n" + "| --- " * 4 + "|"
    rows = (f"| `{n}` | {b.mutant.file} | {b.by.says} | {b.seen} |" for n, b in BUGS.items())
    return "\n".join([head, *rows])


def test_readme_lists_the_bugs() -> None:
    assert table_of(README.read_text())[1].strip() == listed(), f"write it anew: {TABLE_COMMAND}"


def table_of(text: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands behind it."""
    start, end = (text.index(mark) for mark in ("| bug |", "<!-- end of the table -->"))
    return text[:start], text[start:end], text[end:]


if __name__ == "__main__":
    before, _, after = table_of(README.read_text())
    README.write_text(f"{before}{listed()}\n\n{after}")
