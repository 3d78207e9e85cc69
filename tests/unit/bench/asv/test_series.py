"""Records in asv's own format: read back by asv, published by it, and its page opened offline."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import asv
import pytest
from asv.results import Results

from bench.asv.series import (
    ExportError,
    add_definitions,
    export,
    gate_definitions,
    machine_of,
    series_name,
)
from helpers.asv_project import AsvProject, make_project
from helpers.gate_records import (
    HOSTILE,
    benchmark,
    contestant,
    counter,
    environment,
    gate_record,
    samples,
)
from scripts.asv_offline import VENDOR, OfflineError, make_offline, read_manifest

DECODE = "gate.decode.paged-torch_block_16.time"
WASTE = "gate.waste.blocks.wasted_slots"
THROUGHPUT = "gate_more.decode.paged-torch_block_16.throughput"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def one_pair(before: str, after: str, *, base_s=5e-3, slowdown=0.0, wasted=(1000, 1000), **changes):
    """A gate of two commits: one timed benchmark, its bytes, and a counter of waste."""
    usual = {
        "base": contestant(before),
        "head": contestant(after),
        "benchmarks": [
            benchmark(slowdown=slowdown, samples=samples(slowdown, base_s=base_s)),
            benchmark("waste/blocks", timed=False, samples=[], estimate=None),
        ],
        "counters": [
            counter(base=wasted[0], head=wasted[1]),
            counter(
                "decode/paged-torch[block=16]",
                "torch_bytes",
                unit="bytes",
                base=5_000_000,
                head=5_000_000,
            ),
            counter("waste/blocks", "hit_tokens", unit="tokens", more_is_better=True),
        ],
    }
    return gate_record(**{**usual, **changes})


def load(project: AsvProject, exported, which=0) -> Results:
    return Results.load(str(exported.paths[which]))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> AsvProject:
    """Eight commits gated one after another; from the fifth on slower by 20 %, and wasteful."""
    project = make_project(tmp_path_factory.mktemp("asv") / "repo", commits=8)
    for place, (base, head) in enumerate(zip(project.commits, project.commits[1:], strict=False)):
        before, after = (6e-3 if p >= 4 else 5e-3 for p in (place, place + 1))
        wasted = tuple(1500 if p >= 4 else 1000 for p in (place, place + 1))
        record = one_pair(base, head, base_s=before, slowdown=after / before - 1, wasted=wasted)
        assert len(export(record, project.results, project.folder).paths) == 2
    return project


@pytest.fixture(scope="module")
def page(project):
    """The project's history, published and made to work offline."""
    project.publish()
    make_offline(project.html)
    return project


def test_asv_reads_medians_of_launches_as_samples(tmp_path):
    project = make_project(tmp_path / "repo", commits=2)
    record = one_pair(*project.commits, slowdown=0.05)
    exported = export(record, project.results, project.folder)
    assert exported.left_out == ()
    head = load(project, exported, 1)
    assert head.commit_hash == project.commits[1]
    (stored,) = head.get_result_samples(DECODE, [])
    assert stored == [sample.head_s for sample in record.benchmarks[0].samples]
    (stats,) = head.get_result_stats(DECODE, [])
    assert stats["repeat"] == 9
    assert stats["number"] == 1
    assert head.get_result_value(WASTE, []) == [1000.0]
    assert head.get_result_value("gate_more.waste.blocks.hit_tokens", []) == [1000.0]


def test_throughput_is_bytes_over_the_median_time(tmp_path):
    project = make_project(tmp_path / "repo", commits=2)
    exported = export(one_pair(*project.commits, base_s=4e-3), project.results, project.folder)
    # 5 MB in the median of 4 ms * (1 + 0.002 * launch), launches 0 to 8.
    expected = 5e6 / (4e-3 * 1.008) / 1e9
    (value,) = load(project, exported).get_result_value(THROUGHPUT, [])
    assert value == pytest.approx(expected)


