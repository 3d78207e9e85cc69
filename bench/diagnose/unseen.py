"""What could not be seen in what was given, and what that does to the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.diagnose.observed import Observed

if TYPE_CHECKING:
    from bench.diagnose.run import Examined

COARSE_S = 4.0
"""Time between scrapes from which a queue of seconds goes unseen."""


def unseen(examined: Sequence[Examined], observed: Observed, *, told: bool) -> list[str]:
    """Say it in sentences, what matters most first."""
    said: list[str] = []
    if not told:
        said.append("a window: one scrape, or too few of them; record at least a minute")
    if observed.events is None:
        said.append(
            "block events: why a hit rate is low (salts, varying prefixes, eviction, nothing "
            "shared) is not in the metrics"
        )
    if observed.requests is None:
        said.append("tenants: no metric has a label for them, it takes a request log")
    gaps = [s.interval_s for s in observed.sources if s.format != "events" and s.interval_s]
    if gaps and max(gaps) > COARSE_S:
        said.append(f"what lasts less than the {max(gaps):g} s between scrapes, such as a burst")
    if "max_num_seqs" not in observed.config:
        said.append("max_num_seqs and the token budget: they are in the start line of the log only")
    for window in [each.window for each in examined]:
        gauges = [window.gauge(name) for name in ("running", "waiting")]
        still = sum(float(gauge[-1]) for gauge in gauges if gauge is not None)
        if still >= 5 and (window.series("e2e_s") or window.series("output_length")):
            said.append(f"{still:.0f} requests that still run or wait are in no histogram")
            break
    said += observed.notes
    return said
