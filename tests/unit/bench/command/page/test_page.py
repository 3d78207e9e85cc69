"""A record of each kind as a page: one file, its own script only, and names that stay text."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.check.drawing import drawing
from bench.check.page import _lost, drawn
from bench.check.record import Failure
from bench.cli import app
from bench.command.page.asv import link, link_to
from bench.command.page.making import page, pagedbench_version
from bench.command.page.parts import Cell, Command, Film, Lines, Part, Sheet, Table, Verbatim
from bench.command.page.pictures import as_svg, new_figure
from bench.fuzz.film import Reel, Seen, film
from bench.fuzz.page import trace_sheet
from bench.fuzz.record import read_trace
from bench.gate.page import sheet as gate_sheet
from bench.waste.page import runs_of
from bench.waste.policies import parse_policy
from bench.waste.pool_map import PoolMap
from helpers.gate_records import mixed_record
from helpers.places import ROOT
from paged.allocator import PagedAllocator
from paged.attention import paged_attention
from paged.subject import PagedSubject, paged_allocator
from reference.allocator.contract import capabilities_of_factory
from reference.allocator.programs import Pool, Program, Step
from reference.attention.checks import judge
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.truth import attend
from reference.attention.verdict import Status, Verdict

FROZEN = ROOT / "tests" / "frozen" / "records"
OTHERS = ROOT / "tests" / "data" / "pages"
TRACE = ROOT / "docs" / "findings" / "sglang-pages-table-bd1b487e.json"
VERDICTS = {
    "beside": "toy 1 serves 0.8571 requests a second, ours 0.8936 (+4.3 %): alpaca-fit:rate=1",
    "chain": "v2 against v1: pass; v3 against v1: pass",
    "check": "torch, triton: right in ",
    "check-wrong": "/example/wrong.py:attention is wrong: truth.",
    "compile": "3 results for sm_90; none worse than triton-3.9.0.json.",
    "engines": "window: vllm 0.1.0 to 0.2.0, gone in 0.3.0.",
    "fuzz": "paged: no finding in 100 programs.",
    "fuzz-wrong": "/example/pool.py:make is wrong: drain, conservation, refusal, answer; 7",
    "gate": "inconclusive: not decided: allocator/churn[caching=off]",
    "kernels": "truth: mine.py:attention 3.8.0, gone in 3.9.0.",
    "race": "paged",
    "throughput": "1 point timed, every answer right",
    "waste": "paged",
    "waste-figure": "Waste of one block table for layers that keep different tokens: reproduced",
    "waste-whatif": "Keep it: nothing that was tried gives back more than",
}
DRAWN = {
    "beside": "Requests that run and wait",
    "chain": "Time of each benchmark in each release",
    "compile": "Registers of a thread against occupancy",
    "engines": "Bytecodes for each operation, and operations per CPU-second",
    "gate": "each launch as a point",
    "kernels": "Registers of a thread, and instructions of the main loop for a KV token",
    "throughput": "Time of each subject over that of another on the same point",
    "waste": "max/buddy: 14.4% of the pool holds tokens; ",
    "waste-whatif": "What each change would give, the best first.",
}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}$x^2$\x1b[31m&\u202e"


def stored(name: str) -> Path:
    """A record that a command wrote."""
    return next(each for of in (FROZEN, OTHERS) if (each := of / f"{name}.json").is_file())


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
    text = made(tmp_path, stored(name))
    found = is_one_file(text)
    assert VERDICTS[name] in found.text
    assert DRAWN.get(name, "") in found.text
    assert "table" in {tag for tag, _ in found.tags} or "pre" in {tag for tag, _ in found.tags}
    assert len(text) < 1.5e6


def test_several_records_stand_on_one_page_the_wrong_ones_first(tmp_path: Path) -> None:
    names = ("waste", "fuzz", "gate", "check-wrong")
    found = is_one_file(made(tmp_path, *(stored(name) for name in names)))
    assert found.verdicts == ["bad", "unsure", "", "good"]
    assert len([tag for tag, given in found.tags if given.get("class") == "copy"]) >= 5


def test_report_refuses_in_a_sentence_and_keeps_its_records(tmp_path: Path) -> None:
    record = tmp_path / "race.json"
    record.write_text(stored("race").read_text())
    bent = json.loads(stored("check-wrong").read_text())
    bent["kernels"][0]["coverage"][1]["cells"].popitem()
    (tmp_path / "bent.json").write_text(json.dumps(bent))
    page_of = ["-o", str(tmp_path / "page.html")]
    for arguments, words in (
        ([record, "-o", str(record)], "that is a record of the page"),
        ([tmp_path / "none.json", *page_of], "none.json: No such file or directory; name a record"),
        ([tmp_path / "bent.json", *page_of], "its fields do not fit each other"),
        ([stored("fuzz"), "--allocator", "my.py:make", *page_of], "no finding given is of it"),
    ):
        run = CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "300"})
        assert run.exit_code == 2, run.output
        assert words in run.output
        assert "no JSON" not in run.output
    assert record.read_text() == stored("race").read_text()
    assert not (tmp_path / "page.html").exists()


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
    assert f"Made by pagedbench {pagedbench_version()}." in found.text
    assert found.text.count(HOSTILE.replace("\x1b", "")[:30]) >= 9
    assert "49" not in found.text


def test_hostile_names_in_a_gate_stay_text_and_everything_that_matters_is_there() -> None:
    found = is_one_file(page([gate_sheet(mixed_record())]))
    assert not {tag for tag, _ in found.tags} & {"img", "iframe", "b"}
    for title in ("Time, head over base", "Counters that changed", "Outputs that are not"):
        assert title in found.text


def test_hit_curves_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "hits.html"
    stream = ["--stream", "sharegpt-fit:system=512,prompts=4", "--requests", "20"]
    run = CliRunner().invoke(app, ["waste", "-q", "--hits", *stream, "--html", str(file)])
    assert run.exit_code == 0, run.output
    assert "A prefix cache would have found: " in is_one_file(file.read_text()).text


def test_diagnosis_has_its_series_on_a_page_of_the_command_and_of_the_record(
    tmp_path: Path,
) -> None:
    incident = ROOT / "tests" / "data" / "incidents" / "pool_too_small-0"
    files = tmp_path / "a.html", tmp_path / "a.json"
    options = ["--html", str(files[0]), "--json", str(files[1])]
    run = CliRunner().invoke(app, ["diagnose", str(incident), *options])
    assert run.exit_code == 1, run.output
    text = is_one_file(files[0].read_text()).text
    assert "found: the pool is too small" in text
    assert "what decides; thick: since when" in text
    record = json.loads(files[1].read_text())
    assert record["pagedbench"] == pagedbench_version()
    assert "what decides; thick: since when" in is_one_file(made(tmp_path, files[1])).text
    # As it was written before series were kept.
    files[1].write_text(json.dumps({**record, "series": []}))
    assert "The record holds no series" in is_one_file(made(tmp_path, files[1])).text


class GivesBackTooEarly(PagedSubject):
    """An allocator whose free gives back what a fork still reads."""

    def __init__(self, allocator: PagedAllocator) -> None:
        super().__init__(allocator)
        self.free = self._free

    def _free(self, sequence: str) -> None:
        for child in [name for name in ("child",) if sequence == "parent"]:
            self.allocator.free(child)
        self.allocator.free(sequence)


def test_film_shows_the_step_in_which_a_block_goes_too_early() -> None:
    program = Program(
        Pool(num_blocks=3, block_size=2),
        (
            Step("admit", "parent", tokens=(1, 2, 3)),
            Step("fork", "child", parent="parent"),
            Step("free", "parent"),
        ),
    )
    right = film(paged_allocator, program, capabilities_of_factory(paged_allocator))
    before, after = right.frames[2:4]
    assert [each.step for each in (before, after)] == ["fork child from parent", "free parent"]
    assert before.tables["parent"] == before.tables["child"] == after.tables["child"]
    assert after.tables.keys() == {"child"}
    assert set(after.written.values()) == {"child"}

    def early(num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None):
        made = paged_allocator(num_blocks, block_size, prefix_caching=False, window=window)
        return GivesBackTooEarly(made.allocator)

    wrong = film(early, program, capabilities_of_factory(paged_allocator))
    assert wrong.frames[-1].step == "free parent"
    assert wrong.frames[:3] == right.frames[:3]


class CountsAsFree(PagedSubject):
    """Free counts every block of the sequence as free, those that a fork still has, too."""

    def __init__(self, allocator: PagedAllocator) -> None:
        super().__init__(allocator)
        self.more = 0
        self.free, self.counts = self._free, self._counts

    def _free(self, sequence: str) -> None:
        self.more = len(self.allocator.block_table([sequence])[0])
        self.allocator.free(sequence)

    def _counts(self) -> tuple[int, int, int]:
        free, idle, used = super().counts()
        return free + self.more, idle, used - self.more


def test_page_says_which_block_was_freed_too_early_by_whom_and_who_has_it() -> None:
    def early(num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None):
        made = paged_allocator(num_blocks, block_size, prefix_caching=False, window=window)
        return CountsAsFree(made.allocator)

    steps = (
        Step("admit", "parent", tokens=(1, 2)),
        Step("fork", "child", parent="parent"),
        Step("free", "parent"),
    )
    program = Program(Pool(num_blocks=3, block_size=2), steps)
    for factory, said in ((early, True), (paged_allocator, False)):
        reel = film(factory, program, capabilities_of_factory(paged_allocator))
        trace = read_trace(TRACE).model_copy(update={"program": program})
        found = is_one_file(page([trace_sheet(trace, reel, "again")]))
        words = "Freed too early: parent gives back block 0 in step 3 (free parent), while the "
        words += "table of child still has it."
        assert (words in found.text) is said
        assert ("given back, and still in a table" in found.text) is said


@pytest.mark.parametrize(
    ("tables", "free", "words"),
    [
        (
            (
                {"s1": [1, 0]},
                {"s1": [1, 0], "s2": [1, 0]},
                {"s2": [1, 0]},
                {"s2": [1, 0], "s4": [0]},
            ),
            0,
            "Freed too early: s1 gives back block 0 in step 3 (step 3), while the table of s2 "
            "still has it; step 4 hands it to s4.",
        ),
        (
            ({"s2": [1, 0]}, {"s2": [1, 0], "s4": [0]}),
            0,
            "Freed too early: step 2 hands block 0 to s4, while the table of s2 still has it.",
        ),
        (
            ({"s1": [1]}, {"s1": [1, 0]}),
            1,
            "After step 2 (step 2) 1 of 2 blocks count as free, while tables still have 2 (0, 1): "
            "one of them was freed too early, or a free one is counted twice.",
        ),
        (({"s2": [0]}, {"s2": [0], "s4": [0]}, {"s2": [0], "s4": [0]}), 0, ""),
    ],
)
def test_page_says_why_a_block_has_two_owners(tables, free, words) -> None:
    frames = [
        Seen(
            step=f"step {at}",
            tables=each,
            tokens={},
            idle=[],
            free=free if at == len(tables) else 0,
        )
        for at, each in enumerate(({}, *tables))
    ]
    told = read_trace(TRACE)
    told = told.model_copy(
        update={
            "program": Program(
                Pool(num_blocks=2, block_size=1, prefix_caching=False), told.program.steps
            ),
            "message": "s4 writes to slot 0 of block 0, which s2 holds too",
        }
    )
    found = page([trace_sheet(told, Reel(frames=frames), "again")])
    assert words in found
    assert words or "too early" not in found


def test_map_of_20_000_steps_is_small_enough() -> None:
    steps, rows = 20_000, 50
    rng = np.random.default_rng(0)
    changes = np.cumsum(rng.random((rows, steps)) < 0.02, axis=1)  # one in 50 steps, as requests do
    pool = PoolMap(
        policy=parse_policy("paged:block=16"),
        slots=rows,
        slots_per_row=1,
        steps=np.arange(steps),
        classes=(changes % 2).astype(np.uint8),
        owners=((changes * 7919) % 300).astype(np.int32),
        counts=np.zeros((steps, 7), np.int64),
    )
    assert 1e4 < len(json.dumps(runs_of(pool))) < 6e6 / 10  # a tenth of a map's rows


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
    text = made(tmp_path, stored("race"), "--asv", tmp_path / "html")
    assert '<a href="html/index.html">' in text
    assert "report.html" in index.read_text()


def failed(spec: str, *findings: str) -> Failure:
    """A finding as a search hands it on, of a kernel that is asked no more."""
    problem = AttentionProblem.parse(spec)
    found = Failure.of(problem, Verdict("truth", Status.FAILED, findings))
    return found.model_copy(update={"drawing": drawing(problem, findings)})


def problem_drawn(spec: str, *findings: str) -> Film:
    (film_of,) = (each for each in drawn(failed(spec, *findings)) if isinstance(each, Film))
    return film_of


@pytest.fixture(scope="module")
def lost() -> Failure:
    """Of a kernel that forgets the only key in a block."""
    problem = AttentionProblem.parse("(q1 k5) (q1 k9) d16 b8 fp32")
    placement = place(make_inputs(problem))
    batch = placement.batch
    paged_attention(batch.replace(seq_lens=batch.seq_lens - (batch.seq_lens % 8 == 1).int()))
    findings = tuple(judge(problem, attend(make_inputs(problem)), placement))
    found = Failure.of(problem, Verdict("truth", Status.FAILED, findings))
    return found.model_copy(update={"drawing": drawing(problem, findings, batch)})


def test_rows_of_a_finding_have_their_errors_and_the_key_that_was_lost(lost: Failure) -> None:
    made = lost.drawing
    assert made is not None
    assert made.lost == (1, 8)
    assert made.sees == [(0, 8)]
    right, wrong = made.errors
    assert right <= made.allowed[0]
    assert wrong > made.allowed[1]


def test_a_block_that_was_lost_is_named(lost: Failure) -> None:
    run = {"lost": (1, 0), "lost_last": 7, "blocks": [[4], [9, 2]]}
    assert lost.drawing is not None
    failure = lost.model_copy(update={"drawing": lost.drawing.model_copy(update=run)})
    assert _lost(failure).startswith(
        "The keys at positions 0 to 7 of sequence 1 are lost, in block 9. The sequence has 9 tokens"
    )
    (drawing_of, *_) = drawn(failure)
    assert isinstance(drawing_of, Film)
    assert [block.state for block in drawing_of.frames[0].strips[1].blocks] == ["lost", "seen"]


def test_record_is_a_page_without_torch_triton_and_scipy(tmp_path: Path, lost: Failure) -> None:
    given = json.loads(stored("check-wrong").read_text())
    given["kernels"][0]["failures"] = [lost.model_dump(mode="json")]
    (tmp_path / "x.json").write_text(json.dumps(given))
    told = """
