"""The paged server: its levels against its own tables, and against the server that only counts."""

from typing import Any

from hypothesis import example, given

from helpers.profiles import examples
from helpers.serving import AGREEMENT, OURS, TABLES, check_agreement, check_tables
from paged.arrivals import Request
from paged.policy import PagedPolicy


def stream(*lengths: tuple[int, int], **more: Any) -> dict[str, Any]:
    """A backlog, with the rest of what an example needs."""
    usual = {"forks": [(0, 0)], "warmup": 0, "clients": None, "stride": 7}
    return {"requests": [Request(*each) for each in lengths], **usual, **more}


# Whoever look-ahead reached had stopped at the budget, which a prompt of that step had used up.
BEHIND_THE_HEAD = stream(
    *((12, 15), (40, 1), (0, 1), (0, 4), (7, 3), *[(0, 1)] * 5),
    policy=PagedPolicy(block_size=1, look_ahead=1, token_budget=5),
    slots=61,
)
# What is first of a run that came back, once its older keys were found again, is not the oldest.
NOT_THE_OLDEST = stream(
    *((6, 1), (22, 19), (33, 18), (2, 1), (0, 11), (28, 1), (0, 1), (0, 1), (0, 9), *[(0, 1)] * 3),
    policy=PagedPolicy(
        block_size=2, look_ahead=1, max_running=4, prefix_caching=True, eviction="fifo"
    ),
    slots=90,
    forks=[(0, 3), (0, 0)],
)


@examples(60)
@given(**AGREEMENT)
@example(**BEHIND_THE_HEAD)
@example(**NOT_THE_OLDEST)
def test_counting_and_moving_blocks_agree_to_the_last_slot_step(**drawn: Any) -> None:
    check_agreement(OURS, **drawn)


@examples(60)
@given(**TABLES)
def test_what_is_counted_is_what_the_tables_hold(**drawn: Any) -> None:
    check_tables(OURS, **drawn)
