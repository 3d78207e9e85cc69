"""JUnit XML, read back: what failed fails, what is not known is skipped, and nothing is lost."""

from xml.etree import ElementTree as ET

import pytest

from bench.gate.report.junit import junit
from helpers.gate_records import (
    HOSTILE,
    benchmark,
    gate_record,
    mixed_record,
    output,
)


def cases(record):
    root = ET.fromstring(junit(record))
    return {
        (case.get("classname").rpartition(".")[2], case.get("name")): case
        for case in root.iter("testcase")
    }


def kind(case):
    kinds = [child.tag for child in case if child.tag != "system-out"]
    assert len(kinds) <= 1
    return kinds[0] if kinds else "passed"


def test_each_benchmark_counter_and_output_is_a_case():
    record = mixed_record()
    found = cases(record)
    assert len(found) == 1 + len(record.benchmarks) + len(record.counters) + 1
    # Two outputs of one name are one key here, and two cases in the file.
    assert len(list(ET.fromstring(junit(record)).iter("testcase"))) == len(found) + 1


def test_verdicts_become_what_a_ci_service_shows():
    found = cases(mixed_record())
    assert kind(found["timing", "prefill/paged-torch"]) == "failure"
    assert kind(found["timing", "copy/blocks"]) == "skipped"
    assert found["timing", "copy/blocks"][0].get("message").startswith("40 launches: open")
    assert kind(found["timing", "new/one"]) == "skipped"
    assert kind(found["timing", "table/build"]) == "passed"
    assert kind(found["counters", "alloc/churn allocations"]) == "failure"
    assert kind(found["counters", "alloc/churn reads"]) == "passed"
    assert kind(found["counters", "new/one moved"]) == "skipped"
    assert kind(found["run", "verdict"]) == "failure"


def test_failure_says_by_how_much():
    message = cases(mixed_record())["counters", "alloc/churn allocations"][0].get("message")
    assert message == "worse: 1,000 to 1,010 slots, +1.00 %, allowed 0 %"


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
    record = gate_record(verdict=verdict, benchmarks=[], counters=[], outputs=[], launches=[])
    found = cases(record)
    assert list(found) == [("run", "verdict")]
    assert kind(found["run", "verdict"]) == expected


def test_counts_of_the_suites_add_up():
    root = ET.fromstring(junit(mixed_record()))
    for suite in root:
        inside = suite.findall("testcase")
        assert int(suite.get("tests")) == len(inside)
        for tag, name in (("failure", "failures"), ("skipped", "skipped"), ("error", "errors")):
            assert int(suite.get(name)) == sum(case.find(tag) is not None for case in inside)
    assert int(root.get("failures")) == sum(int(suite.get("failures")) for suite in root) == 3


def test_hostile_name_stays_a_name():
    found = cases(gate_record(benchmarks=[benchmark(HOSTILE, reason=HOSTILE)]))
    (name,) = (name for group, name in found if group == "timing")
    assert "<script>" in name
    assert "\\x1b" in name
    assert "\x1b" not in name


def test_output_that_differs_says_how_far():
    found = cases(gate_record(outputs=[output("differs", difference=0.25, limit=1e-6, note="nan")]))
    failure = found["outputs", "decode/paged-torch[block=16] out"][0]
    assert failure.tag == "failure"
    assert failure.get("message") == "off by 0.25, allowed 1e-06. nan"


def test_seconds_are_those_of_the_launches():
    record = gate_record()
    root = ET.fromstring(junit(record))
    (timing,) = (suite for suite in root if suite.get("name") == "timing")
    launched = sum(launch.elapsed_s for launch in record.launches)
    assert float(timing.get("time")) == pytest.approx(launched)
