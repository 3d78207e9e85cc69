"""A gate run as JUnit XML: what every CI service can show.

Suites: `run` with the verdict as one case, `outputs`, `counters`, `timing`; `truth` and `builds`
where the project has subjects and something to build. A failure is a
failure; what could not be decided is skipped with the reason, never passed; what says nothing about
the code (the harness failed, the run was ended) is an error.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal
from xml.etree import ElementTree as ET

from bench.command.words import percent
from bench.gate.record import (
    BenchmarkRecord,
    CounterRecord,
    GateRecord,
    OutputRecord,
    RunVerdict,
    TruthRecord,
)
from bench.gate.report.words import (
    bounds,
    count,
    counter_change,
    environments,
    launches,
    words_of_truth,
)

Kind = Literal["passed", "failure", "skipped", "error"]

_RUN: Final[dict[RunVerdict, Kind]] = {
    "pass": "passed",
    "fail": "failure",
    "wrong": "failure",
    "fails to build": "failure",
    "outputs differ": "failure",
    "inconclusive": "skipped",
    "harness failed": "error",
    "interrupted": "error",
}

_KINDS: Final[dict[bool, Kind]] = {False: "passed", True: "failure"}
"""By whether it failed."""

# Characters that no XML 1.0 document may hold, not even escaped.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(record: GateRecord) -> str:
    """A record as a JUnit XML document."""
    root = ET.Element("testsuites", name="pagedbench gate", time=f"{record.elapsed_s:.3f}")
    spent = _seconds_spent(record)
    found: dict[str, list[tuple[Any, ...]]] = {
        "run": [("verdict", _RUN[record.verdict], record.reason, record.elapsed_s)],
        "builds": [(b.side, _KINDS[b.failed], b.said, b.seconds) for b in record.builds],
        "truth": [(t.subject, *_of_truth(t)) for t in record.truth],
        "outputs": [(f"{o.benchmark} {o.name}", *_of_output(o)) for o in record.outputs],
        "counters": [(f"{c.benchmark} {c.name}", *_of_counter(c)) for c in record.counters],
        "timing": [(b.key, *_of_benchmark(b), spent.get(b.key, 0.0)) for b in record.benchmarks],
    }
    for name, cases in found.items():
        if not cases and name in ("builds", "truth"):
            continue
        suite = _suite(root, name, record)
        for case in cases:
            _case(suite, name, *case)
        _count(suite)
        times = [float(case.get("time", "0")) for case in suite.iter("testcase")]
        suite.set("time", f"{sum(times):.3f}")
    _count(root)
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
    suite: ET.Element, group: str, name: str, kind: Kind, words: str, elapsed_s: float = 0.0
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


def _of_truth(each: TruthRecord) -> tuple[Kind, str]:
    words = words_of_truth(each)
    if each.head.verdict == "wrong":
        return "failure", f"{words}\n{each.head.replay}".strip()
    return ("passed" if each.head.verdict == "right" else "skipped"), words


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
    spent: dict[str, float] = {}
    for launch in record.launches:
        for key in launch.order:
            spent[key] = spent.get(key, 0.0) + launch.elapsed_s / len(launch.order)
    return spent


def _count(suites: ET.Element) -> None:
    cases = list(suites.iter("testcase"))
    suites.set("tests", str(len(cases)))
    for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suites.set(plural, str(sum(case.find(kind) is not None for case in cases)))
