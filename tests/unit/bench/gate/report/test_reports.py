"""Reports of gate runs: as they are stored, and what holds for any record and any name.

`tests/snapshots/gate-*` has every report of some records. The laws: 80 columns, no markup and no
control character out of a name, one command a line, no more than GitHub takes, and counts that add
up.
"""

import re
from io import StringIO
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from bench.gate.record import NoiseRecord
from bench.gate.report.annotations import SHOWN, workflow_commands
from bench.gate.report.junit import junit
from bench.gate.report.markdown import ROWS, code, markdown, plain
from bench.gate.report.terminal import show
from helpers.gate_records import (
    HOSTILE,
    benchmark,
    contestant,
    environment,
    failing,
    gate_record,
    mixed_record,
    output,
    parameters,
)
from helpers.snapshots import assert_as_stored

NOISE = NoiseRecord(
    benchmark="alloc/churn",
    launches=40,
    launch_sd=0.012,
    detectable=0.03,
    found={"0.0": 0.001, "0.03": 0.97},
    quarantined=False,
)
NOTHING = {"benchmarks": [], "counters": [], "outputs": [], "launches": []}


def cut_short():
    untimed = {"samples": [], "estimate": None, "launch_sd": None, "verdict": "inconclusive"}
    reason = "the run ended before it was timed"
    some = [benchmark(f"b{number}", **untimed, reason=reason) for number in range(20)]
    return gate_record(
        benchmarks=some, launches=[], complete=False, verdict="inconclusive", exit_code=3
    )


RECORDS = {
    "one of everything": mixed_record(),
    "passes": gate_record(),
    "cut short": cut_short(),
    "outputs differ": gate_record(
        outputs=[output("differs", difference=0.5, limit=1e-6, note="3 of 64 slots")],
        benchmarks=[],
        verdict="outputs differ",
        exit_code=5,
        reason="out of decode differs",
    ),
    "no launch": gate_record(
        **NOTHING, verdict="harness failed", exit_code=4, reason="base does not import: SyntaxError"
    ),
    "planted": gate_record(
        mode="plant",
        parameters=parameters(plant=0.03),
        base=contestant(environment=environment(driver="580.1", cuda="13.0", device="H100")),
    ),
    "against itself": gate_record(
        mode="aa", noise=[NOISE, NOISE.model_copy(update={"detectable": None})]
    ),
}


def terminal(record, width=80):
    console = Console(file=StringIO(), width=width, force_terminal=False)
    show(record, console)
    return console.file.getvalue()


REPORTS = {
    "terminal.txt": terminal,
    "markdown.md": markdown,
    "junit.xml": junit,
    "annotations.txt": workflow_commands,
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_as_they_are_stored(name):
    texts = (f"<!-- {each} -->\n{REPORTS[name](record)}" for each, record in RECORDS.items())
    assert_as_stored(f"gate-{name}", "\n".join(texts))


def test_table_in_the_terminal_is_80_columns_wide_at_most():
    words = ("pass", "fail", "inconclusive", "noisy", "faster")
    rows = [line for line in terminal(mixed_record()).splitlines() if line.strip().endswith(words)]
    assert len(rows) >= len(words)
    assert max(map(cell_len, rows)) <= 80


def test_hostile_name_in_the_terminal_is_text():
    text = terminal(mixed_record(reason=HOSTILE), width=400)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text


def parse(text):
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)


def tables(text):
    """Every table of a markdown text as a list of rows, by their number of cells."""
    found = []
    for token in parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append(0)
        elif token.type in {"td_open", "th_open"}:
            found[-1][-1] += 1
    return found


def test_hostile_name_in_markdown_is_one_cell_and_no_markup():
    record = mixed_record(head=contestant("a" * 40, name=HOSTILE), reason=HOSTILE)
    text = markdown(record)
    tokens = parse(text)
    assert tables(text)
    assert [len(set(table)) for table in tables(text)] == [1] * len(tables(text))
    kinds = {child.type for token in tokens if token.children for child in token.children}
    assert not kinds & {"link_open", "image", "em_open"}
    html = [token.content for token in tokens if token.type == "html_block"]
    html += [c.content for t in tokens for c in t.children or () if c.type == "html_inline"]
    assert not [each for each in html if "script" in each]
    assert not set(text) - {"\n"} & {chr(c) for c in range(32)}
    assert "@everyone" not in re.sub(r"(`+).*?\1", "", text)


