"""Conversations with prefixes to share, fitted to the Mooncake conversation trace.

A conversation begins with a prompt of its own behind one block that all prompts share. After a
while it may go on: mostly with the whole last prompt and something added, sometimes with its
beginning and something else (an edited message, another document). The ids of the full blocks that
are kept stay, all others are new; answers are not told from other text.

Lengths, growth, pauses and the odds of another turn are those of the trace. Not reproduced: the
trace's clock, which ticks every 3 s, and any link between a turn's output and the next prompt.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.workloads.builtin import read_law
from bench.workloads.prefix import PrefixBlocks
from bench.workloads.source import check_draw
from bench.workloads.stream import CHUNK_REQUESTS, RequestStream

NAME: Final = "mooncake-fit"
DESCRIPTION: Final = "long conversations with shared prefixes: mean prompt 12,035, output 343"
PREFIX_TOKENS: Final = 512
"""Tokens of a prefix block, as in the trace."""

TRACE_REQUESTS: Final = 12_031
TRACE_RATE_PER_S: Final = 3.401

_LEVELS: Final = (
    *(0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *(0.95, 0.99, 0.999, 1),
)
# Quantiles at these levels, measured on the trace. A turn belongs to the last request with which it
# shares the most blocks, two or more; it extends it if that is all but the last, unfilled one.
# fmt: off
_FIRST_PROMPT: Final = (
    891, 894, 897, 905, 1092, 1756, 3914, 5264, 7417, 10775, 15871, 25561,
    38538, 89869, 121471, 126195)
_GROWTH: Final = (
    1, 1, 20, 63, 192, 313, 395, 471, 553, 684, 1291, 4605, 7390, 17031, 38862, 91918)
_BEHIND_KEPT: Final = (
    10, 316, 894, 1707, 4969, 7013, 8540, 9567, 10946, 13687, 15907, 19913,
    26597, 43120, 94968, 94968)
_KEPT_PERCENT: Final = (
    1, 3, 5, 7, 10, 13, 17, 21, 29, 40, 52, 83, 91, 96, 98, 99)
_OUTPUT: Final = (
    1, 3, 10, 24, 100, 213, 291, 350, 399, 447, 504, 597, 698, 1120, 2000, 2000)
_PAUSE_S: Final = (
    3, 12, 29, 42, 59, 75, 96, 123, 161, 222, 318, 482, 617, 1481, 2666, 3030)
# fmt: on
_LONGEST: Final = 126_195

# The odds below, and the stretch, are chosen for the sharing that comes of them. The trace's own
# odds are within 0.08, but a trace of an hour cuts off pauses and turns at its end.
_PAUSE_STRETCH: Final = 1.05
_BRANCHES: Final = 0.12
"""Share of the later turns that keep only the beginning."""
_SHORT: Final = 920
"""First prompts below, an eighth of them, are never followed up."""
_LONG: Final = 25_000
"""First prompts from here on, a tenth of them and half of the blocks, are followed up less."""
_LONG_GOES_ON: Final = 0.22
_FIRST_GOES_ON: Final = 0.38
_GOES_ON: Final = 0.545
"""Odds of another turn after a first one that is neither short nor long, and after a later one."""
_REQUESTS_PER_CONVERSATION: Final = 1.64


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationFit:
    """Requests with 512-token prefix blocks; a longer draw begins with the shorter one."""

    num_requests: int = TRACE_REQUESTS
    """Requests to draw."""
    seed: int = 0
    """Seed, 0 or more."""
    rate_per_s: float = TRACE_RATE_PER_S
    """Mean arrivals per second. Conversations begin more often or less; their pauses stay."""

    def __post_init__(self) -> None:
        check_draw(num_requests=self.num_requests, seed=self.seed, rate_per_s=self.rate_per_s)

    @property
    def name(self) -> str:
        """The fit's name."""
        return NAME

    @property
    def source(self) -> str:
        """What the conversations are fitted to."""
        return (
            f"drawn with seed {self.seed}, {self.rate_per_s:g} per s, from a law fitted to: "
            f"Mooncake, FAST'25 traces, conversation (Apache-2.0)"
        )

    @property
    def timed(self) -> bool:
        """True: what a prefix cache keeps depends on the pauses."""
        return True

    def chunks(self) -> Iterator[RequestStream]:
        """Draw the requests, `CHUNK_REQUESTS` at a time."""
        starts = np.random.SeedSequence([self.seed, zlib.crc32(NAME.encode())])
        generator = np.random.Generator(np.random.PCG64(starts))
        mean_gap_s = _REQUESTS_PER_CONVERSATION / self.rate_per_s
        next_id = 1
        begins_s = 0.0
        # When each conversation goes on, a number that settles ties, and the turn before.
        going_on: list[tuple[float, int, int, list[int]]] = []
        for start in range(0, self.num_requests, CHUNK_REQUESTS):
            # A row for each request, in whole blocks, whatever becomes of it: a longer draw begins
            # with the shorter one.
            draws = generator.random((8, CHUNK_REQUESTS))
            firsts, growths, behind, kept, outputs, pauses = (
                read_law(draws[column], _LEVELS, quantiles).tolist()
                for column, quantiles in (
                    (0, _FIRST_PROMPT),
                    (0, _GROWTH),
                    (0, _BEHIND_KEPT),
                    (1, _KEPT_PERCENT),
                    (2, _OUTPUT),
                    (3, _PAUSE_S),
                )
            )
            gaps_s = (-np.log1p(-draws[4]) * mean_gap_s).tolist()
            branches = (draws[5] < _BRANCHES).tolist()
            luck = draws[6].tolist()
            times: list[float] = []
            prompts: list[int] = []
            id_lists: list[list[int]] = []
            for row in range(min(CHUNK_REQUESTS, self.num_requests - start)):
                if going_on and going_on[0][0] <= begins_s:
                    now_s, _, before, ids = heapq.heappop(going_on)
                    full = before // PREFIX_TOKENS
                    if branches[row]:
                        full = max(1, int(full * kept[row] / 100))
                        prompt = full * PREFIX_TOKENS + round(behind[row])
                    else:
                        prompt = before + round(growths[row])
                    prompt = min(prompt, _LONGEST)
                    goes_on = luck[row] < _GOES_ON
                    ids = ids[:full]
                else:
                    now_s = begins_s
                    begins_s += gaps_s[row]
                    prompt = round(firsts[row])
                    odds = _FIRST_GOES_ON if prompt < _LONG else _LONG_GOES_ON
                    goes_on = prompt >= _SHORT and luck[row] < odds
                    ids = [0]
                end = next_id + -(-prompt // PREFIX_TOKENS) - len(ids)
                ids = ids + list(range(next_id, end))
                next_id = end
                if goes_on:
                    heapq.heappush(
                        going_on, (now_s + _PAUSE_STRETCH * pauses[row], start + row, prompt, ids)
                    )
                times.append(now_s)
                prompts.append(prompt)
                id_lists.append(ids)
            yield RequestStream(
                name=NAME,
                source=self.source,
                prompt_tokens=np.array(prompts),
                output_tokens=np.rint(outputs[: len(prompts)]).astype(np.int64),
                arrival_s=np.array(times),
                prefix=PrefixBlocks.of_lists(id_lists, PREFIX_TOKENS),
            )
