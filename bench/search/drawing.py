"""What the searches share that draw with Hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn
from unittest import mock

from hypothesis import HealthCheck, Phase, Verbosity, given, reject, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

from reference.attention.problem import AttentionProblem


class StillWrong(Exception):
    """Tells Hypothesis that an example fails."""


def still_wrong() -> NoReturn:
    """Raise StillWrong. In one place: Hypothesis tells failures apart by the line that raised."""
    raise StillWrong


def draw_each(
    strategy: SearchStrategy[AttentionProblem],
    *,
    count: int,
    seed_of_draw: int,
    seen: set[str],
    example: Callable[[AttentionProblem], None],
) -> None:
    """Call `example` with so many problems, always the same; shrink what it calls `still_wrong` on.

    Parameters
    ----------
    strategy
        Draws the problems.
    count
        How many at most.
    seed_of_draw
        The same one draws the same problems.
    seen
        Specs that are not to be drawn again; those that are drawn are added.
    example
        Returns, or calls `still_wrong`.

    Raises StillWrong: after shrinking, if an example failed. Raises Flaky if an example failed and
    the same one did not fail again.
    """

    @seed(seed_of_draw)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @given(problem=strategy)
    def every_problem(problem: AttentionProblem) -> None:
        # Hypothesis repeats itself, about one time in seven. A problem counts once.
        spec = str(problem)
        if spec in seen and not failing:
            reject()
        seen.add(spec)
        try:
            example(problem)
        except StillWrong:
            failing.append(spec)
            raise

    failing: list[str] = []
    try:
        every_problem()
    except Unsatisfiable:
        return  # nothing left that was not drawn before


@contextmanager
def only_our_constants() -> Iterator[None]:
    """Keep Hypothesis from drawing numbers that it finds in the sources of loaded modules.

    Otherwise the same seed draws other examples after an edit, or where the project is installed
    in another way; and a folder for those numbers appears wherever the command is typed.
    """
    lookup, remembered = "_get_local_constants", "CONSTANTS_CACHE"
    with ExitStack() as patches:
        # A release of Hypothesis may do this elsewhere, or not at all.
        if hasattr(providers, lookup):
            none = type(providers.GLOBAL_CONSTANTS)()
            patches.enter_context(mock.patch.object(providers, lookup, return_value=none))
            if hasattr(providers, remembered):
                # What was drawn from before, in this process, is not to be remembered either.
                empty = type(getattr(providers, remembered))(1024)
                patches.enter_context(mock.patch.object(providers, remembered, empty))
        yield
