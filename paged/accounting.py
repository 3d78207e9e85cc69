"""Where every slot of the pool went, in integers.

A pool of `slots` slots that is watched for `steps` steps is `slots * steps` slot-steps, and each of
them is in exactly one class:

    token + reserve + internal + roundup + free_frag + free_short + free_idle + cached_idle
        = slots * steps

* `token`: holds the key and value of a token that a running sequence reads. A slot that several
  sequences share counts once; `logical_token` counts it once for each of them.
* `reserve`: empty, and its request will fill it later.
* `internal`: empty, asked for, and its request will never fill it. Of a block handed out on demand,
  the part behind the last token.
* `roundup`: empty, and beyond what was asked for: an arena that hands out only certain sizes.
* `free_frag`: free while the next request waits for memory and would fit, were the free slots in
  one piece.
* `free_short`: free while the next request waits for memory and does not fit: too few free slots,
  or too few beyond the watermark.
* `free_idle`: free while nobody waits for memory.
* `cached_idle`: no running sequence reads it; its content is kept for requests with that prefix.

The first three are those of PagedAttention (Kwon et al., SOSP 2023, section 3.1). Its "external
fragmentation & others" is `roundup + free_frag + free_short + free_idle`. `cached_idle` is neither
waste nor use: it is given up as soon as somebody needs the room.

A step is one pass of an engine: each running sequence gets a token. What counts is the state at its
end. A paged server writes a token's key and value with the step after the one that generated it, so
a request with a prompt of `i` tokens is seen with `i` first and `i + o - 1` last; a reservation
counts it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from paged.latency import Service

SLOT_CLASSES: Final = (
    "token",
    "reserve",
    "internal",
    "roundup",
    "free_frag",
    "free_short",
    "free_idle",
    "cached_idle",
)
"""The classes of the identity, in the order in which they are printed."""


class IdentityBroken(ArithmeticError):
    """Slot-steps are missing, or are counted twice. Always a bug of whoever counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What happened from the first step on, or between two moments. All integers, none negative."""

    slots: int
    """Slots of the pool."""
    steps: int = 0
    """Steps that were watched."""
    token: int = 0
    reserve: int = 0
    internal: int = 0
    roundup: int = 0
    free_frag: int = 0
    free_short: int = 0
    free_idle: int = 0
    cached_idle: int = 0
    """Slot-steps, as the module's text defines them."""
    logical_token: int = 0
    """Token-steps, a shared slot counted once for each sequence that reads it."""
    running: int = 0
    """Sequence-steps: sequences that hold memory, summed over the steps. The samples of one request
    are sequences of their own."""
    running_requests: int = 0
    """Request-steps of the requests that hold memory."""
    queued: int = 0
    """Request-steps: requests that have arrived and hold none."""
    waiting_short: int = 0
    waiting_watermark: int = 0
    waiting_frag: int = 0
    """Steps at whose end the next request waits because too few slots are free; because admitting
    it would leave fewer free than the watermark; because no hole is large enough."""
    waiting_limit: int = 0
    waiting_budget: int = 0
    """Steps at whose end it waits although there is memory: as many requests run as may; the tokens
    that a step may compute are spent."""
    arrived: int = 0
    admitted: int = 0
    completed: int = 0
    """Requests. One that was preempted and comes back is admitted once."""
    refused: int = 0
    """Requests that can never fit, turned away."""
    preemptions: int = 0
    """Times that a running request lost its memory."""
    swapped_out: int = 0
    swapped_in: int = 0
    """Blocks copied to the host, and back."""
    copies: int = 0
    """Blocks copied because a sequence wrote into one that it shared (copy-on-write)."""
    prompt_tokens: int = 0
    """Prompt tokens of the requests that were admitted."""
    computed_tokens: int = 0
    """Tokens whose keys and values were computed, prompt and output, those computed again included.
    """
    recomputed_tokens: int = 0
    """Those among them that had been computed before their request was preempted."""
    generated_tokens: int = 0
    """Output tokens, those of each sample counted."""
    queried_tokens: int = 0
    hit_tokens: int = 0
    """Prompt tokens looked up in the prefix cache, and found there."""
    evictions: int = 0
    """Cached blocks whose content was given up."""
    ghost_hits: int = 0
    """Blocks that were looked up in vain and had been evicted shortly before, within as many
    evictions as the pool has blocks: the sign of a cache that is too small."""
    loaded_tokens: int = 0
    stored_tokens: int = 0
    """Prompt tokens that were copied from a tier behind the pool (`paged.tiers`), and to one."""
    tier_ns: int = 0
    """Nanoseconds by which such copies made the steps longer."""
    time_ns: int = 0
    """Nanoseconds by the server's clock (`paged.clock`), idle ones included. 0 in records that are
    older than the clock."""

    def __post_init__(self) -> None:
        """Raises IdentityBroken: the classes do not add up, or a figure is negative."""
        if min(_all(self)) < 0:
            negative = [field.name for field in fields(self) if getattr(self, field.name) < 0]
            raise IdentityBroken(f"negative: {', '.join(negative)} in {self!r}")
        counted = sum(_classes(self))
        if counted != self.slot_steps:
            raise IdentityBroken(
                f"{counted} slot-steps are in a class, {self.slots} slots * {self.steps} steps are "
                f"{self.slot_steps}: {self!r}"
            )

    @property
    def slot_steps(self) -> int:
        """All slot-steps: the sum of the classes."""
        return self.slots * self.steps

    @property
    def allocated(self) -> int:
        """Slot-steps that a running sequence holds, used or not."""
        return self.token + self.reserve + self.internal + self.roundup

    @property
    def external(self) -> int:
        """What the PagedAttention paper calls "external fragmentation & others", in slot-steps."""
        return self.roundup + self.free_frag + self.free_short + self.free_idle

    @property
    def waste(self) -> int:
        """Slot-steps that hold nothing while somebody holds them or waits for them."""
        return self.slot_steps - self.token - self.cached_idle - self.free_idle

    def share(self, slot_steps: int) -> float:
        """Return `slot_steps` as a share of all slot-steps, 0 to 1; 0 where there are none."""
        return slot_steps / self.slot_steps if self.steps else 0.0

    @property
    def waste_fraction(self) -> float:
        """Share of all slot-steps that is `waste`, 0 to 1."""
        return self.share(self.waste)

    @property
    def token_fraction(self) -> float:
        """Share of all slot-steps that holds a token in use, 0 to 1."""
        return self.share(self.token)

    @property
    def internal_fraction(self) -> float:
        """Share of the allocated slot-steps that is `internal`, 0 to 1."""
        return self.internal / self.allocated if self.allocated else 0.0

    @property
    def mean_batch(self) -> float:
        """Requests that run at once, averaged over the steps."""
        return self.running_requests / self.steps if self.steps else 0.0

    @property
    def sharing(self) -> float:
        """Logical tokens for each physical one, 1 or more; 1 where there are none."""
        return self.logical_token / self.token if self.token else 1.0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens looked up in the prefix cache that was there, 0 to 1."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0

    def __sub__(self, earlier: Counters) -> Counters:
        """What happened after `earlier`, a moment of the same run; raises IdentityBroken if it is
        later.
        """
        if self.slots != earlier.slots:
            raise ValueError(
                f"pools of {self.slots} and {earlier.slots} slots: subtract moments of one run"
            )
        return Counters(
            slots=self.slots,
            **{name: getattr(self, name) - getattr(earlier, name) for name in _CUMULATIVE},
        )


