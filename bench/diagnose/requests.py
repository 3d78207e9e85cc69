"""Requests as rows, whatever log they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bench.diagnose.observed import Observed, Requests, Source

_NAN: Final = math.nan


class Row(NamedTuple):
    """One request, with the fields of `Requests`."""

    arrival_s: float = _NAN
    prompt: float = _NAN
    output: float = _NAN
    first_token_s: float = _NAN
    end_s: float = _NAN
    queue_s: float = _NAN
    status: str = ""
    tenant: str = ""
    engine: str = ""


_KINDS: Final = dict.fromkeys(("status", "tenant", "engine"), np.str_)


def observed(path: Path, what: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> Observed:
    """What a log of requests shows."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(Row._fields)
    filled: dict[str, Any] = {
        name: np.array(column, dtype=_KINDS.get(name, np.float64))
        for name, column in zip(Row._fields, columns, strict=True)
    }
    requests = Requests(**filled)
    known = requests.arrival_s[np.isfinite(requests.arrival_s)]
    start, end = (float(known.min()), float(known.max())) if len(known) else (_NAN, _NAN)
    return Observed(
        requests=requests if rows else None,
        sources=(Source(str(path), what, start, end, len(rows)),),
        notes=tuple(notes),
    )
