"""`pagedbench waste`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from bench.command.session import (
    INTERRUPTED,
    Bar,
    Lines,
    QuietlyClosed,
    Silence,
    check_file,
    deliver,
    exit_codes,
)
from reference.errors import BadInput

# --help is quick: what takes time to import is imported where it is used. Never torch.
if TYPE_CHECKING:
    from bench.command.session import Progress
    from bench.waste.figures.figure import Figure
    from bench.waste.parallel import Finished, Job
    from bench.waste.policies import Policy
    from bench.waste.record import WasteRecord
    from bench.workloads.record import ServedStream
    from bench.workloads.source import StreamSource
    from paged.clock import StepTime
    from paged.policy import PagedPolicy

WASTE_HELP: Final = """
Serves request streams from a KV-cache pool of a given size, under contiguous reservation and under
paging, and says for every policy where each slot of the pool was: in use, reserved, lost to
rounding or to holes, free. Counted in whole slots, simulated on the CPU, the same on every machine.

[bold]Examples[/]

  pagedbench waste

  pagedbench waste --stream azure-fit:rate=8 --pool 16GiB --model 32x8x128

  pagedbench waste --trace requests.jsonl --policy paged --block-size 16 --block-size 64

  pagedbench waste --policy oracle/first-fit --policy paged:prefix=lru --plot pool.png

  pagedbench waste --trace requests.csv --whatif

  pagedbench waste --figure sosp23

[bold]Streams[/]

  sharegpt-fit, alpaca-fit, azure-fit, azure-code-fit and others, or a file

  sharegpt-fit:system=512,prompts=8   behind one of eight system prompts

  azure-fit:rate=8,max_len=2048   faster, and nothing long

  sharegpt-fit+azure-code-fit:share=0.2   a mix of two tenants

[bold]Policies[/]

  max, pow2 or oracle / buddy, first-fit or best-fit

  oracle/best-fit:look-ahead=8,max-running=64,max-model-len=4096

  paged:block=32,watermark=0.01,prefix=lru,preempt=swap,quota=0:256+1:256

  paged:budget=8192,window=4096,look-ahead=8,max-running=256

  paged:samples=4,beam-keep=0.5

[bold]Exit codes[/]

  0 done, 1 --figure missed, 2 usage, 4 the harness itself failed, 130 interrupted
