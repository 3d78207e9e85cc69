"""What a line of an engine's log says in figures: vLLM of both generations, and SGLang.

A line is searched for phrases that the engines print, wherever a container's or a cluster's log
puts them. What is kept of a line is these phrases: `worth` gives them back as a line, which says
the same to `parse` and holds nothing else, no prompt and no key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_N: Final = r"(\d+(?:,\d{3})*(?:\.\d+)?)"

_VLLM: Final = {
    "prompt_throughput": rf"Avg prompt throughput: {_N} tokens/s",
    "generation_throughput": rf"Avg generation throughput: {_N} tokens/s",
    "running": rf"Running: {_N} reqs",
    "waiting": rf"(?:Waiting|Pending): {_N} reqs",  # V0 called it pending
    "deferred": rf"Deferred: {_N} reqs",
    "swapped": rf"Swapped: {_N} reqs",
    "usage": rf"\w+ KV cache usage: {_N}%",
    "cpu_usage": rf"(?<=, )CPU KV cache usage: {_N}%(?=[^,]*\Z)",
    "hit_rate": rf"(?<!External )(?<!external )[Pp]refix cache hit rate: (?:GPU: )?{_N}%",
    "step_context_tokens": rf"{_N} context tokens",
    "step_context_requests": rf"Iteration\(\d+\): {_N} context requests",
    "step_generation_requests": rf"{_N} generation requests",
    "step_ms": rf"iteration elapsed time: {_N} ms",
}
_SGLANG: Final = {
    "running": rf"#running-req: {_N}",
    "waiting": rf"#queue-req: {_N}",
    "usage": rf"(?<!swa )(?<!gpu )(?<!cpu )token usage: {_N}",
    "swa_usage": rf"swa token usage: {_N}",
    "hit_rate": rf"cache hit rate: {_N}%",
    "new_sequences": rf"#new-seq: {_N}",
    "new_tokens": rf"#new-token: {_N}",
    "cached_tokens": rf"#cached-token: {_N}",
    "prompt_throughput": rf"input throughput \(token/s\): {_N}",
    "generation_throughput": rf"gen throughput \(token/s\): {_N}",
}
_PERCENT: Final = frozenset({"usage", "cpu_usage", "hit_rate"})

_CONFIG: Final = {
    "pool_tokens": rf"KV cache size: {_N} tokens|max_total_num_tokens={_N}",
    "max_model_len": (
        rf"Maximum concurrency for {_N} tokens|Using max model len {_N}|context_len={_N}"
    ),
    "num_blocks": rf"# \w+ blocks: {_N}, # CPU blocks|num_gpu_blocks_override={_N}",
    "block_size": rf"Setting attention block size to {_N} tokens",
    "token_budget": rf"max_num_batched_tokens={_N}|chunked_prefill_size={_N}",
    "max_num_seqs": rf"max_running_requests={_N}",
}
_ARGUMENTS: Final = {
    "max_num_seqs": "max_num_seqs",
    "max_running_requests": "max_num_seqs",
    "max_num_batched_tokens": "token_budget",
    "chunked_prefill_size": "token_budget",
    "max_model_len": "max_model_len",
    "context_length": "max_model_len",
    "max_seq_len": "max_model_len",
    "block_size": "block_size",
    "page_size": "block_size",
    "num_gpu_blocks_override": "num_blocks",
    "max_total_tokens": "pool_tokens",
    "max_num_queued_reqs": "queue_limit",
    "max_queued_requests": "queue_limit",
    "watermark": "watermark",
    "enable_prefix_caching": "prefix_caching",
    "enable_chunked_prefill": "chunked_prefill",
    "disable_radix_cache": "no_prefix_caching",
    "schedule_conservativeness": "schedule_conservativeness",
}
"""Arguments that the engines print at their start, to names in `Observed.config`."""

_FACTS: Final = {
    "started": r"Initializing an? (?:V\d )?LLM engine \(v([\w.+-]+)\)",
    "preempted": rf"is preempted by .{{0,40}} mode because.{{0,250}}preemption={_N}",
    "retracted": rf"KV cache pool is full\. Retract requests\. #retracted_reqs: {_N}",
    "pool_too_small": (
        rf"To serve at least one request with the model's max seq len \({_N}\)"
        rf"|model's max seq len \({_N}\) is larger than the maximum number of tokens"
        r"|No available memory for the cache blocks"
        r"|Not enough memory\. Please try (?:to increase|increasing) --mem-fraction-static"
    ),
    "out_of_memory": (
        r"Out of memory even after retracting all other requests"
        r"|OutOfMemoryError|CUDA out of memory|Prefill out of memory|Decode out of memory"
    ),
    "too_long": rf"maximum context length is {_N} tokens|maximum allowed length \({_N} tokens\)",
    "died": r"EngineDeadError|EngineCore encountered a fatal error|AsyncEngineDeadError",
    "stopped": r"\[shutdown\] API server: shutdown triggered|Application shutdown complete",
}
"""What happens once: name, and the phrase that says it, with the figure that belongs to it."""

_ARGUMENT_LINES: Final = re.compile(
    r"non-default args: |args: Namespace\(|server_args=|Initializing an? (?:V\d )?LLM engine"
)
_ARGUMENT: Final = re.compile(
    rf"(?<!\w)['\"]?({'|'.join(_ARGUMENTS)})['\"]?(?:=|: )"
    r"(True|False|\d+(?:\.\d+)?)(?=[,)} ]|\Z)"
)
_ACCESS: Final = re.compile(r'"POST [^" ]* HTTP/[\d.]+" ([1-5])\d\d')
_STAMP: Final = re.compile(
    r"(?<![\d-])(?P<full>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)"
    r"|(?<![\d-])(?P<short>\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,9})?)(?!\d)"
)
_ENGINE: Final = re.compile(r"Engine (\d{3}): |\bDP(\d+)\b")
_OTHER_RANK: Final = re.compile(r"[\[ ]TP([1-9]\d*)\b")

MAX_STAMP_AT: Final = 200
"""Characters of a line in which its time stands."""

MAX_CHARS: Final = 2**16
"""Of a line that are looked at."""


def _compiled(table: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(phrase) for name, phrase in table.items()}


_VLLM_FIGURES, _SGLANG_FIGURES = _compiled(_VLLM), _compiled(_SGLANG)
_CONFIG_PHRASES, _FACT_PHRASES = _compiled(_CONFIG), _compiled(_FACTS)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a line says."""

    stamp: str = ""
    """Its time, as written; without a year where it has none."""
    engine: str = ""
    software: str = ""
    """`vllm` or `sglang`, where the phrase is one's own."""
    figures: dict[str, float] = field(default_factory=dict)
    """Canonical name to value; shares from 0 to 1."""
    config: dict[str, float | str | bool] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    """What happened, and the figure that belongs to it, else 1."""
    status: str = ""
    """Of an answered request: `2xx` and so on."""
    phrases: tuple[str, ...] = ()
    """Everything that was used of the line, in its order."""


