"""The coverage matrix: what was shown, what was not, what is not supported, and what cannot be."""

from collections import Counter

import pytest

from reference.attention.catalogue import CHECKS
from reference.attention.contract import Capabilities
from reference.attention.coverage import Cell, CellState, Coverage, can_show
from reference.attention.features import FEATURES, feature
from reference.attention.problem import AttentionProblem
from reference.attention.verdict import Status, Verdict

BY_NAME = {check.name: check for check in CHECKS}
EVERYTHING = Capabilities()
DECODER = Capabilities(variants=frozenset({"lse"}), kv_dtypes=frozenset())
DECODE = AttentionProblem.parse("(q1 k9) d16 b4 bf16")


def cells(
    coverage: Coverage, capabilities: Capabilities = EVERYTHING
) -> dict[str, dict[str, Cell]]:
    return {row.feature: dict(row.cells) for row in coverage.matrix(capabilities)}


def with_verdicts(*statuses: Status, check: str = "truth") -> Coverage:
    coverage = Coverage()
    for status in statuses:
        coverage.add(DECODE, Verdict(check, status))
    return coverage


def test_without_a_verdict_everything_that_is_supported_is_not_run() -> None:
    states = Counter(
        (cell.state, feature.name)
        for feature in FEATURES
        for cell in cells(Coverage())[feature.name].values()
        if cell.state is not CellState.NOT_RUN
    )
    # A law about prefill has nothing to say of decode, nor where every key is seen anyway; that of
    # shares of the keys nothing where a key has its place, or a row less than all before it.
    of_place = ("window", "alibi", "sinks", "prefill", "mixed", "chunked", "short_query", "pool")
    assert states == {
        (CellState.SHOWN_BY_NONE, name): count
        for count, names in ((2, ("decode", "noncausal")), (1, of_place))
        for name in names
    }


def test_a_verdict_counts_for_each_feature_of_its_problem_and_no_other() -> None:
    matrix = cells(with_verdicts(Status.PASSED, Status.PASSED))
    for name in ("dtype=bf16", "kv_dtype=same", "head_dim=16", "block_size=4", "decode", "lse"):
        assert matrix[name]["truth"] == Cell(CellState.PASSED, {Status.PASSED: 2})
        assert matrix[name]["alone"] == Cell(CellState.NOT_RUN, {})
    for name in ("dtype=fp32", "window", "head_dim=32", "prefill", "shared_prefix"):
        assert matrix[name]["truth"] == Cell(CellState.NOT_RUN, {})


@pytest.mark.parametrize(
    ("statuses", "state"),
    [
        ([Status.PASSED], CellState.PASSED),
        ([Status.PASSED, Status.FAILED], CellState.FAILED),
        ([Status.CRASHED, Status.PASSED], CellState.FAILED),
        ([Status.EXPECTED, Status.PASSED], CellState.EXPECTED),
        ([Status.EXPECTED, Status.FAILED], CellState.FAILED),
        ([Status.NOT_RUN], CellState.NOT_RUN),
        ([Status.NOT_RUN, Status.PASSED], CellState.PASSED),
        # Refused for another reason than this feature: what is supported was not shown.
        ([Status.NOT_SUPPORTED], CellState.NOT_RUN),
    ],
)
def test_the_worst_verdict_decides_a_cell(statuses: list[Status], state: CellState) -> None:
    cell = cells(with_verdicts(*statuses))["dtype=bf16"]["truth"]
    assert cell.state is state
    assert cell.counts == Counter(statuses)


def test_what_is_not_declared_is_not_supported_and_never_not_run() -> None:
    matrix = cells(Coverage(), DECODER)
    for name in ("window", "prefill", "mixed", "chunked", "kv_dtype=e4m3"):
        assert {cell.state for cell in matrix[name].values()} == {CellState.NOT_SUPPORTED}
    for name in ("dtype=bf16", "shared_prefix", "heads=gqa"):
        states = {check: cell.state for check, cell in matrix[name].items()}
        prefill_laws = {check for check in states if check in {"last-row", "growth"}}
        for check, state in states.items():
            # Nothing that this kernel can be asked shows a law about prefill.
            wanted = CellState.NOT_SUPPORTED if check in prefill_laws else CellState.NOT_RUN
            assert state is wanted, (name, check)
    assert matrix["decode"]["growth"].state is CellState.SHOWN_BY_NONE


def test_a_feature_that_is_not_declared_stays_so_whatever_its_problems_showed() -> None:
    # Every problem with a query shows `lse`; a kernel that gives none is not asked for it.
    silent = Capabilities(variants=frozenset({"prefill"}))
    matrix = cells(with_verdicts(Status.PASSED), silent)
    assert matrix["lse"]["truth"].state is CellState.NOT_SUPPORTED
    assert matrix["decode"]["truth"].state is CellState.PASSED


def test_a_size_that_a_saved_problem_has_gets_a_row() -> None:
    coverage = Coverage()
    coverage.add(DECODE.replace(head_dim=40), Verdict("truth", Status.PASSED))
    assert cells(coverage)["head_dim=40"]["truth"].state is CellState.PASSED
    assert "head_dim=40" not in cells(Coverage())


@pytest.mark.parametrize(
    ("check", "capabilities", "features", "verdict"),
    [
        ("truth", EVERYTHING, (), True),
        ("growth", EVERYTHING, ("window", "chunked"), True),
        ("growth", EVERYTHING, ("decode",), False),
        ("growth", DECODER, (), False),
        ("shared-prefix", DECODER, ("padding", "waiting"), True),
        ("truth", EVERYTHING, ("window", "noncausal"), False),
        ("truth", EVERYTHING, ("head_dim=16", "head_dim=32"), False),
        ("truth", DECODER, ("window",), False),
        ("alone", EVERYTHING, ("kv_dtype=e5m2", "dtype=fp16", "block_size=256", "mixed"), True),
    ],
)
def test_whether_a_problem_can_show_a_check(
    check: str, capabilities: Capabilities, features: tuple[str, ...], verdict: object
) -> None:
    assert can_show(BY_NAME[check], capabilities, *map(feature, features)) is verdict