"""

DEFAULT_STREAM: Final = "sharegpt-fit"
DEFAULT_POOL: Final = "12GiB"
DEFAULT_BYTES_PER_TOKEN: Final = 819_200
"""OPT-13B in 16 bits: 2 x 40 layers x 5120 x 2 bytes (Kwon et al., SOSP 2023, section 3)."""

_UNITS: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def waste(
    *,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Stream of requests. May be repeated. Default: {DEFAULT_STREAM}.",
            metavar="SPEC",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            help="Request trace, plain or gzip: Azure, ShareGPT lengths, Mooncake, BurstGPT, "
            "Qwen-Bailian. May be repeated.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy of the cache. May be repeated. Default: max, pow2 and oracle on buddy, "
            "oracle/first-fit, paged.",
            metavar="SPEC",
            show_default=False,
        ),
    ] = None,
    block_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Tokens per block, for paged policies that do not say. May be repeated. "
            "Default: 16.",
            show_default=False,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Size of the pool in slots, tokens.", show_default=False
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help=f"Size of the pool in bytes, as 12GiB or 40GB. Default: {DEFAULT_POOL}.",
            metavar="SIZE",
            show_default=False,
        ),
    ] = None,
    bytes_per_token: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Bytes of one slot. Default: 819,200, OPT-13B in 16 bits.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Bytes of one slot from a model's shape: layers x KV heads x head size, and bytes "
            "per element where it is not 2: 32x8x128 is Llama-3-8B.",
            metavar="SHAPE",
            show_default=False,
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Longest request that a reservation provides for. Default: the smallest power of "
            "two that holds the stream's longest.",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Requests of each stream: draw or read as many."),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="The same seed draws the same requests.")
    ] = 0,
    warmup: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Completed requests that are not judged. Default: a tenth of the stream.",
            show_default=False,
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Most requests that wait or run at once; for paged policies and streams without "
            "times.",
            show_default=False,
        ),
    ] = None,
    step_ms: Annotated[
        float,
        typer.Option(
            metavar="MS", min=1e-6, max=1e9, help="Duration of a step, for streams with times."
        ),
    ] = 30.0,
    prefill_rate: Annotated[
        float,
        typer.Option(min=1e-3, help="Prompt tokens computed in a second, for streams with times."),
    ] = 20_000.0,
    jobs: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Processes; 0: one a core, if the work is worth their start."
        ),
    ] = 0,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Run on a Ray cluster: that of RAY_ADDRESS, or one that is started here.",
        ),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Run on the Ray cluster at this address.", metavar="ADDRESS", show_default=False
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the record to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the pool to this file: png, svg or pdf.", show_default=False
        ),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            help="Reproduce a published figure, and nothing else: sosp23, sharing, block-size, "
            "watermark, mooncake or jenga.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    whatif: Annotated[
        bool,
        typer.Option(
            "--whatif",
            help="Vary one paged policy on each stream, and say what would give back most.",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress, only what was found.")
    ] = False,
) -> None:
    """Account for every slot of a KV cache."""
    console, errors = QuietlyClosed(), QuietlyClosed(stderr=True)
    with exit_codes(errors, about="the policies"):
        check_file("--json", json)
        check_file("--plot", plot)
        if figure is not None:
            bar = _progress(errors, quiet=quiet)
            raise typer.Exit(_figure(figure, trace or [], json, console, bar))
        from bench.waste.plot import check_format
        from paged.clock import StepTime

        if plot is not None:
            check_format(plot)
        width = _bytes_per_token(bytes_per_token, model)
        asked = _Asked(
            streams=_streams(stream or [], trace or [], requests=requests, seed=seed),
            policies=tuple(policy or ()),
            block_sizes=tuple(dict.fromkeys(block_size or [16])),
            slots=_slots(slots, pool, width),
            bytes_per_token=width,
            max_model_len=max_model_len,
            warmup=warmup,
            clients=clients,
            time=StepTime(
                step_ns=round(step_ms * 1e6), prefill_ns_per_token=round(1e9 / prefill_rate)
            ),
            workers=jobs or None,
            ray=ray or ray_address is not None,
            ray_address=ray_address,
            whatif=whatif,
        )
        raise typer.Exit(_waste(asked, json, plot, console, errors, quiet=quiet))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the options come to."""

    streams: list[tuple[StreamSource, ServedStream]]
    policies: tuple[str, ...]
    block_sizes: tuple[int, ...]
    slots: int
    bytes_per_token: int
    max_model_len: int | None
    warmup: int | None
    clients: int | None
    time: StepTime
    workers: int | None
    ray: bool
    ray_address: str | None
    whatif: bool

    def policies_for(self, stream: ServedStream) -> tuple[Policy, ...]:
        """Read the policies, with reservations that provide for the longest request."""
        from bench.waste.policies import DEFAULT_POLICIES, expand_policies

        longest = 1 << (stream.longest_request - 1).bit_length()
        if self.whatif:
            from bench.waste.whatif import variations

            base = self.base()
            return (base, *(v.policy for v in variations(base, prefixes=stream.prefixes)))
        # Reservations are not for closed loops.
        default = DEFAULT_POLICIES if self.clients is None else ("paged",)
        return expand_policies(
            self.policies or default,
            block_sizes=self.block_sizes,
            max_model_len=self.max_model_len or longest,
        )

    def base(self) -> PagedPolicy:
        """Read the policy that --whatif varies."""
        from bench.waste.policies import expand_policies
        from paged.policy import PagedPolicy

        read = expand_policies(
            self.policies or ("paged",), block_sizes=self.block_sizes, max_model_len=1
        )
        if len(read) != 1 or not isinstance(read[0], PagedPolicy):
            given = " ".join(self.policies) or f"block sizes {self.block_sizes}"
            raise BadInput(f"--whatif with {given}: give one paged policy, which is then varied")
        return read[0]


