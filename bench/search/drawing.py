"""What the searches share that draw with Hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NoReturn, TypeVar
from unittest import SkipTest, mock

from hypothesis import HealthCheck, Phase, Verbosity, given, reject, seed, settings
from hypothesis.database import ExampleDatabase
from hypothesis.errors import Unsatisfiable
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

Example = TypeVar("Example")


class StillWrong(Exception):
    """Tells Hypothesis that an example fails."""


def still_wrong() -> NoReturn:
    """Raise StillWrong. In one place: Hypothesis tells failures apart by the line that raised."""
    raise StillWrong


def draw_each(
    strategy: SearchStrategy[Example],
    *,
    count: int,
    seed_of_draw: Hashable,
    example: Callable[[Example], None],
    seen: set[str] | None = None,
    phases: Sequence[Phase] = (Phase.generate, Phase.shrink),
    database: ExampleDatabase | None = None,
) -> None:
    """Call `example` with so many, always the same; shrink what it calls `still_wrong` on.

    Nothing in `seen`, in words, is drawn again; None: anything may be.

    Raises StillWrong: an example failed. Raises Flaky: it did, and not again.
    """

    @given(drawn=strategy)
    def every_example(drawn: Example) -> None:
        # Hypothesis repeats itself, about one time in seven. A problem counts once.
        if seen is not None:
            if str(drawn) in seen and not failing:
                reject()
            seen.add(str(drawn))
        try:
            example(drawn)
        except StillWrong:
            failing.append(str(drawn))
            raise

    failing: list[str] = []
    # A seed takes the database away: the settings come after it.
    test = settings(
        max_examples=count,
        deadline=None,
        database=database,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )(seed(seed_of_draw)(every_example))
    # Nothing is left that was not drawn before, or nothing was kept.
    with suppress(Unsatisfiable, SkipTest):
        test()


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