_all: Final = attrgetter(*(field.name for field in fields(Counters)))
_classes: Final = attrgetter(*SLOT_CLASSES)
_CUMULATIVE: Final = tuple(field.name for field in fields(Counters) if field.name != "slots")


MAX_SERIES: Final = 1024
"""Most moments that a `Series` keeps."""


class _Moment(Protocol):
    @property
    def steps(self) -> int: ...


MomentT = TypeVar("MomentT", bound=_Moment)


class Series(Generic[MomentT]):
    """Moments of a run, counters from the first step on, evenly spaced however long it becomes.

    `Counters` are cumulative, so leaving out every other moment loses resolution and nothing else:
    what happened between the two that stay is their difference. So the series keeps at most
    `MAX_SERIES` moments, and doubles its stride when they are reached.
    """

    __slots__ = ("_stride", "due", "moments")

    def __init__(self) -> None:
        self.moments: list[MomentT] = []
        self._stride = 1
        self.due = 1
        """The step from which on the next moment is to be added."""

    def add(self, moment: MomentT) -> None:
        """Add a moment; the next one is due a stride later."""
        self.moments.append(moment)
        if len(self.moments) > MAX_SERIES:
            # The later one of each pair: the last moment stays.
            self.moments = self.moments[1::2] if len(self.moments) % 2 == 0 else self.moments[::2]
            self._stride *= 2
        self.due = moment.steps + self._stride


