"""What a record keeps of long series."""

import numpy as np
import pytest

from bench.diagnose.drawn import kept


def test_a_short_series_is_kept_as_it_is() -> None:
    assert kept(np.zeros(600), 600).tolist() == list(range(600))


@pytest.mark.parametrize("most", [40, 600])
def test_a_long_series_keeps_its_peaks_and_no_more_points_than_are_asked_for(most: int) -> None:
    values = np.random.default_rng(0).random(100_000)
    values[77_777], values[33] = 9.0, -9.0
    values[50_000:60_000] = np.nan
    at = kept(values, most)
    assert len(at) <= most
    assert {33, 77_777} <= {*at.tolist()}
    assert (np.diff(at) > 0).all()
    assert np.isnan(values[at]).any(), "a hole is still one"
