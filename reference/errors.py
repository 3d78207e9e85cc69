"""The one kind of error that a user can mend. The standard library only."""

from __future__ import annotations


class BadInput(ValueError):
    """What was asked for cannot be had; the message has the value and the remedy.

    Every command ends with exit code 2 and this message, without a traceback.
    """
