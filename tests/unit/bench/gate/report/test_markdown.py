"""The pull request's report, read by a markdown parser: structure, facts, nothing escapes."""

import re

import pytest
from markdown_it import MarkdownIt

from bench.gate.report.markdown import ROWS, code, markdown, plain
from helpers.gate_records import (
    HOSTILE,
    benchmark,
    contestant,
    gate_record,
    mixed_record,
    output,
    parameters,
)

TEXT = {"text", "code_inline", "text_special"}


def parse(text):
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)


def tables(text):
    """Every table as a list of rows of cells' texts."""
    found, in_cell = [], False
    for token in parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and in_cell:
            read = (child.content for child in token.children if child.type in TEXT)
            found[-1][-1].append("".join(read))
        in_cell = token.type in {"td_open", "th_open"}
    return found


def test_verdict_comes_first():
    heading, title, *_ = parse(markdown(mixed_record()))
    assert heading.tag == "h2"
    assert title.content == "pagedbench gate: fail"


def test_only_what_matters_is_in_sight():
    text = markdown(mixed_record())
    seen, _, folded = text.partition("<details>")
    rows = [row for table in tables(seen) for row in table]
    firsts = [row[0] for row in rows]
    assert any("prefill/paged-torch" in each for each in firsts)
    assert any("alloc/churn allocations" in each for each in firsts)
    assert not any(each == "alloc/churn" for each in firsts)
    assert any(row[0] == "alloc/churn" for table in tables(folded) for row in table)


def test_failed_benchmark_has_its_figures():
    (table,) = (t for t in tables(markdown(mixed_record())) if "why" in t[0])
    (row,) = (row for row in table if row[0] == "prefill/paged-torch")
    assert row[1:5] == ["+5.0 %", "+4.6 to +5.4 %", "9+6", "fail"]
    assert [row[4] for row in table[1:]] == ["fail", "inconclusive", "noisy", "faster"]


def test_what_did_not_run_is_one_line_for_each_reason():
    many = [
        benchmark(f"b{i}", samples=[], estimate=None, verdict="not run", reason="decided already")
        for i in range(20)
    ]
    text = markdown(gate_record(benchmarks=many, verdict="fail", exit_code=1))
    assert "Not run: b0, b1, b2, b3 and 16 more: decided already." in text
    assert "passed</summary>" not in text


def test_failed_counter_stands_before_one_within_its_limit():
    (table,) = (t for t in tables(markdown(mixed_record())) if t[0][0] == "counter")
    assert [(row[0], row[3], row[5]) for row in table[1:]] == [
        ("alloc/churn allocations", "+1.00 %", "fail"),
        ("alloc/churn reads", "+1.00 %", "worse"),
        ("alloc/churn peak", "-10.00 %", "better"),
    ]


def test_hostile_name_is_one_cell_and_no_markup():
    record = mixed_record(head=contestant("a" * 40, name=HOSTILE), reason=HOSTILE)
    tokens = parse(markdown(record))
    for table in tables(markdown(record)):
        assert len({len(row) for row in table}) == 1
    kinds = {child.type for token in tokens if token.children for child in token.children}
    assert not kinds & {"link_open", "image", "em_open"}
    html = [token.content for token in tokens if token.type == "html_block"]
    html += [c.content for t in tokens for c in t.children or () if c.type == "html_inline"]
    assert not [each for each in html if "script" in each]
    text = markdown(record)
    assert not set(text) - {"\n"} & {chr(c) for c in range(32)}
    outside = re.sub(r"(`+).*?\1", "", text)
    assert "@everyone" not in outside


@pytest.mark.parametrize("text", [HOSTILE, "``", "`", "", " ", "a`", "|", "\\|"])
def test_code_span_holds_the_whole_text(text):
    (paragraph,) = (token for token in parse(f"x {code(text)} y") if token.type == "inline")
    children = [child for child in paragraph.children if child.content.strip()]
    assert children[0].type == "text"
    assert children[-1].type == "text"
    assert sum(child.type == "code_inline" for child in paragraph.children) == 1


@pytest.mark.parametrize(
    "text",
    [
        "*a*",
        "_a_",
        "# a",
        "[a](b)",
        "<b>",
        "a | b",
        "~~a~~",
        "1 & 2",
        "- a",
        "+1 %",
        "1. a",
        "=",
        "$x$",
        "a@b",
        "see #12",
        "http://x.y",
    ],
)
def test_plain_text_is_read_back_as_it_was(text):
    (paragraph,) = (token for token in parse(plain(text)) if token.type == "inline")
    assert "".join(child.content for child in paragraph.children) == text


def test_everything_passed_is_short():
    seen, _, folded = markdown(gate_record()).partition("<details>")
    assert not tables(seen)
    assert "2 timed benchmarks passed" in folded


def test_noise_of_the_runner_is_beneath():
    last = markdown(gate_record()).rpartition("</details>")[2]
    assert "launches spread by 0.4 %" in last
    assert "load 1.4 (1.0 to 1.8)" in last
    assert "torch 2.13.0" in last


def test_output_that_differs_is_in_sight():
    record = gate_record(
        outputs=[output("differs", difference=0.5, limit=1e-6)],
        benchmarks=[],
        verdict="outputs differ",
        exit_code=5,
        reason="1 output differs",
    )
    (table,) = tables(markdown(record).partition("<details>")[0])
    assert table[1] == ["decode/paged-torch[block=16] out", "differs", "0.5", "1e-06"]


def test_report_of_a_large_suite_fits_into_a_comment():
    many = [
        benchmark(f"{HOSTILE}{i}" * 3, verdict="inconclusive", reason=HOSTILE * 5)
        for i in range(500)
    ]
    text = markdown(gate_record(benchmarks=many, verdict="inconclusive", exit_code=3))
    assert len(text) < 65_536
    assert f"and {500 - ROWS} more" in text


def test_self_test_says_that_it_is_one():
    planted = gate_record(mode="plant", parameters=parameters(plant=0.03))
    assert "head is the base with 3 % of extra work" in markdown(planted)
    assert "base and head are the same" in markdown(gate_record(mode="aa"))
    assert "self-test" not in markdown(gate_record())


def test_record_without_launches_has_a_report():
    record = gate_record(
        launches=[],
        benchmarks=[],
        counters=[],
        outputs=[],
        verdict="harness failed",
        exit_code=4,
        reason="base does not import: SyntaxError",
    )
    assert "harness failed" in markdown(record)
    assert "too few launches" in markdown(record)
