"""Annotations as GitHub reads them: whole lines, escaped, the worst first, ten of each kind."""

import re

from bench.gate.report.annotations import SHOWN, workflow_commands
from helpers.gate_records import (
    HOSTILE,
    failing,
    gate_record,
    mixed_record,
    output,
)

COMMAND = re.compile(r"^::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)$")


def unescape(text):
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


def read(record):
    matches = [COMMAND.match(line) for line in workflow_commands(record).split("\n")[:-1]]
    assert None not in matches
    return [(m[1], unescape(m[2]), unescape(m[3])) for m in matches]


def test_every_line_is_one_command():
    levels = [level for level, _, _ in read(mixed_record())]
    assert levels == sorted(levels, key=["error", "warning", "notice"].index)
    assert read(mixed_record())[0] == (
        "error",
        "gate: fail",
        "1 benchmark is slower and 1 counter is worse",
    )


def test_levels_follow_the_verdicts():
    found = {title: level for level, title, _ in read(mixed_record())}
    assert found["prefill/paged-torch"] == "error"
    assert found["copy/blocks"] == "warning"
    assert found["table/build"] == "notice"
    assert found["not run"] == "notice"
    by_words = {words: level for level, _, words in read(mixed_record())}
    assert by_words["allocations: 1,000 to 1,010 slots (+1.00 %, allowed 0 %)"] == "error"
    assert by_words["reads: 1,000 to 1,010 slots (+1.00 %, allowed 2 %)"] == "warning"


def test_hostile_name_gives_no_second_command():
    (found,) = (each for each in read(mixed_record()) if each[1] == HOSTILE)
    assert found[0] == "warning"
    assert HOSTILE in found[2]


def test_run_that_passes_is_a_notice():
    assert read(gate_record()) == [("notice", "gate: pass", "nothing is worse")]


def test_inconclusive_run_warns_and_failed_harness_is_an_error():
    assert read(gate_record(verdict="inconclusive"))[0][0] == "warning"
    assert read(gate_record(verdict="harness failed"))[0][0] == "error"


def test_output_that_differs_is_an_error():
    record = gate_record(
        outputs=[output("differs", note="3 of 64 slots")], verdict="outputs differ"
    )
    assert read(record)[1] == (
        "error",
        "decode/paged-torch[block=16]",
        "out differs between base and head. 3 of 64 slots",
    )


def test_beyond_ten_the_last_says_how_many():
    record = gate_record(benchmarks=[failing(f"b{i}") for i in range(30)], verdict="fail")
    errors = [words for level, _, words in read(record) if level == "error"]
    assert len(errors) == SHOWN
    # 30 benchmarks and the run's own line; nine are shown.
    assert errors[-1] == "and 22 more like these; the report has them"
