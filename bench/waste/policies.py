"""Policies as they are typed: `oracle/buddy`, `paged:block=32,prefix=lru`.

    RESERVATION/ARENA[:look-ahead=8,max-running=64,max-model-len=4096]
    paged[:block=32,watermark=0.01,prefix=lru|lfu|fifo,preempt=recompute|swap,budget=8192,
           window=4096,samples=4,beam-keep=0.5,look-ahead=8,max-running=256,
           quota=0:256+1:256,seed=0]

`format_policy` writes what `parse_policy` reads, the options that have their defaults left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import product
from typing import Any, Final, NamedTuple, get_args

from bench.waste.contiguous import ContiguousPolicy
from paged.policy import Eviction, PagedPolicy, Preemption
from reference.allocator.arenas import ArenaName, ReservationName
from reference.errors import BadInput

DEFAULT_POLICIES: Final = ("max/buddy", "pow2/buddy", "oracle/buddy", "oracle/first-fit", "paged")
"""What is compared where nothing else is asked for."""

DEFAULT_BLOCK_SIZE: Final = 16
"""Tokens per block where nothing else is asked for."""

DEFAULT_MAX_MODEL_LEN: Final = 2048
"""Longest request of a reservation where nothing else is asked for, tokens."""

Policy = ContiguousPolicy | PagedPolicy


def parse_policy(
    text: str, *, block_size: int = DEFAULT_BLOCK_SIZE, max_model_len: int = DEFAULT_MAX_MODEL_LEN
) -> Policy:
    """Read a policy; where it does not say, blocks and reservations are as long as the options."""
    head, colon, tail = text.strip().partition(":")
    given = dict(_options(text, tail)) if colon else {}
    try:
        if head == "paged":
            options = {"block_size": block_size} | _read(text, given, _PAGED_OPTIONS)
            return PagedPolicy(prefix_caching="eviction" in options, **options)
        reservation, slash, arena = head.partition("/")
        if not slash:
            raise BadInput(
                f"policy {text!r}: {_unknown(head, [*_RESERVATIONS, 'paged'])}; write paged or "
                f"RESERVATION/ARENA, with {_either(_RESERVATIONS)} and {_either(_ARENAS)}"
            )
        for word, known in ((reservation, _RESERVATIONS), (arena, _ARENAS)):
            if word not in known:
                raise BadInput(f"policy {text!r}: {_unknown(word, known)}")
        options = {"max_model_len": max_model_len} | _read(text, given, _CONTIGUOUS_OPTIONS)
        # Strings that were found among the literals above; the policy checks its own options.
        return ContiguousPolicy(reservation=reservation, arena=arena, **options)  # type: ignore[arg-type]
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"policy {text!r}: {error}") from None


def expand_policies(
    texts: Iterable[str], *, block_sizes: Iterable[int], max_model_len: int
) -> tuple[Policy, ...]:
    """Read several policies, paged ones once for each block size that they leave open."""
    policies = (
        parse_policy(text, block_size=size, max_model_len=max_model_len)
        for text, size in product(texts, block_sizes)
    )
    return tuple(dict.fromkeys(policies))


def format_policy(policy: Policy) -> str:
    """Write a policy as it is typed; `block` and `max-model-len` are always said."""
    return _typed(policy, leave_out=())


def policy_name(policy: Policy) -> str:
    """A policy as it is typed, less what the stream says."""
    return _typed(policy, leave_out=("max-model-len",))


def policy_words(policy: Policy) -> str:
    """A policy in words."""
    if isinstance(policy, ContiguousPolicy):
        words = f"{policy.reservation} reservation, {policy.arena}"
    else:
        words = f"paged, block {policy.block_size}"
    return ", ".join([words, *_written(policy, leave_out=("block", "max-model-len"))])


def _typed(policy: Policy, *, leave_out: tuple[str, ...]) -> str:
    head = "paged"
    if isinstance(policy, ContiguousPolicy):
        head = f"{policy.reservation}/{policy.arena}"
    written = ",".join(_written(policy, leave_out=leave_out))
    return f"{head}:{written}" if written else head


def _written(policy: Policy, *, leave_out: tuple[str, ...]) -> Iterator[str]:
    """Write the options that have not their defaults, and the two that always are written."""
    table = _CONTIGUOUS_OPTIONS if isinstance(policy, ContiguousPolicy) else _PAGED_OPTIONS
    for name, option in table.items():
        value = option.of(policy)
        always = name in ("block", "max-model-len")
        if name not in leave_out and (always or value != option.default):
            yield f"{name}={option.write(value)}"


class _Option(NamedTuple):
    """An option: the field it sets, its default, and how it is read and written."""

    field: str
    default: object
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str

    def of(self, policy: Policy) -> object:
        if self.field == "eviction":
            assert isinstance(policy, PagedPolicy)
            return policy.eviction if policy.prefix_caching else None
        return getattr(policy, self.field)


def _number(kind: Callable[[str], Any], what: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is no {what}") from None

    return read


_whole = _number(int, "whole number")
_share = _number(float, "number; give a share from 0 to 1")


def _one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise ValueError(_unknown(text, known))
        return text

    return read


def _quotas(text: str) -> tuple[tuple[int, int], ...]:
    pairs = []
    for pair in text.split("+"):
        tenant, colon, blocks = pair.partition(":")
        if not colon:
            raise ValueError(f"{pair!r} is no quota; write TENANT:BLOCKS, several joined with +")
        pairs.append((_whole(tenant), _whole(blocks)))
    return tuple(pairs)


_RESERVATIONS: Final = get_args(ReservationName)
_ARENAS: Final = get_args(ArenaName)

_CONTIGUOUS_OPTIONS: Final = {
    "max-model-len": _Option("max_model_len", None, _whole),
    "look-ahead": _Option("look_ahead", 0, _whole),
    "max-running": _Option("max_running", None, _whole),
}

_PAGED_OPTIONS: Final = {
    "block": _Option("block_size", DEFAULT_BLOCK_SIZE, _whole),
    "watermark": _Option("watermark", 0.0, _share, repr),
    "prefix": _Option("eviction", None, _one_of(get_args(Eviction))),
    "preempt": _Option("preemption", "recompute", _one_of(get_args(Preemption))),
    "budget": _Option("token_budget", None, _whole),
    "window": _Option("sliding_window", None, _whole),
    "samples": _Option("samples", 1, _whole),
    "beam-keep": _Option("beam_keep", None, _share, repr),
    "look-ahead": _Option("look_ahead", 0, _whole),
    "max-running": _Option("max_running", None, _whole),
    "quota": _Option(
        "tenant_quotas", (), _quotas, lambda pairs: "+".join(f"{t}:{b}" for t, b in pairs)
    ),
    "seed": _Option("seed", 0, _whole),
}


def _options(text: str, tail: str) -> Iterator[tuple[str, str]]:
    seen = set()
    for part in tail.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value):
            raise BadInput(f"policy {text!r}: {part!r} is no option; write name=value")
        if name in seen:
            raise BadInput(f"policy {text!r}: {name} is given twice; keep one of them")
        seen.add(name)
        yield name, value


def _read(text: str, given: dict[str, str], table: dict[str, _Option]) -> dict[str, Any]:
    options = {}
    for name, value in given.items():
        if name not in table:
            raise BadInput(f"policy {text!r}: option {_unknown(name, table)}")
        try:
            options[table[name].field] = table[name].read(value)
        except ValueError as error:
            raise BadInput(f"policy {text!r}: {name}: {error}") from None
    return options


def _unknown(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(word, names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{word!r} is unknown; {meant}choose one of {', '.join(names)}"


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"
