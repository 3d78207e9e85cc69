"""A gate run as JUnit XML: what every CI service can show.

Four suites: `run` with the verdict as one case, `outputs`, `counters`, `timing`. A failure is a
failure; what could not be decided is skipped with the reason, never passed; what says nothing about
the code (the harness failed, the run was ended) is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal
from xml.etree import ElementTree as ET

from bench.command.words import percent
from bench.gate.record import BenchmarkRecord, CounterRecord, GateRecord, OutputRecord, RunVerdict
from bench.gate.report.words import bounds, count, counter_change, environments, launches

Kind = Literal["passed", "failure", "skipped", "error"]

_RUN: Final[dict[RunVerdict, Kind]] = {
    "pass": "passed",
    "fail": "failure",
    "outputs differ": "failure",
    "inconclusive": "skipped",
    "harness failed": "error",
    "interrupted": "error",
}

# Characters that no XML 1.0 document may hold, not even escaped.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(record: GateRecord) -> str:
    """A record as a JUnit XML document."""
    root = ET.Element("testsuites", name="pagedbench gate", time=f"{record.elapsed_s:.3f}")
    run = _suite(root, "run", record)
    _case(run, "verdict", "run", _RUN[record.verdict], record.reason, record.elapsed_s)
    outputs = _suite(root, "outputs", record)
    for output in record.outputs:
        _case(outputs, f"{output.benchmark} {output.name}", "outputs", *_of_output(output))
    counters = _suite(root, "counters", record)
    for counter in record.counters:
        _case(counters, f"{counter.benchmark} {counter.name}", "counters", *_of_counter(counter))
    timing = _suite(root, "timing", record)
    spent = _seconds_spent(record)
    for benchmark in record.benchmarks:
        case = (*_of_benchmark(benchmark), spent.get(benchmark.key, 0.0))
        _case(timing, benchmark.key, "timing", *case)
    for suite in root:
        _tally(suite)
    _tally_all(root)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def clean(text: str) -> str:
    """Text without what XML cannot hold: an escape character becomes its Python escape."""
    return _NO_XML.sub(lambda match: ascii(match[0])[1:-1], text)


def _suite(root: ET.Element, name: str, record: GateRecord) -> ET.Element:
    suite = ET.SubElement(root, "testsuite", name=name, timestamp=clean(record.started_at))
    if name == "run":
        properties = ET.SubElement(suite, "properties")
        facts = {
            "base": record.base.commit or record.base.name,
            "head": record.head.commit or record.head.name,
            "exit code": str(record.exit_code),
            "environment": "; ".join(environments(record)),
        }
        for key, value in facts.items():
            ET.SubElement(properties, "property", name=key, value=clean(value))
    return suite


def _case(
    suite: ET.Element, name: str, group: str, kind: Kind, words: str, elapsed_s: float = 0.0
) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=f"pagedbench.gate.{group}",
        name=clean(name),
        time=f"{elapsed_s:.3f}",
    )
    if kind != "passed":
        ET.SubElement(case, kind, message=clean(words)).text = clean(words)
    elif words:
        ET.SubElement(case, "system-out").text = clean(words)


def _of_output(each: OutputRecord) -> tuple[Kind, str]:
    if each.verdict == "not there":
        return "skipped", each.note or "one side does not have it"
    words = each.note
    if each.difference is not None and each.limit is not None:
        words = f"off by {each.difference:.3g}, allowed {each.limit:.3g}. {words}".strip()
    return ("failure" if each.verdict == "differs" else "passed"), words or each.verdict


def _of_counter(each: CounterRecord) -> tuple[Kind, str]:
    if each.verdict == "not there":
        return "skipped", "one side does not have it"
    words = (
        f"{each.verdict}: {count(each.base, '')} to {count(each.head, each.unit)}, "
        f"{counter_change(each)}, allowed {100 * each.limit:.3g} %"
    )
    return ("failure" if each.fails else "passed"), words


def _of_benchmark(each: BenchmarkRecord) -> tuple[Kind, str]:
    words = each.reason
    if each.estimate is not None:
        words += (
            f" (head {percent(each.estimate.ratio)}, 95 % bounds {bounds(each.estimate)}, "
            f"{launches(each)} {'launch' if launches(each) == '1' else 'launches'})"
        )
    if each.verdict == "fail":
        return "failure", words
    return ("passed" if each.verdict == "pass" else "skipped"), words


def _seconds_spent(record: GateRecord) -> dict[str, float]:
    """Wall-clock seconds of the launches, shared evenly by the benchmarks of each."""
    spent: dict[str, float] = {}
    for launch in record.launches:
        for key in launch.order:
            spent[key] = spent.get(key, 0.0) + launch.elapsed_s / len(launch.order)
    return spent


def _tally(suite: ET.Element) -> None:
    cases = suite.findall("testcase")
    counts = {kind: sum(c.find(kind) is not None for c in cases) for kind in _COUNTED}
    suite.set("tests", str(len(cases)))
    for kind, plural in _COUNTED.items():
        suite.set(plural, str(counts[kind]))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


_COUNTED: Final = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def _tally_all(root: ET.Element) -> None:
    suites: Sequence[ET.Element] = root.findall("testsuite")
    for total in ("tests", *_COUNTED.values()):
        root.set(total, str(sum(int(suite.get(total, "0")) for suite in suites)))
