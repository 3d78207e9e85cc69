"""asv's page without the network: fetched once, vetted by digest, and drawn by a browser."""

import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import asv
import pytest

from bench.gate.asv import export
from helpers.asv_project import make_project
from helpers.gate_records import benchmark, contestant, gate_record, samples
from scripts.asv_offline import MANIFEST, VENDOR, OfflineError, fetch, make_offline, read_manifest

TIME = "gate.decode.time"
WASTE = "gate.waste.blocks.wasted_slots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FETCHED = all((VENDOR / each.file).is_file() for each in read_manifest())


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Packages as npm would pack them, their manifest, and an npm that packs nothing else."""
    files = [
        {**each.model_dump(), "sha256": hashlib.sha256(each.file.encode()).hexdigest()}
        for each in read_manifest()
    ]
    manifest, packages, programs = (tmp_path / name for name in ("manifest", "packages", "bin"))
    for folder in (manifest, packages, programs):
        folder.mkdir()
    shutil.copy(MANIFEST / "LICENSES.txt", manifest)
    (manifest / "manifest.json").write_text(json.dumps(files))
    for package in {each["package"] for each in files}:
        with tarfile.open(packages / f"{package.replace(' ', '@')}.tgz", "w:gz") as archive:
            for each in (each for each in files if each["package"] == package):
                content = each["file"].encode()
                member = tarfile.TarInfo(f"package/{each['path']}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    npm = programs / "npm"
    # What is asked for is the last argument.
    npm.write_text(f'#!/bin/sh\nfor package; do :; done\ncp "{packages}/$package.tgz" packed.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return tmp_path


def ask(registry, action, *arguments):
    return action(*arguments, vendor=registry / "vendor", manifest=registry / "manifest")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Four commits, gated one after another; from the third on slower and wasteful; published."""
    project = make_project(tmp_path_factory.mktemp("asv") / "repo", commits=4)
    for place, (base, head) in enumerate(zip(project.commits, project.commits[1:], strict=False)):
        before, after = (6e-3 if p >= 2 else 5e-3 for p in (place, place + 1))
        wasted = [1500 if p >= 2 else 1000 for p in (place, place + 1)]
        some = [
            benchmark("decode", samples=samples(after / before - 1, base_s=before)),
            benchmark("waste/blocks", timed=False, samples=[], estimate=None),
        ]
        record = gate_record(base=contestant(base), head=contestant(head), benchmarks=some)
        (counted,) = record.counters
        counted = counted.model_copy(update={"base": wasted[0], "head": wasted[1]})
        export(record.model_copy(update={"counters": [counted]}), project.results, project.folder)
    project.publish()
    return project


def test_page_loads_nothing_from_elsewhere(registry, project):
    html = registry / "html"
    shutil.copytree(project.html, html)
    assert len(ask(registry, make_offline, html)) == 10
    page = (html / "index.html").read_text()
    for tag in re.findall(r"<(?:script|link|img)[^>]*>", page):
        for address in re.findall(r"""(?:src|href)=["']([^"']*)""", tag):
            assert "//" not in address
            assert (html / address).is_file()
    assert ask(registry, make_offline, html) == ()


def test_what_was_fetched_once_needs_no_npm(registry, monkeypatch):
    ask(registry, fetch)
    monkeypatch.setenv("PATH", str(registry / "nowhere"))
    ask(registry, fetch)
    (registry / "vendor" / "md5.min.js").unlink()
    with pytest.raises(OfflineError, match=r"md5\.min\.js .*Debian's package is `npm`"):
        ask(registry, fetch)


def test_file_that_is_not_what_was_vetted_is_refused(registry):
    (registry / "packages" / "blueimp-md5@2.19.0.tgz").write_bytes(
        (registry / "packages" / "jquery@3.3.1.tgz").read_bytes()
    )
    with pytest.raises(OfflineError, match=r"blueimp-md5 2\.19\.0 .*has no js/md5\.min\.js"):
        ask(registry, fetch)
    (registry / "vendor" / "md5.min.js").write_text("alert(1)")
    with pytest.raises(OfflineError, match="SHA-256"):
        ask(registry, fetch)


def test_changed_package_is_refused_and_not_kept(registry):
    file = registry / "manifest" / "manifest.json"
    file.write_text(re.sub(r'"sha256": "\w{8}', '"sha256": "00000000', file.read_text()))
    with pytest.raises(OfflineError, match="not what was vetted"):
        ask(registry, fetch)
    assert list((registry / "vendor").iterdir()) == []


def test_npm_that_fails_is_quoted(registry):
    (registry / "packages" / "jquery@3.3.1.tgz").unlink()
    with pytest.raises(OfflineError, match=r"npm pack .*jquery@3\.3\.1 ended with 1: .*jquery"):
        ask(registry, fetch)


def test_page_that_asks_for_more_than_is_known_is_refused(registry):
    index = registry / "index.html"
    index.write_text('<script src="https://example.org/chart-9.js"></script>')
    with pytest.raises(OfflineError, match=r"chart-9\.js"):
        ask(registry, make_offline, registry)
    assert "example.org" in index.read_text()


class _Served(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None or not FETCHED,
    reason="needs Chromium (Debian's package is `chromium`) and .asv/vendor, which `make asv` or "
    "`python scripts/asv_offline.py HTML_DIR` fetches",
)


def dom(html: Path, name: str, tmp_path: Path) -> str:
    """A page as Chromium has it after its scripts ran, with every other host out of reach."""
    handler = functools.partial(_Served, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--virtual-time-budget=10000",
            "--dump-dom",
            f"http://127.0.0.1:{server.server_port}/index.html{name}",
        ]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        finally:
            server.shutdown()
            thread.join()
    return run.stdout


@pytest.fixture(scope="module")
def offline(project, tmp_path_factory):
    """The published page with the libraries that it needs."""
    html = tmp_path_factory.mktemp("offline") / "html"
    shutil.copytree(project.html, html)
    make_offline(html)
    return html


@needs_a_browser
@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [(WASTE, 1000, 1500), (TIME, 5 * 1.008, 6 * 1.008)]
)
def test_graph_is_drawn_without_the_network(offline, tmp_path, name, lowest, highest):
    plot = dom(offline, f"#{name}", tmp_path).partition('id="main-graph"')[2]
    plot = plot.partition('id="overview"')[0]
    assert 'class="flot-base"' in plot, "nothing is drawn"
    # Labels of the value axis, which Flot chooses by the values that it draws.
    axis = plot.partition("flot-y1-axis")[2]
    labels = [float(label) for label in re.findall(r"flot-tick-label[^>]*>([^<]+)<", axis)]
    step = labels[1] - labels[0]
    assert labels == sorted(labels)
    assert labels[0] - step <= lowest
    assert highest <= labels[-1] + step <= 1.5 * highest + step


@needs_a_browser
def test_page_with_its_scripts_elsewhere_draws_nothing(offline, tmp_path):
    """The plant: before it is made offline, the same page shows asv's error."""
    stock = tmp_path / "html"
    shutil.copytree(offline, stock)
    shutil.copyfile(Path(asv.__file__).parent / "www" / "index.html", stock / "index.html")
    assert "flot-base" not in dom(stock, f"#{WASTE}", tmp_path)


@needs_a_browser
def test_grid_names_every_series(offline, tmp_path):
    html = dom(offline, "", tmp_path)
    assert TIME in html
    assert WASTE in html
