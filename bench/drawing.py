"""What the searches share that draw with Hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from hypothesis.internal.conjecture import providers


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