def test_exporting_twice_adds_nothing_and_another_run_adds_its_launches(tmp_path):
    project = make_project(tmp_path / "repo", commits=2)
    first = one_pair(*project.commits)
    second = one_pair(*project.commits, base_s=5.5e-3, started_at="2026-01-03T00:00:00+00:00")
    for record in (first, first, second, first, second):
        exported = export(record, project.results, project.folder)
    (stored,) = load(project, exported).get_result_samples(DECODE, [])
    assert len(stored) == 18


def test_keys_are_kept_apart_by_asv(tmp_path):
    project = make_project(tmp_path / "repo", commits=2)
    base, head = project.commits
    other = environment(torch="2.12.0+cpu")
    record = one_pair(base, head, head=contestant(head, environment=other))
    gpu = environment(device="NVIDIA H100", driver="580.1", cuda="13.0", timer="cuda_event")
    record_of_gpu = one_pair(
        base, head, base=contestant(base, environment=gpu), head=contestant(head, environment=gpu)
    )
    names = set()
    for each in (record, record_of_gpu):
        names |= {path.name for path in export(each, project.results, project.folder).paths}
    assert len(names) == 4
    assert len({machine_of(each)["machine"] for each in (environment(), other, gpu)}) == 2
    project.publish()
    index = json.loads((project.html / "index.json").read_text())
    assert set(index["params"]["torch"]) == {"2.13.0+cpu", "2.12.0+cpu"}
    assert set(index["params"]["timer"]) == {"process_time", "cuda_event"}
    graphs = {str(p) for p in (project.html / "graphs").rglob(f"{DECODE}.json")}
    assert len([each for each in graphs if "summary" not in each]) == 3


def test_update_of_the_kernel_is_the_same_machine():
    before, after = (
        environment(platform=f"Linux-{release}-x86_64-with-glibc2.36") for release in "56"
    )
    assert machine_of(before) == machine_of(after)
    assert (machine_of(before)["os"], machine_of(before)["arch"]) == ("Linux", "x86_64")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mode": "plant"}, "slowed on purpose"),
        ({"mode": "aa"}, "base once more"),
        ({"head": contestant("a" * 40)}, "is not in"),
        ({"head": contestant(None)}, "it is no commit"),
        ({"head": contestant("a" * 40, dirty=True)}, "not committed"),
        ({"head": contestant("a" * 40, environment=None)}, "never said"),
    ],
)
def test_side_that_is_no_result_of_a_commit_is_left_out_and_said(tmp_path, changes, why):
    project = make_project(tmp_path / "repo", commits=2)
    exported = export(one_pair(*project.commits, **changes), project.results, project.folder)
    assert len(exported.paths) == 1
    (said,) = exported.left_out
    assert said.startswith("head ")
    assert why in said


def test_two_keys_of_one_name_are_refused(tmp_path):
    project = make_project(tmp_path / "repo", commits=2)
    twins = [benchmark("decode/a=1"), benchmark("decode/a 1")]
    with pytest.raises(ExportError, match=r"both gate\.decode\.a_1\.time"):
        export(one_pair(*project.commits, benchmarks=twins), project.results, project.folder)


def test_hostile_key_is_a_safe_name():
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", series_name(HOSTILE))
    assert ".." not in series_name("../../etc/passwd")


def test_definitions_survive_a_list_that_asv_wrote_anew(project):
    listed = project.results / "benchmarks.json"
    before = listed.read_text()
    kept = gate_definitions(project.results)
    assert {DECODE, WASTE, THROUGHPUT} <= set(kept)
    listed.write_text(json.dumps({"suite.time_x": {"name": "suite.time_x"}, "version": 2}))
    add_definitions(project.results, kept)
    assert set(json.loads(listed.read_text())) == {"suite.time_x", "version", *kept}
    listed.write_text(before)


