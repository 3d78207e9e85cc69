"""What a side's tree has to have for a benchmark, and what its subjects may decline."""

from __future__ import annotations

import importlib


class Missing(Exception):
    """The tree does not have what a benchmark needs; the message is its name."""


class Declined(Exception):
    """A subject declares that it cannot do what it is to be measured on; the message says what."""


def check_need(need: str) -> None:
    """Look for `module:name`.

    Raises Missing: the tree does not have it.
    """
    module_name, _, name = need.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Of the need itself, or of a package that it lies in; anything else is a broken tree.
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise Missing(need) from None
        raise
    if name and not hasattr(module, name):
        raise Missing(need)
