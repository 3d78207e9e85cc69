"""The paged server: its levels against its own tables, and against the server that only counts."""

from typing import Any

from hypothesis import example, given

from helpers.profiles import examples
from helpers.serving import (
    AGREEMENT,
    BEHIND_THE_HEAD,
    NOT_THE_OLDEST,
    OURS,
    TABLES,
    check_agreement,
    check_tables,
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
