"""Records in asv's own format: read back by asv, and published by it."""

import json
import re

import pytest
from asv.results import Results

from bench.asv.series import add_definitions, check_asv, gate_definitions, machine_of, series_name
from bench.gate.asv import export
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
from reference.errors import BadInput

DECODE = "gate.decode.paged-torch_block_16.time"
WASTE = "gate.waste.blocks.wasted_slots"
THROUGHPUT = "gate_more.decode.paged-torch_block_16.throughput"


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


@pytest.fixture
def pair(tmp_path) -> AsvProject:
    """Two commits."""
    return make_project(tmp_path / "repo", commits=2)


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


def test_asv_reads_medians_of_launches_as_samples_and_bytes_over_them_as_throughput(pair):
    record = one_pair(*pair.commits, slowdown=0.05, base_s=4e-3)
    exported = export(record, pair.results, pair.folder)
    assert exported.left_out == ()
    head = load(pair, exported, 1)
    assert head.commit_hash == pair.commits[1]
    (stored,) = head.get_result_samples(DECODE, [])
    assert stored == [sample.head_s for sample in record.benchmarks[0].samples]
    (stats,) = head.get_result_stats(DECODE, [])
    assert stats["repeat"] == 9
    assert stats["number"] == 1
    assert head.get_result_value(WASTE, []) == [1000.0]
    # 5 MB in the median of 4 ms * (1 + 0.002 * launch), launches 0 to 8.
    (value,) = load(pair, exported).get_result_value(THROUGHPUT, [])
    assert value == pytest.approx(5e6 / (4e-3 * 1.008) / 1e9)
    assert head.get_result_value("gate_more.waste.blocks.hit_tokens", []) == [1000.0]


def test_exporting_twice_adds_nothing_and_another_run_adds_its_launches(pair):
    first = one_pair(*pair.commits)
    second = one_pair(*pair.commits, base_s=5.5e-3, started_at="2026-01-03T00:00:00+00:00")
    for record in (first, first, second, first, second):
        exported = export(record, pair.results, pair.folder)
    (stored,) = load(pair, exported).get_result_samples(DECODE, [])
    assert len(stored) == 18


def test_keys_are_kept_apart_by_asv(pair):
    base, head = pair.commits
    other = environment(torch="2.12.0+cpu")
    record = one_pair(base, head, head=contestant(head, environment=other))
    gpu = environment(device="NVIDIA H100", driver="580.1", cuda="13.0", timer="cuda_event")
    record_of_gpu = one_pair(
        base, head, base=contestant(base, environment=gpu), head=contestant(head, environment=gpu)
    )
    names = set()
    for each in (record, record_of_gpu):
        names |= {path.name for path in export(each, pair.results, pair.folder).paths}
    assert len(names) == 4
    assert len({machine_of(each)["machine"] for each in (environment(), other, gpu)}) == 2
    pair.publish()
    index = json.loads((pair.html / "index.json").read_text())
    assert set(index["params"]["torch"]) == {"2.13.0+cpu", "2.12.0+cpu"}
    assert set(index["params"]["timer"]) == {"process_time", "cuda_event"}
    graphs = {str(p) for p in (pair.html / "graphs").rglob(f"{DECODE}.json")}
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
def test_side_that_is_no_result_of_a_commit_is_left_out_and_said(pair, changes, why):
    exported = export(one_pair(*pair.commits, **changes), pair.results, pair.folder)
    assert len(exported.paths) == 1
    (said,) = exported.left_out
    assert said.startswith("head ")
    assert why in said


def test_two_keys_of_one_name_are_refused(pair):
    twins = [benchmark("decode/a=1"), benchmark("decode/a 1")]
    with pytest.raises(BadInput, match=r"both gate\.decode\.a_1\.time"):
        export(one_pair(*pair.commits, benchmarks=twins), pair.results, pair.folder)


def test_a_list_that_cannot_be_added_to_is_refused_before_the_run(tmp_path):
    check_asv(None)
    check_asv(tmp_path / "results")
    (tmp_path / "benchmarks.json").write_text("{")
    with pytest.raises(BadInput, match=r"benchmarks\.json: .* remove it"):
        check_asv(tmp_path)


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


def test_published_page_has_every_commit_and_the_regression(project):
    project.publish()
    index = json.loads((project.html / "index.json").read_text())
    assert set(index["revision_to_hash"].values()) == set(project.commits)
    found = json.loads((project.html / "regressions.json").read_text())["regressions"]
    changes = {name: jumps for name, *_, jumps in found}
    revision = {commit: int(r) for r, commit in index["revision_to_hash"].items()}
    assert set(changes) == {DECODE, WASTE}
    for jumps in changes.values():
        assert [jump[1] for jump in jumps] == [revision[project.commits[4]]]