import json, sys
from pagedbench.__main__ import main
try:
    main()
finally:
    print(sorted({"torch", "triton", "scipy", "jax"} & sys.modules.keys()))
"""
    records = [str(stored(name)) for name in ("fuzz", "gate", "waste")]
    ran = subprocess.run(
        [sys.executable, "-c", told, "report", *records, f"{tmp_path}/x.json",
         "-o", f"{tmp_path}/r.html"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert ran.stdout.splitlines()[-1] == "[]"
    found = is_one_file((tmp_path / "r.html").read_text())
    assert "The key at position 8 of sequence 1 is lost: offset 0 of block" in found.text
    assert "Error of each row against its tolerance: 1 of 2 beyond it." in found.text


def test_problem_is_drawn_with_the_keys_to_be_seen_and_the_access_that_was_not_its_own() -> None:
    spec = "(q1 k5) (q2 k20) d16 b8 fp32 window=4"
    film_of = problem_drawn(spec, "out[token 2, head 0] is off")
    first, second = film_of.frames[0].strips
    assert [block.state for block in first.blocks] == ["unseen"]
    assert [block.state for block in second.blocks] == ["unseen", "unseen", "seen"]
    assert second.note.endswith("it is to see keys 16 to 19: 4 of 20")
    said = "offset 1: token 9 of sequence 1, the program works for sequence 0"
    film_of = problem_drawn(spec, said)
    assert [block.state for block in film_of.frames[0].strips[1].blocks][1] == "lost"
    assert film_of.legend[-1] == ("lost", "touched, and not its own")
