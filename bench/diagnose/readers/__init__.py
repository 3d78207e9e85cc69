"""One file a format: `read(path)` gives what the file shows, None where it is not of the format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Final

from bench.diagnose.observed import Observed, merge
from bench.diagnose.single_scrapes import gathered
from bench.workloads.trace_formats import MAX_SECONDS
from bench.workloads.trace_lines import lines_of
from reference.errors import BadInput

FORMATS: Final = ("events", "json_files", "stamped", "scrapes", "request_logs", "logs")
"""Modules of this package, in the order in which a file is offered to them."""

_PASSED_OVER: Final = frozenset({".md", ".png", ".svg", ".py"})

Reader = Callable[[Path], Observed | None]


def readers() -> list[Reader]:
    """Every reader, in the order of `FORMATS`."""
    home = __name__  # in a wheel the rooms lie elsewhere
    return [import_module(f"{home}.{name}").read for name in FORMATS]


def read(path: Path) -> Observed | None:
    """What a file shows. None: no reader knows its format. Raises BadInput: malformed."""
    for reader in readers():
        if (seen := reader(path)) is not None:
            _check_times(path, seen)
            return seen
    empty = next(lines_of(str(path)), None) is None
    return Observed(notes=(f"{path} is empty",)) if empty else None


def _check_times(path: Path, seen: Observed) -> None:
    moments = [*seen.failed_s.tolist()]
    for source in seen.sources:
        moments += [source.start_s, source.end_s]
    for moment in moments:
        if not math.isnan(moment) and not 0 <= moment <= MAX_SECONDS:
            raise BadInput(
                f"{path}: it has the time {moment:.16g}; Unix times in seconds are wanted"
            )


def read_all(paths: Iterable[Path]) -> Observed:
    """What files, and the files in folders, show together; of a folder, what is unknown is left."""
    parts: list[Observed] = []
    for path in paths:
        try:
            inside = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else None
            for file in [path] if inside is None else inside:
                if inside is not None and file.suffix in _PASSED_OVER:
                    continue
                seen = read(file)
                if seen is None and inside is None:
                    raise BadInput(
                        f"{file}: none of the forms that are known here: scrapes, answers of "
                        f"Prometheus, logs of vLLM or SGLang, block events, request logs, spans, "
                        f"free lists; `pagedbench record` writes a folder of them"
                    )
                parts += [] if seen is None else [seen]
        except OSError as error:
            raise BadInput(
                f"{path}: {error.strerror or error}; name a file or folder that can be read"
            ) from None
    seen = merge(gathered(parts))
    if not seen.sources:
        names = ", ".join(map(str, paths))
        raise BadInput(f"{names}: nothing in it is known here; name metrics, a log or events")
    return seen
