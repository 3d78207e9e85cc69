"""Results of the engines' own load generators, `vllm bench serve` and SGLang's `bench_serving`.

Requests are in them only where the details were saved: --save-detailed, or --output-details.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.diagnose.observed import Observed
from bench.diagnose.requests import Row, observed
from bench.workloads.json_documents import Document
from reference.errors import BadInput

_SAID: Final = "median_ttft_ms"
"""What every result has."""


def of(path: Path, documents: Iterator[Document]) -> Observed | None:
    """The requests of a result. None: the first document is none.

    Raises BadInput: the details were not saved.
    """
    rows: list[Row] = []
    untimed = False
    for number, document in enumerate(documents):
        result = document.content
        if not isinstance(result, Mapping) or _SAID not in result:
            if number == 0:
                return None
            raise document.line.error(found="another document", expected="a result of a benchmark")
        if not isinstance(result.get("input_lens"), list):
            raise BadInput(
                f"{path}: only the means of a benchmark; run it with --save-detailed (vLLM) or "
                f"--output-details (SGLang)"
            )
        untimed |= not result.get("start_times")
        rows += _rows(result)
    note = f"{path}: the benchmark's release saves no arrivals; only lengths and latencies are used"
    return observed(path, "benchmark", rows, [note] if untimed else [])


def _rows(result: Mapping[str, Any]) -> Iterator[Row]:
    prompts = result["input_lens"]

    def column(name: str) -> list[Any]:
        values = result.get(name)
        if isinstance(values, list) and len(values) == len(prompts):
            return values
        return [None] * len(prompts)

    starts = [_number(each) for each in column("start_times")]
    first = min((each for each in starts if not math.isnan(each)), default=math.nan)
    begun_s = _ended_s(result.get("date")) - _number(result.get("duration"))
    # Starts are of a clock that begins anywhere. Without a date they count from the first one.
    begun_s = 0.0 if math.isnan(begun_s) else begun_s
    columns = (column(name) for name in ("output_lens", "ttfts", "itls", "errors"))
    for prompt, start, output, ttft, gaps, error in zip(prompts, starts, *columns, strict=True):
        arrival_s = begun_s + start - first
        until_first_s = _number(ttft)
        inner = [_number(gap) for gap in gaps] if isinstance(gaps, list) else [math.nan]
        yield Row(
            arrival_s=arrival_s,
            prompt=_number(prompt),
            output=_number(output),
            first_token_s=arrival_s + until_first_s,
            end_s=arrival_s + until_first_s + sum(inner),
            status="error" if error else "",
        )


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) else math.nan


def _ended_s(date: Any) -> float:
    try:
        return datetime.strptime(str(date), "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return math.nan