def parse(line: str) -> Said | None:
    """What a line says. None: nothing in figures."""
    line = line[:MAX_CHARS]
    matches: list[re.Match[str]] = []
    figures: dict[str, float] = {}
    config: dict[str, float | str | bool] = {}
    facts: dict[str, float] = {}
    software = status = ""
    if "KV cache usage: " in line or "throughput: " in line or " context requests, " in line:
        software = "vllm"
        _figures(line, _VLLM_FIGURES, figures, matches)
    elif "#running-req: " in line or "#new-seq: " in line:
        software = "sglang"
        _figures(line, _SGLANG_FIGURES, figures, matches)
    elif '"POST ' in line:
        if access := _ACCESS.search(line):
            status = f"{access[1]}xx"
            matches.append(access)
    else:
        for name, phrase in _FACT_PHRASES.items():
            if found := phrase.search(line):
                matches.append(found)
                value = next((each for each in found.groups() if each), "1")
                if name == "started":
                    config |= {"engine": "vllm", "version": value}
                facts[name] = 1.0 if name == "started" else _number(value)
        if start := _ARGUMENT_LINES.search(line):
            matches.append(start)
            software = "sglang" if start[0] == "server_args=" else "vllm"
            for found in _ARGUMENT.finditer(line, start.start()):
                matches.append(found)
                config.setdefault(_ARGUMENTS[found[1]], _value(found[2]))
        else:
            for name, phrase in _CONFIG_PHRASES.items():
                if found := phrase.search(line):
                    matches.append(found)
                    config[name] = _number(next(each for each in found.groups() if each))
    if not matches:
        return None
    if "no_prefix_caching" in config:
        config["prefix_caching"] = not config.pop("no_prefix_caching")
    ranks = _OTHER_RANK.search(line[:MAX_STAMP_AT])
    if ranks and software == "sglang":
        return None  # each rank of a tensor-parallel engine says the same
    stamp = _STAMP.search(line[:MAX_STAMP_AT])
    engine = _ENGINE.search(line)
    matches.sort(key=lambda each: each.span())
    return Said(
        stamp=stamp[0] if stamp else "",
        engine=str(int(engine[1] or engine[2])) if engine else "",
        software=software,
        figures=figures,
        config=config,
        facts=facts,
        status=status,
        phrases=tuple(each[0] for each in matches),
    )


def worth(line: str) -> str | None:
    """The same line with nothing but what is used of it. None: nothing is."""
    said = parse(line)
    if said is None:
        return None
    engine = ""
    if said.engine:
        engine = f"DP{said.engine} " if said.software == "sglang" else f"Engine {said.engine:0>3}: "
    phrases = ", ".join(map(_without_content, said.phrases))
    return f"{said.stamp} {engine}{phrases}".strip()


def _figures(
    line: str,
    phrases: dict[str, re.Pattern[str]],
    figures: dict[str, float],
    matches: list[re.Match[str]],
) -> None:
    for name, phrase in phrases.items():
        if found := phrase.search(line):
            share = name in _PERCENT and found[0].endswith("%")
            figures[name] = _number(found[1]) / (100 if share else 1)
            matches.append(found)


def _without_content(phrase: str) -> str:
    """A phrase without what lies between its ends: a mode, a path."""
    if phrase.startswith('"POST '):
        return re.sub(r" \S* ", " / ", phrase)
    return re.sub(r"(?<=mode because).*(?=preemption=)", " there is not enough space. ", phrase)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _value(text: str) -> float | bool:
    return text == "True" if text in {"True", "False"} else float(text)