def _streams(
    specs: list[str], traces: list[Path], *, requests: int | None, seed: int
) -> list[tuple[StreamSource, ServedStream]]:
    from bench.waste.record import unique_labels
    from bench.workloads.record import served_stream
    from bench.workloads.source import head
    from bench.workloads.spec import parse_source

    asked = [("--stream", spec) for spec in specs or ([] if traces else [DEFAULT_STREAM])]
    asked += [("--trace", f"trace:{path}") for path in traces]
    sources: list[StreamSource] = []
    for option, spec in asked:
        try:
            source = parse_source(_with_defaults(spec, requests=requests, seed=seed))
        except ValueError as error:
            raise BadInput(f"{option} {spec.removeprefix('trace:')}: {error}") from None
        sources.append(source if requests is None else head(source, requests))
    described = []
    labels = unique_labels(
        [
            source.name if spec.startswith("trace:") else spec
            for (_, spec), source in zip(asked, sources, strict=True)
        ]
    )
    for (option, spec), source, label in zip(asked, sources, labels, strict=True):
        try:
            described.append((source, served_stream(source, label=label)))
        except OSError as error:
            raise BadInput(
                f"{option} {spec.removeprefix('trace:')}: {error.strerror or error}; name a file "
                f"that can be read"
            ) from None
        except ValueError as error:
            raise BadInput(f"{option} {spec.removeprefix('trace:')}: {error}") from None
    return described


def _with_defaults(spec: str, *, requests: int | None, seed: int) -> str:
    """Say in a stream's spec how many requests it has, and its seed, where it does not say."""
    whole_file = Path(spec.removeprefix("trace:")).is_file()
    parts = [spec] if whole_file else spec.split("+")
    completed = []
    for index, part in enumerate(parts):
        name, _, keys = part.rpartition(":")
        has_keys = "=" in keys or keys == "saturated"
        if not has_keys:
            name, keys = part, ""
        given = {key.partition("=")[0] for key in keys.split(",")}
        wanted = {"seed": seed + index if name else seed}
        if requests is not None and name:
            wanted["requests"] = requests
        more = [f"{key}={value}" for key, value in wanted.items() if key not in given]
        keys = ",".join([*([keys] if keys else []), *more])
        completed.append(f"{name}:{keys}" if keys else name)
    return "+".join(completed)


def _bytes_per_token(given: int | None, model: str | None) -> int:
    if model is None:
        return DEFAULT_BYTES_PER_TOKEN if given is None else given
    if given is not None:
        raise BadInput(f"--bytes-per-token {given} and --model {model}: give one of them")
    shape = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?:x(\d+))?", model)
    if shape is None or "0" in shape.groups():
        raise BadInput(
            f"--model {model}: give layers x KV heads x head size, as 32x8x128, and x bytes per "
            f"element where it is not 2"
        )
    layers, heads, head_dim, element = shape.groups(default="2")
    return 2 * int(layers) * int(heads) * int(head_dim) * int(element)


def _slots(slots: int | None, pool: str | None, bytes_per_token: int) -> int:
    if slots is not None:
        if pool is not None:
            raise BadInput(f"--slots {slots} and --pool {pool}: give one of them")
        return slots
    size = _size("--pool", pool or DEFAULT_POOL)
    if size < bytes_per_token:
        raise BadInput(
            f"--pool {pool}: less than one token, which takes {bytes_per_token:,} bytes; give more"
        )
    return size // bytes_per_token


def _size(option: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]+)", text.strip())
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise BadInput(f"{option} {text}: give a number and one of {', '.join(_UNITS)}: 12GiB")
    return int(float(match[1]) * units[match[2].lower()])


def _figures() -> dict[str, Callable[[], Figure]]:
    from bench.waste.figures.catalogue import FIGURES

    return FIGURES


def _figure(
    name: str, traces: list[Path], json: Path | None, console: Console, progress: Progress
) -> int:
    from bench.waste.figures.mooncake import TraceMissing, mooncake
    from bench.waste.report import show_figure

    figures = _figures()
    if name not in figures:
        raise BadInput(f"--figure {name}: choose one of {', '.join(figures)}")
    if traces and (name != "mooncake" or len(traces) > 1):
        raise BadInput(
            f"--figure {name} with --trace {traces[-1]}: only mooncake reads a trace, and one; "
            f"leave it out"
        )
    with progress:
        progress.begin(name, 1)
        try:
            figure = mooncake(traces[0]) if traces else figures[name]()
        except OSError as error:
            raise BadInput(
                f"--trace {traces[0]}: {error.strerror or error}; name a file that can be read"
            ) from None
        except TraceMissing as error:
            raise BadInput(str(error)) from None
        progress.advance(1)
    if json is not None:
        from pydantic import TypeAdapter

        json.write_bytes(TypeAdapter(type(figure)).dump_json(figure, indent=2) + b"\n")
    show_figure(figure, console)
    return 0 if figure.met else 1


