"""A record of each kind as a page: one file, its own script only, and names that stay text."""

import base64
import hashlib
import json
import re
import resource
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.command.page.asv import link, link_to
from bench.command.page.making import page
from bench.command.page.parts import Cell, Command, Lines, Part, Sheet, Table, Verbatim
from bench.command.page.pictures import as_svg, new_figure
from helpers.places import ROOT

RECORDS = ROOT / "tests" / "frozen" / "records"
TRACE = ROOT / "docs" / "findings" / "sglang-pages-table-bd1b487e.json"
VERDICTS = {
    "check": "torch, triton: right in ",
    "check-wrong": "/example/wrong.py:attention is wrong: truth.",
    "compile": "3 results for sm_90; none worse than triton-3.9.0.json.",
    "fuzz": "paged: no finding in 100 programs.",
    "fuzz-wrong": "/example/pool.py:make is wrong: drain, conservation, refusal, answer; 7",
    "gate": "inconclusive: not decided: allocator/churn[caching=off]",
    "race": "paged",
    "throughput": "1 point timed, every answer right",
    "waste": "paged",
    "waste-figure": "Waste of one block table for layers that keep different tokens: reproduced",
    "waste-whatif": "Keep it: nothing that was tried gives back more than",
}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}$x^2$\x1b[31m&\u202e"


class Page(HTMLParser):
    """What a browser would make of it, as far as these tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: dict[str, list[str]] = {}
        self.text = ""
        self._open = [""]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        self.said.setdefault(self._open[-1], []).append(data)
        self.text += data if self._open[-1] not in {"script", "style"} else ""

    @property
    def verdicts(self) -> list[str]:
        return [a["class"] for tag, a in self.tags if tag == "article" and "class" in a]


def made(tmp_path: Path, *arguments: str | Path) -> str:
    file = tmp_path / "report.html"
    run = CliRunner().invoke(app, ["report", *map(str, arguments), "-o", str(file)])
    assert run.exit_code == 0, run.output
    return file.read_text(encoding="utf-8")


def is_one_file(text: str) -> Page:
    """Nothing in it is fetched, and nothing runs that its policy does not name."""
    found = Page(text)
    for tag, given in found.tags:
        assert "style" not in given, "the policy lets no inline style through"
        assert not [name for name in given if name.startswith("on")]
        for name in ("src", "href", "data", "action", "xlink:href"):
            assert (given.get(name) or "#").startswith(("#", "data:image/png")), (tag, given)
    (policy,) = [a["content"] for _, a in found.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        whole = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(whole) == 1
        digest = base64.b64encode(hashlib.sha256(whole[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    ids = [given["id"] for _, given in found.tags if "id" in given]
    assert len(ids) == len(set(ids))
    return found


@pytest.mark.parametrize("name", VERDICTS)
def test_record_of_each_kind_is_a_page_with_its_verdict(tmp_path: Path, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    text = made(tmp_path, RECORDS / f"{name}.json")
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = is_one_file(text)
    assert VERDICTS[name] in found.text
    assert "table" in {tag for tag, _ in found.tags} or "pre" in {tag for tag, _ in found.tags}
    assert len(text) < 1.5e6
    assert after.ru_utime - before.ru_utime < 5, "a bar of 3 s, and room for a cold import"


def test_several_records_stand_on_one_page_the_wrong_ones_first(tmp_path: Path) -> None:
    names = ("waste", "fuzz", "gate", "check-wrong")
    found = is_one_file(made(tmp_path, *(RECORDS / f"{name}.json" for name in names)))
    assert found.verdicts == ["bad", "unsure", "", "good"]
    assert len([tag for tag, given in found.tags if given.get("class") == "copy"]) >= 5


def hostile_sheet() -> Sheet:
    return Sheet(
        kind="check",
        name=HOSTILE,
        verdict=HOSTILE,
        tone="bad",
        parts=[
            Part(
                title=HOSTILE,
                pieces=[
                    Table.of(HOSTILE, [HOSTILE], [[Cell(HOSTILE, "bad", HOSTILE)]]),
                    Lines([HOSTILE]),
                    Verbatim(HOSTILE),
                    Command(HOSTILE),
                ],
            )
        ],
        facts={HOSTILE: HOSTILE},
    )


def test_hostile_names_stay_text() -> None:
    found = is_one_file(page([hostile_sheet(), hostile_sheet()]))
    assert "img" not in {tag for tag, _ in found.tags}
    assert found.text.count(HOSTILE.replace("\x1b", "")[:30]) >= 9
    assert "49" not in found.text


def test_hostile_names_in_a_record_stay_text(tmp_path: Path) -> None:
    record = json.loads((RECORDS / "gate.json").read_text())
    for each in (*record["benchmarks"], *record["counters"]):
        each["key" if "key" in each else "benchmark"] = HOSTILE
    (tmp_path / "gate.json").write_text(json.dumps(record))
    found = is_one_file(made(tmp_path, tmp_path / "gate.json"))
    assert "img" not in {tag for tag, _ in found.tags}


def test_page_is_caught_that_fetches_or_runs_something_else() -> None:
    whole = page([hostile_sheet()])
    for planted in (
        '<img src="https://example.org/x.png">',
        '<p style="color: red">',
        '<p onclick="x()">',
        "<script>x()</script>",
    ):
        with pytest.raises(AssertionError):
            is_one_file(whole.replace("<main>", f"<main>{planted}"))


def test_picture_has_no_styles_and_the_text_has_the_pages_colour() -> None:
    figure = new_figure(5.2, 3)
    axes = figure.subplots()
    axes.plot([1, 2], color="#000000", label=HOSTILE[:12] + "$x$")
    axes.legend()
    one, other = as_svg(figure, said=HOSTILE), as_svg(figure, said="again")
    assert "style" not in one
    assert 'stroke="currentColor"' in one
    assert not set(re.findall(r' id="([^"]+)"', one)) & set(re.findall(r' id="([^"]+)"', other))
    assert set(re.findall(r"#(f\d+-[^)\"]+)", one)) <= set(re.findall(r' id="([^"]+)"', one))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no JSON"),
        ("{}", "no record of pagedbench; name a file that --json wrote"),
        ("[1]", "no record of pagedbench"),
        ('{"kernels": [], "decode": 1}', "it is not as this pagedbench writes it"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "x.json").write_text(content)
    run = CliRunner().invoke(app, ["report", str(tmp_path / "x.json"), "-o", f"{tmp_path}/r.html"])
    assert run.exit_code == 2
    assert said in " ".join(run.output.split())
    assert not (tmp_path / "r.html").exists()


def test_saved_finding_that_nobody_named_starts_no_code(tmp_path: Path) -> None:
    assert "holds no film" in is_one_file(made(tmp_path, TRACE)).text


def test_asv_page_and_this_one_link_to_each_other_once(tmp_path: Path) -> None:
    (tmp_path / "html").mkdir()
    index = tmp_path / "html" / "index.html"
    index.write_text("<html><body><p>asv</p></body></html>")
    report = tmp_path / "a b.html"
    link(index, report)
    link(index, report)
    assert index.read_text().count('<a href="../a%20b.html">') == 1
    assert link_to(index, report) == "html/index.html"
    text = made(tmp_path, RECORDS / "race.json", "--asv", tmp_path / "html")
    assert '<a href="html/index.html">' in text
    assert "report.html" in index.read_text()
