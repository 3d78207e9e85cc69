"""One change to the figures, and what is said of it; the same change the other way round."""

from __future__ import annotations

import pytest

from kernels.compiled.explain import SLACK, Judgement, explain

from .samples import COPIES, launch_of, loop_of, without_loop

BASE = launch_of()


def said(base, now, judgement):
    return [change.words for change in explain(base, now) if change.judgement is judgement]


def test_equal_figures_are_not_worth_a_word():
    assert explain(BASE, launch_of()) == ()


WIDTHS = "`keys` and `values` {} from {}"
SCALAR = COPIES | {"keys": {"load 2 B": 64}, "values": {"load 2 B": 64}}

# (name, figures, what is said of them beside BASE, what is said of BASE beside them)
CASES = [
    (
        "tile too large",
        launch_of(shared_bytes=282_624, blocks=0, warps=0, limited_by="shared memory"),
        "does not fit in shared memory: 282,624 of 232,448 bytes",
        "fits on a processor, which it did not: 39,424 bytes",
    ),
    (
        "no tensor cores",
        launch_of(loop=loop_of(matrix={}, classes={"multiply-add": 2_100, "integer": 200})),
        "the product left the tensor cores: 32 HMMA became 2,100 FFMA",
        "the product went to the tensor cores: 2,100 FFMA became 32 HMMA",
    ),
    (
        "half the product elsewhere",
        launch_of(loop=loop_of(matrix={"HMMA": 16}, classes={"multiply-add": 1_048})),
        "part of the product left the tensor cores: 32 HMMA for 64 keys became 16 HMMA for 64, "
        "and 1,048 FFMA",
        "the product takes more matrix instructions: 16 HMMA for 64 keys became 32 HMMA for 64",
    ),
    (
        "three products for one",
        launch_of(loop=loop_of(matrix={"HMMA": 96})),
        "the product takes more matrix instructions: 32 HMMA for 64 keys became 96 HMMA for 64",
        "the product takes fewer matrix instructions: 96 HMMA for 64 keys became 32 HMMA for 64",
    ),
    (
        "spills",
        launch_of(spill_instructions=268, spill_bytes=1_072, registers=40, register_limit=40),
        "spills 268 instructions, 1,072 bytes at the register limit of 40; it spilled 0",
        "spills nothing; it spilled 268 instructions",
    ),
    (
        "narrow loads",
        launch_of(loop=loop_of(sources=SCALAR, memory={"load 2 B": 128, "async copy 4 B": 2})),
        WIDTHS.format("fell", "16-byte asynchronous copies to 2-byte loads"),
        WIDTHS.format("rose", "2-byte loads to 16-byte asynchronous copies"),
    ),
    (
        "no pipeline",
        launch_of(loop=loop_of(memory={"load 16 B": 16, "load 4 B": 2})),
        "the pipeline is gone: no asynchronous copies",
        "there is a pipeline: 18 asynchronous copies an iteration",
    ),
    (
        "table read for each key",
        launch_of(loop=loop_of(sources=COPIES | {"block": {"async copy 4 B": 33}})),
        "`block` takes 33 loads an iteration where it took 2",
        "`block` takes 2 loads an iteration where it took 33",
    ),
    (
        "query read again",
        launch_of(loop=loop_of(sources=COPIES | {"rows": {"load 16 B": 4}})),
        "`rows` is loaded in the main loop, and was not: 4 16-byte loads",
        "`rows` is no longer loaded in the main loop: 4 16-byte loads less",
    ),
    (
        "less occupancy",
        launch_of(blocks=1, warps=4, limited_by="shared memory"),
        "occupancy fell from 4 programs on a processor (25% of its warps) to 1 (6%), limited by "
        "shared memory",
        "occupancy rose from 1 program on a processor (6% of its warps) to 4 (25%), limited by "
        "registers",
    ),
    (
        "longer loop",
        launch_of(
            loop=loop_of(
                instructions=564,
                classes={"integer": 200, "matrix": 32, "multiply-add": 24, "conversion": 128},
            )
        ),
        "the main loop grew from 6.8 to 8.8 instructions per key, most by conversion "
        "(+128 an iteration)",
        "the main loop shrank from 8.8 to 6.8 instructions per key, most by conversion "
        "(-128 an iteration)",
    ),
    (
        "narrow stores",
        launch_of(memory=BASE.memory | {"store 16 B": 0, "store 2 B": 8}),
        "results fell from 16-byte stores to 2-byte stores",
        "results rose from 2-byte stores to 16-byte stores",
    ),
]