@pytest.mark.parametrize("text", [HOSTILE, "``", "`", "", " ", "a`", "|", "\\|"])
def test_code_span_holds_the_whole_text(text):
    (paragraph,) = (token for token in parse(f"x {code(text)} y") if token.type == "inline")
    children = [child for child in paragraph.children if child.content.strip()]
    assert children[0].type == "text"
    assert children[-1].type == "text"
    assert sum(child.type == "code_inline" for child in paragraph.children) == 1


MARKUP = (
    *("*a*", "_a_", "# a", "[a](b)", "<b>", "a | b", "~~a~~", "1 & 2", "- a", "+1 %", "1. a"),
    *("=", "$x$", "a@b", "see #12", "http://x.y"),
)


@pytest.mark.parametrize("text", MARKUP)
def test_plain_text_is_read_back_as_it_was(text):
    (paragraph,) = (token for token in parse(plain(text)) if token.type == "inline")
    assert "".join(child.content for child in paragraph.children) == text


def test_report_of_a_large_suite_fits_into_a_comment():
    many = [
        benchmark(f"{HOSTILE}{i}" * 3, verdict="inconclusive", reason=HOSTILE * 5)
        for i in range(500)
    ]
    text = markdown(gate_record(benchmarks=many, verdict="inconclusive", exit_code=3))
    assert len(text) < 65_536
    assert f"and {500 - ROWS} more" in text


def kind(case):
    kinds = [child.tag for child in case if child.tag != "system-out"]
    assert len(kinds) <= 1
    return kinds[0] if kinds else "passed"


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("pass", "passed"),
        ("fail", "failure"),
        ("outputs differ", "failure"),
        ("inconclusive", "skipped"),
        ("harness failed", "error"),
        ("interrupted", "error"),
    ],
)
def test_run_is_a_case_of_its_own(verdict, expected):
    root = ET.fromstring(junit(gate_record(**NOTHING, verdict=verdict)))
    assert [kind(case) for case in root.iter("testcase")] == [expected]


def test_counts_and_seconds_of_the_suites_add_up():
    record = mixed_record()
    root = ET.fromstring(junit(record))
    for suite in root:
        inside = suite.findall("testcase")
        assert int(suite.get("tests")) == len(inside)
        for tag, name in (("failure", "failures"), ("skipped", "skipped"), ("error", "errors")):
            assert int(suite.get(name)) == sum(kind(case) == tag for case in inside)
    assert int(root.get("failures")) == sum(int(suite.get("failures")) for suite in root) == 3
    kept = (record.benchmarks, record.counters, record.outputs)
    assert len(list(root.iter("testcase"))) == 1 + sum(map(len, kept))
    (timing,) = (suite for suite in root if suite.get("name") == "timing")
    launched = sum(launch.elapsed_s for launch in record.launches)
    assert float(timing.get("time")) == pytest.approx(launched, abs=0.01)


def test_hostile_name_in_junit_stays_a_name():
    root = ET.fromstring(junit(gate_record(benchmarks=[benchmark(HOSTILE, reason=HOSTILE)])))
    (name,) = (c.get("name") for c in root.iter("testcase") if "timing" in c.get("classname"))
    assert "<script>" in name
    assert "\\x1b" in name
    assert "\x1b" not in name


COMMAND = re.compile(r"^::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)$")


def unescape(text):
    for escaped, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(escaped, char)
    return text


def commands(record):
    matches = [COMMAND.match(line) for line in workflow_commands(record).split("\n")[:-1]]
    assert None not in matches
    return [(m[1], unescape(m[2]), unescape(m[3])) for m in matches]


def test_every_annotation_is_one_line_the_worst_first_and_a_name_stays_one():
    found = commands(mixed_record())
    levels = [level for level, _, _ in found]
    assert levels == sorted(levels, key=["error", "warning", "notice"].index)
    said = HOSTILE.replace("\x1b", "\\x1b")
    (hostile,) = (each for each in found if each[1] == said)
    assert hostile[0] == "warning"
    assert said in hostile[2]


def test_beyond_ten_annotations_the_last_says_how_many():
    record = gate_record(benchmarks=[failing(f"b{i}") for i in range(30)], verdict="fail")
    errors = [words for level, _, words in commands(record) if level == "error"]
    assert len(errors) == SHOWN
    # 30 benchmarks and the run's own line; nine are shown.
    assert errors[-1] == "and 22 more like these; the report has them"
