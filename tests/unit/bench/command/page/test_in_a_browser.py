"""Pages in a real Chromium: nothing is fetched, nothing is said on its console, keys do all.

The accessibility checker, axe-core, is fetched once with npm, by the digest in tests/data/axe.
"""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.fuzz.film import film
from bench.fuzz.page import trace_sheet
from bench.fuzz.record import Subject, Trace, read_trace
from helpers.places import ROOT
from paged.subject import paged_allocator
from reference.allocator.contract import capabilities_of_factory
from reference.allocator.programs import Pool, Program, Step
from scripts.asv_offline import VENDOR, OfflineError, fetch

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FROZEN = ROOT / "tests" / "frozen" / "records"
OTHERS = ROOT / "tests" / "data" / "pages"
KINDS = ("check-wrong", "compile", "fuzz-wrong", "gate", "race", "throughput", "waste-whatif")
RECORDS = [*(FROZEN / f"{kind}.json" for kind in KINDS), *sorted(OTHERS.glob("*.json"))]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as here:
        one = here.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """A page of the records of each kind, one with maps, and one with a film."""
    from bench.command.page.making import page

    folder = tmp_path_factory.mktemp("pages")
    run = CliRunner()
    records = list(map(str, RECORDS))
    assert run.invoke(app, ["report", *records, "-o", f"{folder}/all.html"]).exit_code == 0
    small = ["--requests", "30", "--slots", "2000", "--policy", "max/buddy", "--policy", "paged"]
    made = run.invoke(app, ["waste", "-q", *small, "--html", f"{folder}/maps.html"])
    assert made.exit_code == 0, made.output
    told = read_trace(ROOT / "docs" / "findings" / "sglang-pages-table-bd1b487e.json")
    steps = (
        Step("admit", "<b>one</b>", tokens=(1, 2, 3)),
        Step("fork", "two", parent="<b>one</b>"),
        Step("append", "two", tokens=(4,)),
        Step("free", "<b>one</b>"),
    )
    program = Program(Pool(num_blocks=4, block_size=2), steps)
    reel = film(paged_allocator, program, capabilities_of_factory(paged_allocator))
    assert len(reel.frames) > len(steps)
    trace = told.model_copy(update={"program": program, "allocator": Subject(name="<i>x</i>")})
    assert isinstance(trace, Trace)
    (folder / "film.html").write_text(page([trace_sheet(trace, reel, "pagedbench fuzz")]))
    return folder


@pytest.fixture(scope="module")
def axe() -> str:
    try:
        fetch(manifest=ROOT / "tests" / "data" / "axe")
    except OfflineError as reason:
        pytest.skip(str(reason))
    return (VENDOR / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def opened(browser, pages):
    """Opens a page; what its console says, and what it asks of anybody, fails the test."""
    contexts, trouble = [], []

    def open_it(name: str, **how):
        context = browser.new_context(**how)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda said: trouble.append(said.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        own = (pages / f"{name}.html").as_uri()
        tab.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((own, "data:")) else trouble.append(asked.url)
            ),
        )
        tab.goto(own)
        return tab

    yield open_it
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["all", "maps", "film"])
def test_page_fits_and_both_themes_can_be_read(opened, name, scheme, width) -> None:
    tab = opened(name, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    # A picture of the page is no plain sheet: text and drawings are there in either theme.
    assert len(tab.screenshot()) > 10_000


def test_film_steps_by_keys_and_begins_where_it_goes_wrong(opened) -> None:
    tab = opened("film")
    seen = tab.locator(".film output")
    frames = tab.locator(".frame").count()
    assert seen.inner_text() == f"{frames} of {frames}"
    tab.locator(".film .back").focus()
    tab.keyboard.press("Home")
    assert seen.inner_text() == f"1 of {frames}"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert seen.inner_text() == f"3 of {frames}"
    shown = tab.locator(".frame:visible")
    assert shown.count() == 1
    assert "fork two from <b>one</b>" in shown.inner_text()
    assert shown.locator(".block.shared").count() == 2
    tab.locator(".film .back").press("Enter")
    assert seen.inner_text() == f"2 of {frames}"


def test_map_says_what_lies_at_the_mark_and_zooms_by_keys(opened) -> None:
    tab = opened("maps")
    canvas = tab.locator(".map canvas").first
    canvas.focus()
    canvas.press("ArrowRight")
    said = tab.locator(".map output").first
    assert said.inner_text().startswith("Step ")
    assert "slots " in said.inner_text()
    before = canvas.evaluate("each => each.toDataURL()")
    for _ in range(4):
        canvas.press("+")
    assert canvas.evaluate("each => each.toDataURL()") != before
    canvas.press("Escape")
    assert canvas.evaluate("each => each.toDataURL()") == before


def test_copy_button_says_what_it_did(opened) -> None:
    button = opened("film").locator(".copy").first
    button.press("Enter")
    button.page.wait_for_function("document.querySelector('.copy').textContent != 'Copy'")
    assert button.inner_text() in {"Copied", "Press Ctrl+C"}


def test_each_control_is_reached_by_tab_and_summaries_open_by_keys(opened) -> None:
    tab = opened("all")
    controls = "a[href], button:not([hidden]), summary, canvas, pre, .scroll"
    wanted = tab.evaluate(f"""() => [...document.querySelectorAll('{controls}')]
        .filter((each) => each.checkVisibility()).length""")
    seen = tab.evaluate("() => { window.met = new Set(); return 0; }")
    for _ in range(wanted):
        tab.keyboard.press("Tab")
        seen = tab.evaluate("() => { met.add(document.activeElement); return met.size; }")
    assert seen == wanted > 20
    summary = tab.locator("details:not([open]) > summary").first
    summary.press("Enter")
    assert tab.locator("details[open]").count() >= 1


def test_on_paper_each_step_of_a_film_is_there_and_no_button(opened) -> None:
    tab = opened("film")
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.locator(".frame:visible").count() == tab.locator(".frame").count() > 1
    assert tab.locator("button:visible").count() == 0
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("name", ["all", "maps", "film"])
def test_without_scripts_verdicts_tables_and_pictures_are_there(opened, name) -> None:
    tab = opened(name, java_script_enabled=False)
    assert tab.locator(".verdict").first.is_visible()
    assert tab.locator(".copy:visible").count() == 0
    if name == "film":
        assert tab.locator(".frame:visible").count() == tab.locator(".frame").count() > 1
    else:
        assert tab.locator("figure svg").first.is_visible()
        assert tab.locator("table").count() > 1  # some are folded, which needs no script to open


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["all", "maps", "film"])
def test_accessibility_checker_finds_nothing_serious(opened, axe, name, scheme) -> None:
    tab = opened(name, bypass_csp=True, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    tab.evaluate(axe)
    # Of the other theme only the colours differ.
    rules = "{}" if scheme == "light" else "{runOnly: ['color-contrast']}"
    found = tab.evaluate(f"axe.run({rules})")["violations"]
    serious = [each for each in found if each["impact"] in {"serious", "critical"}]
    assert not serious, json.dumps([(each["id"], each["nodes"][0]["html"]) for each in serious])