def _waste(
    asked: _Asked,
    json: Path | None,
    plot: Path | None,
    console: Console,
    errors: Console,
    *,
    quiet: bool,
) -> int:
    from bench.machine.environment import WasteEnvironment
    from bench.waste.parallel import Job
    from bench.waste.policies import format_policy
    from bench.waste.record import PoolRecord, WasteRecord, waste_row
    from bench.waste.report import show

    began, started_at = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    plan = [
        (
            record.label,
            Job(
                source=source,
                requests=record.requests,
                policy=policy,
                slots=asked.slots,
                warmup=record.requests // 10 if asked.warmup is None else asked.warmup,
                time=asked.time,
                clients=asked.clients,
            ),
        )
        for source, record in asked.streams
        for policy in asked.policies_for(record)
    ]
    jobs = [job for _, job in plan]
    done: dict[int, Finished] = {}
    interrupted = False
    progress = _progress(errors, quiet=quiet)
    try:
        with progress, closing(_sweep(asked, jobs)) as finished:
            progress.begin("simulations", len(jobs))
            for one in finished:
                done[one.index] = one
                progress.advance(1)
    except KeyboardInterrupt:
        interrupted = True
        errors.print("stopped; what is done is reported (Ctrl-C again to abort)", style="yellow")
    record = WasteRecord(
        started_at=started_at,
        elapsed_s=time.perf_counter() - began,
        command=sys.argv[1:],
        complete=not interrupted,
        asked=len(jobs),
        machine=WasteEnvironment.here(),
        pool=PoolRecord(slots=asked.slots, bytes_per_token=asked.bytes_per_token),
        warmup=asked.warmup,
        clients=asked.clients,
        step_ns=asked.time.step_ns,
        prefill_ns_per_token=asked.time.prefill_ns_per_token,
        base=format_policy(asked.base()) if asked.whatif else None,
        streams=[described for _, described in asked.streams],
        rows=[
            waste_row(label, job.policy, done[at].serving, seconds=done[at].seconds)
            for at, (label, job) in enumerate(plan)
            if at in done
        ],
    )
    deliver(record, json, lambda: show(record, console))
    if interrupted:
        return INTERRUPTED
    if plot is not None:
        _draw(record, plan, plot, console, progress)
    return 0


def _sweep(asked: _Asked, jobs: Sequence[Job]) -> Generator[Finished]:
    from bench.waste.parallel import run_here, run_on_ray

    if asked.ray:
        return run_on_ray(jobs, address=asked.ray_address, cpus=asked.workers)
    return run_here(jobs, workers=asked.workers)


def _draw(
    record: WasteRecord,
    plan: list[tuple[str, Job]],
    file: Path,
    console: Console,
    progress: Progress,
) -> None:
    from bench.waste.plot import MAX_MAPS, draw, pool_map
    from bench.waste.policies import format_policy
    from bench.waste.whatif import compare

    for stream in record.streams:
        mine = [job for label, job in plan if label == stream.label]
        if record.base is not None:
            # Many, and alike but for one option: the base, and what gives back most.
            found = compare(record, stream.label)
            wanted = {record.base, found.best.row.policy if found and found.best else None}
            mine = [job for job in mine if format_policy(job.policy) in wanted]
        mine = mine[:MAX_MAPS]
        maps = []
        with progress:
            progress.begin("occupancy maps", len(mine))
            for job in mine:
                maps.append(pool_map(job, mean_output_tokens=stream.mean_output_tokens))
                progress.advance(1)
        name = re.sub(r"[^\w.-]+", "-", stream.label).strip("-")
        one = file if len(record.streams) == 1 else file.with_stem(f"{file.stem}-{name}")
        draw(record, stream.label, maps, one)
        console.print(f"drawn to {one}", markup=False, highlight=False, soft_wrap=True)


def _progress(errors: Console, *, quiet: bool) -> Progress:
    if quiet:
        return Silence()
    return Bar(errors) if errors.is_terminal else Lines(errors)