def test_published_page_has_every_commit_and_the_regression(page):
    index = json.loads((page.html / "index.json").read_text())
    assert set(index["revision_to_hash"].values()) == set(page.commits)
    found = json.loads((page.html / "regressions.json").read_text())["regressions"]
    changes = {name: jumps for name, *_, jumps in found}
    revision = {commit: int(r) for r, commit in index["revision_to_hash"].items()}
    assert set(changes) == {DECODE, WASTE}
    for jumps in changes.values():
        assert [jump[1] for jump in jumps] == [revision[page.commits[4]]]


def test_offline_page_loads_nothing_from_elsewhere(page):
    html = (page.html / "index.html").read_text()
    for tag in re.findall(r"<(?:script|link|img)[^>]*>", html):
        for address in re.findall(r"""(?:src|href)=["']([^"']*)""", tag):
            assert "//" not in address
            assert (page.html / address).is_file()
    assert make_offline(page.html) == ()


def test_page_that_asks_for_more_than_is_vendored_is_refused(tmp_path):
    index = tmp_path / "index.html"
    index.write_text('<script src="https://example.org/chart-9.js"></script>')
    with pytest.raises(OfflineError, match=r"chart-9\.js"):
        make_offline(tmp_path)
    assert "example.org" in index.read_text()


def test_vendored_file_that_was_changed_is_refused(tmp_path):
    vendor = tmp_path / "vendor"
    shutil.copytree(VENDOR, vendor)
    assert len(read_manifest(vendor)) == 10
    (vendor / "jquery.min.js").write_text("alert(1)")
    with pytest.raises(OfflineError, match="SHA-256"):
        read_manifest(vendor)


class _Served(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(page):
    """Where the page is served on this machine."""
    handler = functools.partial(_Served, directory=str(page.html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()
        thread.join()


def dom(address, tmp_path):
    """The page as Chromium has it after its scripts ran, with every other host out of reach."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=10000",
        "--dump-dom",
        address,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return run.stdout


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed: Debian's package is `chromium`"
)


def ticks(html):
    """Labels of the main graph's value axis, which Flot chooses by the values that it draws."""
    plot = html.partition('id="main-graph"')[2].partition('id="overview"')[0]
    assert 'class="flot-base"' in plot, "nothing is drawn"
    axis = plot.partition("flot-y1-axis")[2]
    return [float(label) for label in re.findall(r"flot-tick-label[^>]*>([^<]+)<", axis)]


@needs_chromium
@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    # Eight commits: 1,000 then 1,500 slots; 5 then 6 ms in the first launch, 1.008 of it in the
    # median; 5 MB in that time.
    [
        (WASTE, 1000, 1500),
        (THROUGHPUT, 5 / 6 / 1.008, 1 / 1.008),
        (DECODE, 5 * 1.008, 6 * 1.008),
    ],
)
def test_graph_is_drawn_without_the_network(address, tmp_path, name, lowest, highest):
    labels = ticks(dom(f"{address}#{name}", tmp_path))
    step = labels[1] - labels[0]
    assert labels == sorted(labels)
    assert labels[0] - step <= lowest
    assert highest <= labels[-1] + step
    assert labels[-1] <= 1.5 * highest


@needs_chromium
def test_page_with_its_scripts_elsewhere_draws_nothing(page, tmp_path):
    """The plant: before it is made offline, the same page shows asv's error."""
    stock = tmp_path / "html"
    shutil.copytree(page.html, stock)
    shutil.copyfile(Path(asv.__file__).parent / "www" / "index.html", stock / "index.html")
    handler = functools.partial(_Served, directory=str(stock))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        html = dom(f"http://127.0.0.1:{server.server_port}/index.html#{WASTE}", tmp_path / "p")
        server.shutdown()
        thread.join()
    assert "flot-base" not in html


@needs_chromium
def test_grid_names_every_series(address, tmp_path):
    html = dom(address, tmp_path)
    for name in (DECODE, WASTE, THROUGHPUT):
        assert name in html
