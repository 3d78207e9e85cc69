"""Baselines: what is written is read again, and what cannot be compared is said."""

from __future__ import annotations

import json
import re

import pytest

from kernels.compiled.baseline import (
    Baseline,
    Status,
    TargetBaseline,
    built_in_path,
    compare,
    known_versions,
    read_baseline,
    write_baseline,
)
from kernels.compiled.explain import SLACK
from kernels.compiled.targets import TARGETS
from kernels.compiled.variants import VARIANTS
from reference.errors import BadInput

from .samples import launch_of, variant_of, without_loop

BASELINE = Baseline(
    triton="3.9.0",
    targets={
        "sm_90": TargetBaseline(
            toolchain="ptxas 13.4",
            variants={
                "decode": variant_of(launch_of(), without_loop(kernel="merge_kernel")),
                "broken": variant_of(launches=(), failure="ValueError: no"),
            },
        ),
        "gfx942": TargetBaseline(toolchain="llvm of triton", variants={"decode": variant_of()}),
    },
)


def test_what_is_written_is_read_again(tmp_path):
    write_baseline(BASELINE, tmp_path / "deep" / "base.json")
    assert read_baseline(tmp_path / "deep" / "base.json") == BASELINE


def test_each_launch_has_a_line_of_its_own(tmp_path):
    write_baseline(BASELINE, tmp_path / "base.json")
    lines = (tmp_path / "base.json").read_text().splitlines()
    assert sum(line.startswith('{"kernel":') for line in lines) == 3


def test_an_update_replaces_what_was_compiled_and_keeps_the_rest():
    new = variant_of(launch_of(registers=90))
    update = Baseline(
        triton="3.9.0",
        targets={"sm_90": TargetBaseline(toolchain="ptxas 13.4", variants={"decode": new})},
    )
    both = BASELINE.updated(update)
    assert both.targets["sm_90"].variants["decode"] == new
    assert "broken" in both.targets["sm_90"].variants
    assert both.targets["gfx942"] == BASELINE.targets["gfx942"]


def test_an_update_with_another_assembler_drops_the_figures_of_the_old_one():
    new = TargetBaseline(toolchain="ptxas 14.0", variants={"decode": variant_of()})
    both = BASELINE.updated(Baseline(triton="3.9.0", targets={"sm_90": new}))
    assert both.targets["sm_90"] == new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; name a baseline \\(make one with"),
        ("{", "make it anew with --save"),
        (json.dumps({"triton": "3.9.0"}), "targets: Field required"),
        (json.dumps({"triton": "3", "targets": {}, "schema_version": 99}), "schema 99"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path, text, message):
    path = tmp_path / "base.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_baseline(path)


RIGHT, FAILED = variant_of(), variant_of(launches=(), failure="CompilationError: no break\nmore")
SPILLS = variant_of(launch_of(spill_instructions=99))


@pytest.mark.parametrize(
    ("base", "now", "expected"),
    [
        (RIGHT, RIGHT, Status.SAME),
        (RIGHT, SPILLS, Status.WORSE),
        (SPILLS, RIGHT, Status.BETTER),
        (RIGHT, variant_of(launch_of(registers=125)), Status.CHANGED),
        (None, RIGHT, Status.NEW),
        (RIGHT, variant_of(problem="(q1 k32) d64 b16 bf16"), Status.NEW),
        (FAILED, FAILED, Status.SAME),  # a failure that is known
        (FAILED, RIGHT, Status.BETTER),
    ],
)
def test_statuses(base, now, expected):
    assert compare("sm_90", "decode", base, now).status is expected


def test_a_new_failure_is_worse():
    comparison = compare("sm_90", "decode", RIGHT, FAILED)
    assert comparison.status is Status.WORSE
    assert comparison.changes[0].words == "does not compile: CompilationError: no break"


def test_launches_that_come_and_go_are_named():
    both = variant_of(launch_of(), without_loop(kernel="merge_kernel"))
    one = variant_of(launch_of())
    for base, now, word in ((both, one, "no longer launched"), (one, both, "launched besides")):
        comparison = compare("sm_90", "decode", base, now)
        assert comparison.status is Status.WORSE
        assert f"merge_kernel is {word}" in comparison.changes[0].words


def test_of_several_kernels_the_changed_one_is_named():
    merge = without_loop(kernel="merge_kernel", spill_instructions=99)
    base = variant_of(launch_of(), without_loop(kernel="merge_kernel"))
    (change, *_) = compare("sm_90", "decode", base, variant_of(launch_of(), merge)).changes
    assert change.words.startswith("merge_kernel: spills 99 instructions")


@pytest.mark.parametrize("triton", known_versions())
def test_our_baselines_have_every_variant_and_target(triton):
    baseline = read_baseline(built_in_path(triton))
    assert baseline.triton == triton
    assert list(baseline.targets) == list(TARGETS)
    for name, target in baseline.targets.items():
        wanted = {each.name: each.problem for each in VARIANTS if each.refusal(name) is None}
        assert {key: value.problem for key, value in target.variants.items()} == wanted
        assert all(figures.failure is None for figures in target.variants.values())
    paths = re.findall(r"/\w+/[\w./]*", built_in_path(triton).read_text())
    assert not paths, "paths of some machine"


@pytest.mark.parametrize("triton", known_versions())
@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_no_stored_decode_loop_spills_and_all_read_16_bytes_at_once(triton, target):
    variants = read_baseline(built_in_path(triton)).targets[target].variants
    for name, figures in variants.items():
        if name.startswith("decode"):
            decode = figures.launches[0]
            # At 96 registers, where one program more is resident, ptxas keeps an address or two
            # of the prologue on the stack. The loop never touches it.
            assert "spill" not in decode.loop.classes, name
            assert decode.spill_instructions <= SLACK.spill_instructions, name
            assert decode.spill_bytes <= SLACK.spill_bytes, name
            assert decode.fits, name
            if "cache" not in name:
                assert decode.loop.sources["keys"].keys() == {"async copy 16 B"}, name
    gathered, whole = (variants[f"decode bf16{each}"].launches[0] for each in ("", ", block 128"))
    # One table entry and one pointer for a tile: the fast path is there.
    assert whole.loop.instructions < gathered.loop.instructions