@dataclass(frozen=True, slots=True, kw_only=True)
class TierUse:
    """What a tier behind the pool did in a run (`paged.tiers`)."""

    name: str
    loaded_tokens: int
    stored_tokens: int
    """Tokens copied from it, and to it, those of swapped requests included."""
    load_ns: int
    store_ns: int
    """How long that takes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupUse:
    """What the blocks of a group of layers were used for (`paged.layout`), in byte-steps."""

    blocks: int
    """Block-steps."""
    token: int
    """Bytes of the tokens that attention still looks at, or of states."""
    behind: int
    """Of tokens behind the window: in blocks kept for others, or of the step that wrote them."""
    internal: int
    """Empty behind the last token."""
    padding: int
    """What the group's layers leave empty of a full block."""

    def __post_init__(self) -> None:
        """Raises IdentityBroken: a figure is negative."""
        if min(self.token, self.behind, self.internal, self.padding) < 0:
            raise IdentityBroken(f"negative: {self!r}")

    @property
    def allocated(self) -> int:
        """All of it."""
        return self.token + self.behind + self.internal + self.padding

    def __sub__(self, earlier: GroupUse) -> GroupUse:
        """What happened after an earlier moment of the same run."""
        names = (field.name for field in fields(self))
        return GroupUse(**{name: getattr(self, name) - getattr(earlier, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What became of a stream of requests in a pool."""

    total: Counters
    """From the first step to the last."""
    loaded: Counters
    """The part to judge by: from the end of the step that completed the warm-up's last request to
    the end of the step that admitted the stream's last one. In a stream without arrival times
    somebody waits throughout. No steps, if the warm-up lasted longer than that."""
    series: tuple[Counters, ...]
    """Moments from the end of the first step on, evenly spaced, at most `MAX_SERIES`."""
    peak_running: int
    """Most sequences that ran at once."""
    peak_requests: int
    """Most requests that ran at once."""
    peak_allocated: int
    """Most slots that were allocated at once, used or not."""
    service: Service | None = None
    """What it was like for those who waited, over the whole run; None where nobody looked."""
    tiers: tuple[TierUse, ...] = ()
    """What each tier behind the pool did, over the whole run."""
    groups: tuple[GroupUse, ...] = ()
    """What each group of layers took, in the part to judge by, or in all where there is none. A
    slot is a byte then. None: all layers have the same blocks."""

    @classmethod
    def of(
        cls,
        total: Counters,
        series: Sequence[Counters],
        *,
        warm: Counters | None,
        done: Counters | None,
        service: Service | None = None,
        tiers: tuple[TierUse, ...] = (),
        uses: Sequence[Sequence[GroupUse]] = ((), (), ()),
        **peaks: int,
    ) -> Serving:
        """Put together what a simulator has counted; `loaded` is between the moments `warm` and
        `done`. `uses` are of the whole, and up to these two.
        """
        groups, before, after = uses
        if warm is None or done is None or done.steps <= warm.steps:
            loaded = Counters(slots=total.slots)
        else:
            loaded = done - warm
            groups = [late - early for late, early in zip(after, before, strict=True)]
        return cls(
            total=total,
            loaded=loaded,
            series=tuple(series),
            service=service,
            tiers=tiers,
            groups=tuple(groups),
            **peaks,
        )
