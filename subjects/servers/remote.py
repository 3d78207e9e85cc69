"""An engine's own scheduler and cache manager, in a process and an interpreter of its own.

One question: {"serve": {"arguments": [...], "pace": {...}, "block_size": ..., "clients": ...,
"requests": [[PROMPT, OUTPUT, ARRIVAL_NS, [KEYS]], ...]}}. `arguments` are the engine's own, as
typed; `pace` is a step's duration in picoseconds: `base`, and for each `prompt` token computed and
each token `kv` that is read. Layers that do not all keep everything are in "layers", alike ones
together: how many `layers`, tokens of a block (`block_size`; of a state, of a request), `bytes` of
a token or of a state, `page_bytes` of a block, the `window` or null, and whether it is a `state`;
all of one layer. The answer is what `Served` has, or {"raised": "Type: words"}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from subjects.environments import chosen_interpreter, engine_python
from subjects.loading import SubjectError
from subjects.process import NotStarted, SubjectDied, SubjectProcess

ENGINES: Final = {"vllm": "vllm_engine.py"}
"""Servers by name, which is that of their environment as well, and the file that drives each."""

TIME_LIMIT_S: Final = 3600.0
"""For one stream. A scheduler takes a few hundred microseconds a step."""

Asked = tuple[int, int, int | None, Sequence[int]]
"""Prompt and output tokens of a request, nanoseconds at which it arrives or None, and a key for
each full block of its prompt that others may share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of a stream."""

    requests: list[tuple[int, int, int, int]] = field(repr=False)
    """Number of each request that was completed, and when it arrived, got its first token and its
    last, in picoseconds; in order of completion."""
    series: list[tuple[int, ...]] = field(repr=False)
    """Moments in order: nanoseconds; requests that run and wait, blocks in use in that step;
    preemptions, hit tokens and completed requests so far."""
    sums: dict[str, int]
    """Sums over the steps: `running`, `waiting`, `used_blocks`; and totals: `steps`,
    `peak_running`, `prompt_tokens`, `preemptions`, `hit_tokens`, `queried_tokens`, `time_ps`."""


class EngineServer:
    """An engine that serves one stream after another. Raises SubjectError: it cannot be had."""

    def __init__(self, name: str, *, python: str | None = None) -> None:
        if name not in ENGINES:
            raise SubjectError(f"server {name!r} is unknown; there is {', '.join(ENGINES)}")
        interpreter = chosen_interpreter(python) if python else str(engine_python(name))
        file = Path(__file__).parent / ENGINES[name]
        self._process = SubjectProcess(
            [interpreter, "-W", "ignore", str(file)],
            environment={"PYTHONHASHSEED": "0"},
            time_limit_s=TIME_LIMIT_S,
        )
        try:
            said = self._process.introduce()
        except (NotStarted, SubjectDied) as death:
            self.close()
            raise SubjectError(f"server {name}: {death}") from None
        if "error" in said:
            self.close()
            raise SubjectError(f"server {name}: {said['error']}")
        self.version: str = said["version"]

    def serve(
        self,
        requests: Iterable[Asked],
        *,
        arguments: Sequence[str],
        pace: Mapping[str, int],
        block_size: int,
        clients: int | None = None,
        layers: Sequence[Mapping[str, Any]] = (),
    ) -> Served:
        """Serve a stream to its end. Raises SubjectError: the engine refuses, raises or dies."""
        question: dict[str, Any] = {
            "arguments": list(arguments),
            "pace": dict(pace),
            "block_size": block_size,
            "clients": clients,
            "requests": list(requests),
            "layers": list(layers),
        }
        try:
            answer = self._process.ask({"serve": question})
        except SubjectDied as death:
            raise SubjectError(f"{self.version}: the process {death.how}") from None
        if "raised" in answer:
            raise SubjectError(f"{self.version}, {' '.join(arguments)}: {answer['raised']}")
        return Served(
            requests=[tuple(each) for each in answer["requests"]],
            series=[tuple(each) for each in answer["series"]],
            sums=answer["sums"],
        )

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
