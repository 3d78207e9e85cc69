from collections.abc import Iterator

import pytest

from bench.search.drawing import only_our_constants


@pytest.fixture(autouse=True)
def _the_same_draws_in_every_run() -> Iterator[None]:
    """Whatever modules other tests loaded, and in whatever order."""
    with only_our_constants():
        yield
