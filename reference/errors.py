"""The one kind of error that a user can mend, and how those of subjects are said.

The standard library only.
"""

from __future__ import annotations


class BadInput(ValueError):
    """What was asked for cannot be had; the message has the value and the remedy.

    Every command ends with exit code 2 and this message, without a traceback.
    """


def described(error: BaseException) -> str:
    """Type and text of what a subject raised. The text is the subject's code: it may raise, too."""
    try:
        text = str(error)
    except BaseException as second:
        text = f"(no text: its __str__ raised {type(second).__name__})"
    return f"{type(error).__name__}: {text}"
