"""The number of a bug is that of the first problem that fails."""

import os
import signal

from helpers.wrong_kernels import named
from reference.attention.contract import declares
from studies.planted_by_seeds import asked_of, first_shown, first_shown_apart, rows
from subjects.attention.resolve import resolve_kernel


def test_a_wrong_kernel_has_the_number_of_the_first_problem_that_fails() -> None:
    right = resolve_kernel(named("right"))
    third = asked_of(right.capabilities, 0, 4)[2][0]

    @declares(right.capabilities)
    def fails_on_the_third(batch) -> None:
        assert batch.max_seq_len != third.max_seq_len
        right.kernel(batch)

    @declares(right.capabilities)
    def ends_on_the_third(batch) -> None:
        if batch.max_seq_len == third.max_seq_len:
            os.kill(os.getpid(), signal.SIGKILL)
        right.kernel(batch)

    assert first_shown_apart(ends_on_the_third, 0, 4) == 3
    assert first_shown_apart(fails_on_the_third, 0, 4) == 3
    assert first_shown(right.kernel, 0, 4) is None
    assert first_shown(fails_on_the_third, 0, 4) == 3


def test_a_planted_bug_is_a_row() -> None:
    ((name, shown),) = rows(["last_token_lost"], 1, 10)
    assert name == "last_token_lost"
    assert shown[0] in range(1, 11)
