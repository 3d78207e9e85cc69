"""Logs of requests, a row or a JSON object each: of proxies, gateways and traces.

Columns are known by what others call them. Lengths may lie inside `usage`, as in answers of the
OpenAI API. Whatever names a tenant by a key is digested.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from bench.diagnose.observed import Observed
from bench.diagnose.requests import Row, observed
from bench.workloads.json_documents import Document, flat
from bench.workloads.trace_columns import ALIASES, moment_s, plain, unix_s
from bench.workloads.trace_lines import Line, cells_of, lines_of, shown

_ALIASES: Final = dict(ALIASES) | {
    "end": "end_time finished_at completed_at",
    "ttft": "ttft ttft_s time_to_first_token first_token_latency",
    "ttft_ms": "ttft_ms time_to_first_token_ms",
    "whole": "e2e e2e_s latency latency_s duration duration_s elapsed response_time total_time",
    "whole_ms": "e2e_ms latency_ms duration_ms elapsed_ms response_time_ms",
    "queue": "queue_s queue_time time_in_queue",
    "status": "status status_code http_status finish_reason",
    "tenant": "tenant tenant_id user user_id team organization customer",
    "key": "api_key key token session_id",
    "engine": "instance replica server pod backend upstream",
}
_ROLES: Final = {
    plain(alias): role for role, aliases in _ALIASES.items() for alias in aliases.split()
}
_NEEDED: Final = frozenset({"time"}), frozenset({"prompt", "output"})
"""A log has the first, and one of the second at least."""


def of(path: Path, documents: Iterator[Document]) -> Observed | None:
    """A log of JSON objects. None: the first document is no request."""
    return _gathered(
        path, ((document.line, each) for document in documents for each in flat(document.content))
    )


def read(path: Path) -> Observed | None:
    """A log of columns under a header. None: the header does not tell of requests."""
    with closing(lines_of(str(path))) as lines:
        header = next(lines, None)
        if header is None or header.separator not in header.text or header.text[0] in "{[#":
            return None
        names = cells_of(header)
        if not _is_request(dict.fromkeys(names)):
            return None
        return _gathered(path, ((line, _row_of(line, names)) for line in lines))


def _gathered(path: Path, requests: Iterator[tuple[Line, Mapping[str, Any]]]) -> Observed | None:
    rows: list[Row] = []
    for line, said in requests:
        if not rows and not _is_request(said):
            return None
        roles: dict[str, Any] = {}
        for name, value in said.items():
            if (role := _ROLES.get(plain(name))) is not None and value not in (None, ""):
                roles.setdefault(role, value)
        rows.append(_row(line, roles))
    return observed(path, "requests", rows) if rows else None


def _is_request(names: Mapping[str, Any]) -> bool:
    roles = {_ROLES.get(plain(name)) for name in names}
    return all(roles & needed for needed in _NEEDED)


def _row(line: Line, roles: Mapping[str, Any]) -> Row:
    def number(role: str, factor: float = 1.0) -> float:
        try:
            return float(roles[role]) * factor
        except (KeyError, TypeError, ValueError):
            return math.nan

    said = roles.get("time")
    moment = moment_s(said)
    if moment is None or not math.isfinite(moment):
        raise line.error(
            found=f"the time {shown(said)}", expected="a Unix time or an ISO 8601 date"
        )
    arrival_s = unix_s(moment)
    first_s, whole_s = number("ttft"), number("whole")
    first_s = number("ttft_ms", 0.001) if math.isnan(first_s) else first_s
    whole_s = number("whole_ms", 0.001) if math.isnan(whole_s) else whole_s
    ended = moment_s(roles.get("end"))
    tenant = str(roles.get("tenant", ""))
    if not tenant and "key" in roles:
        tenant = blake2b(str(roles["key"]).encode(), digest_size=4).hexdigest()
    return Row(
        arrival_s=arrival_s,
        prompt=number("prompt"),
        output=number("output"),
        first_token_s=arrival_s + first_s,
        end_s=arrival_s + whole_s if ended is None else unix_s(ended),
        queue_s=number("queue"),
        status=str(roles.get("status", "")),
        tenant=tenant,
        engine=str(roles.get("engine", "")),
    )


def _row_of(line: Line, names: list[str]) -> dict[str, str]:
    cells = cells_of(line)
    if len(cells) != len(names):
        raise line.error(
            found=f"{len(cells)} columns in {shown(line.text)}",
            expected=f"the header's {len(names)}",
        )
    return dict(zip(names, cells, strict=True))
