"""The one kind of error that a user can mend, and how those of subjects are said.

The standard library only.
"""

from __future__ import annotations

from typing import Final


class BadInput(ValueError):
    """What was asked for cannot be had; the message has the value and the remedy.

    Every command ends with exit code 2 and this message, without a traceback.
    """


MOST_TEXT: Final = 2000
"""Characters of what a subject raised that are said."""


def described(error: BaseException) -> str:
    """Type and text of what a subject raised. The text is the subject's code: it may raise, too."""
    try:
        text = str(error)
    except BaseException as second:
        text = f"(no text: its __str__ raised {type(second).__name__})"
    if len(text) > MOST_TEXT:
        text = f"{text[:MOST_TEXT]} ... ({len(text):,} characters)"
    return f"{type(error).__name__}: {text}"
