"""Named checks that any attention kernel can be run through."""

from reference.conformance.attention import (
    CHECKS,
    LAWS,
    TRUTH,
    Check,
    applicable,
    judge,
    run_check,
)

__all__ = ["CHECKS", "LAWS", "TRUTH", "Check", "applicable", "judge", "run_check"]
