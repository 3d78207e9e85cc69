"""What a check says: a status, and findings that a person can act on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """Outcome of one check on one problem."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_SUPPORTED = "not supported"
    CRASHED = "crashed"
    NOT_RUN = "not run"
    EXPECTED = "failed as expected"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of one named check."""

    check: str
    """Name of the check, as in `reference.attention.checks`."""
    status: Status
    """Passed, failed, not supported by the kernel, crashed, not run (the check can see nothing of
    this kernel here), or failed as somebody said it would, with a reason."""
    findings: tuple[str, ...] = ()
    """What was seen, or why nothing could be, one sentence each; empty if passed."""

    @property
    def wrong(self) -> bool:
        """Whether the kernel is to blame."""
        return self.status in (Status.FAILED, Status.CRASHED)


_SAYS_MORE: Final = ("it ", "the ")


def parts_of(findings: Iterable[str]) -> list[tuple[str, ...]]:
    """Findings that are about one thing each: one that begins with `it` or `the` says more of the
    one before.
    """
    parts: list[tuple[str, ...]] = []
    for finding in findings:
        if parts and finding.startswith(_SAYS_MORE):
            parts[-1] += (finding,)
        else:
            parts.append((finding,))
    return parts
