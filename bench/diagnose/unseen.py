"""What could not be seen in what was given, and what that does to the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from bench.diagnose.observed import Observed

if TYPE_CHECKING:
    from bench.diagnose.run import Examined
    from bench.diagnose.window import Window

SHORT_S: Final = 30.0
"""Length of a window up to which it is said that it is short."""

COARSE_S = 4.0
"""Time between scrapes from which a queue of seconds goes unseen."""


_SERIES: Final = {
    "requests that run": ("running",),
    "requests that wait": ("waiting",),
    "use of the cache": ("usage",),
    "preemptions": ("preemptions", "retracted_tokens"),
    "hits of the prefix cache": ("prefix_hits", "hit_rate"),
    "time to first token": ("ttft_s",),
    "time between tokens": ("itl_s",),
}
"""What each diagnosis looks at, and the series that any engine has for it."""


def missing(windows: Sequence[Window]) -> list[str]:
    """What no engine gave a series of. Empty, too, where none gave any."""
    lacking = [
        said
        for said, names in _SERIES.items()
        if not any(window.series(name) for window in windows for name in names)
    ]
    return lacking if len(lacking) < len(_SERIES) else []


def unseen(examined: Sequence[Examined], observed: Observed, *, told: bool) -> list[str]:
    """Say it in sentences, what matters most first."""
    said: list[str] = []
    if not told:
        said.append("a window: one scrape, or too few of them; record at least a minute")
    longest_s = max((each.window.seconds for each in examined), default=0.0)
    if told and 0 < longest_s < SHORT_S:
        said.append(f"what takes longer than the {longest_s:.0f} s in which it worked")
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
    held = any(each.window.series("usage") for each in examined)
    if told and held and not any("usage_at_idle" in each.stats for each in examined):
        said.append("a leak of blocks: no two scrapes on end met the server idle")
    if failed := len(observed.failed_s):
        said.append(f"what happened while {failed} scrape{'s' * (failed > 1)} had no answer")
    if lacking := missing([each.window for each in examined]):
        said.append(f"{', '.join(lacking)}: no such series was given")
    still = 0.0
    for window in [each.window for each in examined]:
        if window.series("e2e_s") or window.series("output_length"):
            gauges = [window.gauge(name) for name in ("running", "waiting")]
            still += sum(float(gauge[-1]) for gauge in gauges if gauge is not None)
    if still >= 5:
        said.append(f"{still:.0f} requests still run or wait, in no histogram of finished ones")
    said += observed.notes
    return said