@pytest.mark.parametrize(
    ("now", "worse", "better"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_worse_and_better_are_told_apart(now, worse, better):
    assert worse in said(BASE, now, Judgement.WORSE)
    back = said(now, BASE, Judgement.BETTER) + said(now, BASE, Judgement.WORSE)
    assert better in back


def test_a_product_falls_to_a_lesser_unit():
    group = launch_of(loop=loop_of(matrix={"HGMMA": 12}))
    words = (
        "the product fell from instructions of a warp group to instructions of one warp: "
        "12 HGMMA became 32 HMMA"
    )
    assert words in said(group, BASE, Judgement.WORSE)
    assert not said(BASE, group, Judgement.WORSE)


@pytest.mark.parametrize(
    ("keys", "launch", "words"),
    [
        (128, {"constexprs": {"BLOCK_N": 128}}, "BLOCK_N 64 became 128"),
        (64, {"num_warps": 2}, "num_warps 4 became 2"),
    ],
    ids=["a tile twice as large", "half the warps"],
)
def test_twice_the_work_for_twice_as_much_is_no_worse(keys, launch, words):
    doubled = loop_of(
        instructions=872,
        keys=keys,
        classes={"integer": 400, "matrix": 64, "multiply-add": 48},
        matrix={"HMMA": 64},
        sources={"block": {"async copy 4 B": 4}}
        | {name: {"async copy 16 B": 16} for name in ("keys", "values")},
    )
    changes = explain(BASE, launch_of(loop=doubled, **launch))
    assert [change.words for change in changes] == [f"the launch changed: {words}"]


def test_lost_divisibility_is_noted_as_a_cause():
    now = launch_of(arguments=BASE.arguments | {"stride_slot_k": "i32"})
    words = "no longer known to be divisible by 16: `stride_slot_k`"
    assert said(BASE, now, Judgement.NOTED) == [words]
    assert said(now, BASE, Judgement.NOTED) == ["now known to be divisible by 16: `stride_slot_k`"]


def test_a_variable_of_another_name_is_no_change():
    sources = {"block": COPIES["block"], "k_tile": COPIES["keys"], "v_tile": COPIES["values"]}
    changes = explain(BASE, launch_of(loop=loop_of(sources=sources)))
    assert {change.judgement for change in changes} <= {Judgement.WITHIN}


@pytest.mark.parametrize(
    "within",
    [
        launch_of(spill_instructions=SLACK.spill_instructions, spill_bytes=SLACK.spill_bytes),
        launch_of(registers=124 + SLACK.registers),
        launch_of(instructions=2_050),
        launch_of(shared_bytes=39_424 + SLACK.shared_bytes),
    ],
)
def test_what_lies_within_the_slack_is_said_and_does_not_count(within):
    (change,) = explain(BASE, within)
    assert change.judgement is Judgement.WITHIN
    assert "within the slack" in change.words


@pytest.mark.parametrize(
    "beyond",
    [
        launch_of(spill_instructions=SLACK.spill_instructions + 1),
        launch_of(spill_bytes=SLACK.spill_bytes + 1),
        launch_of(loop=loop_of(instructions=459)),
        without_loop(instructions=2_300),
    ],
)
def test_one_more_than_the_slack_is_worse(beyond):
    base = without_loop() if beyond.loop is None else BASE
    assert said(base, beyond, Judgement.WORSE)


def test_a_loop_without_known_keys_is_compared_as_it_is():
    base = launch_of(loop=loop_of(keys=None))
    now = launch_of(loop=loop_of(keys=None, instructions=600))
    (words,) = said(base, now, Judgement.WORSE)
    assert words.startswith("the main loop grew from 436 to 600 instructions")
