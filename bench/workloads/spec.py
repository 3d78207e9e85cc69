"""Sources by name, for a command line: `NAME[:key=value,...]`, several joined by `+` to a mix.

sharegpt-fit                                  20,000 requests, all at hand from the start
azure-fit:rate=8,max_len=2048                 faster than the data set, and nothing long
trace:conversations.jsonl.gz:head=5000        the beginning of a file
sharegpt-fit:system=512,prompts=8             behind one of eight system prompts
sharegpt-fit+azure-code-fit:share=0.2+:rate=4 two tenants; the last keys are for the mix
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from bench.workloads.arrivals import arriving
from bench.workloads.builtin import STREAM_LAWS, QuantileSource
from bench.workloads.conversations import (
    DESCRIPTION,
    NAME,
    TRACE_RATE_PER_S,
    TRACE_REQUESTS,
    ConversationFit,
)
from bench.workloads.fits import DEFAULT_REQUESTS, FITS, fitted
from bench.workloads.mix import mix
from bench.workloads.source import StreamSource, fitting, generating, head, repeat, saturated
from bench.workloads.system_prompt import with_system_prompt
from bench.workloads.traces import TraceSource

KEYS: Final = {
    "requests": "requests to draw, or rows of a file to read",
    "seed": "seed, 0 or more; the parts of a mix count theirs from 0 where none is given",
    "rate": "mean arrivals per second",
    "cv": "coefficient of variation of the gaps between arrivals; 1 is a Poisson process",
    "saturated": "no arrival times: the next request is always at hand",
    "system": "tokens of a system prompt before every prompt",
    "prompts": "how many system prompts there are",
    "max_len": "most tokens, prompt and output, of a request; longer ones are dropped",
    "head": "requests to keep, counted after max_len",
    "repeat": "rounds to read the source",
    "turns": "first: of a ShareGPT-lengths file, the first turn of each conversation",
    "share": "share of the requests in a mix, 0 to 1; parts without one divide the rest evenly",
}
"""The keys, and what each says."""

_TRACE: Final = "trace:"
_Value = TypeVar("_Value", int, float)


def source_names() -> dict[str, str]:
    """List the names that `parse_source` knows, each with a description of a line."""
    names = {name: fit.description for name, fit in FITS.items()}
    names[NAME] = DESCRIPTION
    for name, law in STREAM_LAWS.items():
        names[name] = f"quantiles of: {law.source}"
    return names


def parse_source(
    text: str,
    *,
    requests: int | None = None,
    seed: int = 0,
    columns: tuple[tuple[str, str], ...] = (),
) -> StreamSource:
    """Make the source that a text names; the module's text shows how.

    Where it does not say, each source has as many `requests` (None: its own number), and the parts
    of a mix count their seeds from `seed` on. `columns` map those of files (`TraceSource`).

    A name is one of `source_names`, or a file: `trace:PATH`, or any path that exists. Requests of a
    file that have no output are dropped. `KEYS` lists the keys; `saturated` needs no value.

    What applies in which order: `requests`, `turns`; `system`; `max_len`; `head`; `repeat`; then
    `rate` and `cv`, which replace the source's arrivals, so that they hold for what is left. In a
    mix where a part has a `share`, times are dropped, and the mix may be given a `rate`; without a
    share, parts that have times are merged by them, and parts that have none share evenly.

    Raises ValueError: naming the part at fault, and the remedy.
    """
    parts = _parts(text)
    if len(parts) == 1:
        if not parts[0].name:
            raise ValueError(f"{text!r} names no source; use one of {', '.join(source_names())}")
        if parts[0].share is not None:
            raise ValueError(f"share in {text!r}, which is no mix; join two sources by +")
        return _source(parts[0], seed=seed, requests=requests, columns=columns)
    whole = parts.pop() if not parts[-1].name else None
    if len(parts) < 2 or not all(part.name for part in parts):
        raise ValueError(f"{text!r}: a part without a name; only the last may be keys alone")
    shares = _shares(parts)
    sources = [
        _source(part, seed=seed + index, requests=requests, columns=columns)
        for index, part in enumerate(parts)
    ]
    if shares is None and not any(source.timed for source in sources):
        shares = [1 / len(parts)] * len(parts)
    names: list[str] = []
    for source in sources:
        taken = sum(name.partition("#")[0] == source.name for name in names)
        names.append(f"{source.name}#{taken + 1}" if taken else source.name)
    drawn_by = 0 if whole is None else whole.whole("seed", seed, at_least=0)
    mixed = mix(sources, shares=shares, seed=drawn_by, names=names)
    if whole is None:
        return mixed
    whole.refuse("requests", "turns", "share", why="the mix has no such key; give it to a part")
    return _applied(whole, mixed, seed=drawn_by)


@dataclass(frozen=True, slots=True)
class _Part:
    """A name and its keys, as they are written."""

    text: str
    name: str
    keys: dict[str, str]

    @property
    def share(self) -> str | None:
        return self.keys.get("share")

    def refuse(self, *keys: str, why: str) -> None:
        for key in keys:
            if key in self.keys:
                raise ValueError(f"{key}={self.keys[key]} in {self.text!r}: {why}")

    def whole(self, key: str, default: int, *, at_least: int = 1) -> int:
        value = self._number(key, int, "a whole number")
        if value is None:
            return default
        if value < at_least:
            raise ValueError(f"{key}={value} in {self.text!r}: use {at_least} or more")
        return value

    def number(self, key: str) -> float | None:
        return self._number(key, float, "a number")

    def _number(self, key: str, kind: Callable[[str], _Value], what: str) -> _Value | None:
        if key not in self.keys:
            return None
        try:
            return kind(self.keys[key])
        except ValueError:
            raise ValueError(
                f"{key}={self.keys[key]} in {self.text!r}: {key} is {what} ({KEYS[key]})"
            ) from None

    def saturated(self) -> bool:
        value = self.keys.get("saturated", "no")
        if value not in ("", "yes", "no"):
            raise ValueError(f"saturated={value} in {self.text!r}: use yes, no or no value")
        return value != "no"


def _parts(text: str) -> list[_Part]:
    if os.path.isfile(text.removeprefix(_TRACE)):  # a path may hold + and :
        return [_part(text)]
    return [_part(part) for part in text.split("+")]


def _part(text: str) -> _Part:
    bare = text.removeprefix(_TRACE)
    known = source_names()
    name, _, keys = bare.partition(":")
    if text.startswith(_TRACE) or (name and name not in known):
        name, keys = bare, ""
        if not os.path.isfile(bare):
            name, _, keys = (
                bare.rpartition(":") if "=" in bare.rpartition(":")[2] else (bare, "", "")
            )
        if os.path.exists(name) and not os.path.isfile(name):
            raise ValueError(f"{name!r} is a folder or a device; name a file, plain or gzip")
        if not os.path.isfile(name):
            raise ValueError(
                f"{name!r} is neither a file nor a source; use the path of a trace, or one of "
                f"{', '.join(known)}"
            )
        name = _TRACE + name
    pairs: dict[str, str] = {}
    for pair in keys.split(",") if keys else []:
        key, equals, value = pair.partition("=")
        if key not in KEYS:
            raise ValueError(f"key {key!r} in {text!r} is unknown; use one of {', '.join(KEYS)}")
        if key in pairs:
            raise ValueError(f"key {key!r} stands twice in {text!r}; give it once")
        if not (equals and value) and key != "saturated":
            raise ValueError(f"key {key!r} in {text!r} has no value; write {key}=VALUE")
        pairs[key] = value
    return _Part(text, name, pairs)


def _shares(parts: list[_Part]) -> list[float] | None:
    given = [part.number("share") for part in parts]
    stated = [share for share in given if share is not None]
    if not stated:
        return None
    for part in parts:
        part.refuse("rate", "cv", why="a mix by shares has one rate; write +:rate=... at its end")
    rest = 1 - sum(stated)
    others = len(parts) - len(stated)
    if not all(0 < share < 1 for share in stated) or (rest <= 0 if others else abs(rest) > 1e-9):
        raise ValueError(
            f"shares {', '.join(f'{share:g}' for share in stated)}: each lies between 0 and 1, and "
            f"all add up to 1; leave one out, and its part gets the rest"
        )
    return [rest / others if share is None else share for share in given]


def _source(
    part: _Part, *, seed: int, requests: int | None, columns: tuple[tuple[str, str], ...]
) -> StreamSource:
    """Make the source of a part; `seed` and `requests` hold where it does not say."""
    seed = part.whole("seed", seed, at_least=0)
    if part.name.startswith(_TRACE):
        limit = part.whole("requests", requests or 0) or None
        turns = part.keys.get("turns", "all")
        path = part.name.removeprefix(_TRACE)
        trace = TraceSource(path, limit=limit, turns=turns, columns=columns)
        return _applied(part, generating(trace), seed=seed)
    part.refuse("turns", why="only a file has turns")
    if part.name == NAME:
        part.refuse("cv", why="conversations have pauses of their own; give a rate alone")
        _check_saturated(part)
        rate_per_s = part.number("rate")
        source = ConversationFit(
            num_requests=part.whole("requests", requests or TRACE_REQUESTS),
            seed=seed,
            rate_per_s=TRACE_RATE_PER_S if rate_per_s is None else rate_per_s,
        )
        kept = {key: value for key, value in part.keys.items() if key != "rate"}
        return _applied(_Part(part.text, part.name, kept), source, seed=seed)
    count = part.whole("requests", requests or DEFAULT_REQUESTS)
    if (fit := FITS.get(part.name)) is not None:
        lengths = fitted(part.name, num_requests=count, seed=seed)
        return _applied(part, lengths, seed=seed, rate_per_s=fit.rate_per_s, cv=fit.cv)
    drawn = QuantileSource(name=part.name, num_requests=count, seed=seed)
    return _applied(part, drawn, seed=seed, rate_per_s=STREAM_LAWS[part.name].rate_per_s)


def _check_saturated(part: _Part) -> bool:
    if saturate := part.saturated():
        part.refuse("rate", "cv", why="a saturated source has no arrivals; leave one out")
    return saturate


def _applied(
    part: _Part,
    source: StreamSource,
    *,
    seed: int,
    rate_per_s: float | None = None,
    cv: float = 1.0,
) -> StreamSource:
    """Apply what the part's keys say; `rate_per_s` and `cv` stand in for one that is not given."""
    saturate = _check_saturated(part)
    if "system" in part.keys:
        source = with_system_prompt(
            source, part.whole("system", 0), prompts=part.whole("prompts", 1), seed=seed
        )
    else:
        part.refuse("prompts", why="prompts of what length? Give system=TOKENS as well")
    if "max_len" in part.keys:
        source = fitting(source, part.whole("max_len", 0))
    if "head" in part.keys:
        source = head(source, part.whole("head", 0))
    if "repeat" in part.keys:
        source = repeat(source, part.whole("repeat", 0))
    if "rate" in part.keys or "cv" in part.keys:
        stated_rate, stated_cv = part.number("rate"), part.number("cv")
        rate_per_s = rate_per_s if stated_rate is None else stated_rate
        if rate_per_s is None:
            raise ValueError(
                f"cv={stated_cv:g} in {part.text!r}: there is no rate to go with it; give rate=..."
            )
        cv = cv if stated_cv is None else stated_cv
        source = arriving(source, rate_per_s=rate_per_s, cv=cv, seed=seed)
    return saturated(source) if saturate else source
