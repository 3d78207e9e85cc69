"""A run from points to record, with subjects that are wrong in ways that only rounds show."""

import itertools
import json
import subprocess
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bench.command.progress import Silence
from bench.machine import roof as roofs
from bench.machine.roof import RoofRecord
from bench.machine.timing import Interval
from bench.throughput import asv, planned
from bench.throughput.bars import judge_bars
from bench.throughput.candidates import Absent, Candidate, find_candidates
from bench.throughput.points import Grid, Point
from bench.throughput.record import ThroughputRecord
from bench.throughput.run import ThroughputPlan, most_bytes, run_throughput
from bench.throughput.tensors import copies_that_fit, make_samples
from bench.throughput.worker import CANDIDATE
from helpers.measuring import SMALL, InAThread, SmallCache
from paged.attention import paged_attention
from reference.attention.contract import Capabilities, PagedBatch
from reference.attention.layout import usual
from reference.attention.problem import AttentionProblem
from subjects.attention.peers import flashinfer, vllm_unified
from subjects.loading import SubjectError

ROOF = RoofRecord(
    copy_bytes=1,
    copy_gigabytes_per_s=10.0,
    copy_median_gigabytes_per_s=9.0,
    matrix_dtype="float32",
    matrix_teraflops_per_s=0.1,
    matrix_median_teraflops_per_s=0.1,
)


@pytest.fixture(autouse=True)
def _roof(monkeypatch):
    """The machine's own roof takes seconds to measure; `test_the_roofs...` does so once."""
    monkeypatch.setattr("bench.throughput.run.measure_roof", lambda device: ROOF)


def candidate(name, plan, capabilities=Capabilities()):  # noqa: B008 - frozen
    return Candidate(name=name, subject=name, capabilities=capabilities), plan


RIGHT = candidate("right", lambda batch: partial(paged_attention, batch))


@pytest.fixture
def run(monkeypatch):
    """Runs candidates that are closures."""

    def runs(*candidates, points=(SMALL,), stop=None, progress=None, **options):
        known = {
            each.name if isinstance(each, Absent) else each[0].name: each for each in candidates
        }

        def find(name, **_):
            return known[name] if isinstance(known[name], Absent) else [known[name]]

        monkeypatch.setattr("bench.throughput.worker.find_candidates", find)
        usual = {"device": "cpu", "rounds": 6, "points": points, "names": list(known)}
        return run_throughput(
            ThroughputPlan(**{**usual, **options}),
            SmallCache(),
            progress=progress or Silence(),
            stop=stop or threading.Event(),
            process=InAThread(),
        )

    return runs


def test_a_record_has_times_rates_and_ratios_of_everybody(run):
    record = run(RIGHT, candidate("twice", lambda batch: partial(twice, batch)))
    (point,) = record.points
    assert record.exit_code == 0
    assert record.complete
    assert point.copies == 9
    assert point.cold
    right, slow = point.subjects
    assert len(right.cold_s) == len(slow.cold_s) == 6
    assert right.warm_seconds is not None  # the input fits the cache
    assert right.gigabytes_per_s == pytest.approx(SMALL.kv_bytes / right.seconds.median / 1e9)
    assert right.bandwidth_share == pytest.approx(right.gigabytes_per_s / 10)
    assert right.teraflops_per_s == pytest.approx(SMALL.flops / right.seconds.median / 1e12)
    assert right.matrix_share == pytest.approx(right.teraflops_per_s / 0.1)
    assert slow.times_of["right"].median > 1.2
    assert right.times_of["twice"].median < 0.8
    assert ThroughputRecord.model_validate_json(record.model_dump_json()) == record


def twice(batch: PagedBatch) -> None:
    paged_attention(batch)
    paged_attention(batch)


# --- wrong answers -------------------------------------------------------------------------------


def counting(does):
    """A plan whose call does something with the batch, its number, and that of the input."""
    inputs = itertools.count()

    def plan(batch: PagedBatch):
        calls, number = itertools.count(1), next(inputs)
        return lambda: does(batch, next(calls), number)

    return plan


def wrong_from_the_third_call_on(batch: PagedBatch, call: int, number: int) -> None:
    paged_attention(batch)
    if call >= 3:
        batch.out[0] += 1.0


def wrong_for_one_input(batch: PagedBatch, call: int, number: int) -> None:
    paged_attention(batch)
    if number == 4:
        batch.out[1, 2] = 0.0


def answers_another_input():
    batches = []

    def does(batch: PagedBatch, call: int, number: int) -> None:
        batches.append(batch)
        paged_attention(batches[0].replace(out=batch.out))

    return does


def writes_nothing(batch: PagedBatch, call: int, number: int) -> None: ...


def writes_only_the_first_time(batch: PagedBatch, call: int, number: int) -> None:
    if call == 1:
        paged_attention(batch)


@pytest.mark.parametrize(
    ("does", "where", "what"),
    [
        # The last input is also timed warm, so that its third call comes first.
        (wrong_from_the_third_call_on, "input 9 of 9", "the truth is"),
        (wrong_for_one_input, "input 5 of 9", "the truth is"),
        (answers_another_input(), "input 2 of 9", "the truth is"),
        (writes_nothing, "input 1 of 9", "3 of 3 rows are not finite"),
        (writes_only_the_first_time, "input 1 of 9", "3 of 3 rows are not finite"),
    ],
)
def test_a_wrong_answer_in_any_round_is_seen_and_the_others_go_on(run, does, where, what):
    record = run(RIGHT, candidate("wrong", counting(does)))
    right, wrong = record.points[0].subjects
    assert wrong.status == "wrong"
    assert where in wrong.why
    assert what in wrong.why
    assert wrong.cold_s == []  # what was not computed has no time
    assert right.status == "timed"
    assert len(right.cold_s) == 6
    assert "wrong" not in right.times_of
    assert record.exit_code == 1
    assert [(point.name, each.name) for point, each in record.wrong] == [(SMALL.name, "wrong")]


# --- who is not timed ----------------------------------------------------------------------------


def test_who_cannot_or_raises_ends_nobody_elses_run(run):
    def raises(batch: PagedBatch):
        raise RuntimeError("no kernel image\nfor this device")

    def raises_when_called(batch: PagedBatch):
        return lambda: 1 / 0

    record = run(
        Absent(name="absent", why="is not installed"),
        candidate("unable", counting(writes_nothing), Capabilities(block_sizes=frozenset({16}))),
        candidate("raises", raises),
        candidate("raises later", raises_when_called),
        RIGHT,
    )
    said = {each.name: (each.status, each.why) for each in record.points[0].subjects}
    assert said == {
        "absent": ("not run", "is not installed"),
        "unable": ("not run", "block size 8"),
        "raises": ("raised", "RuntimeError: no kernel image"),
        "raises later": ("raised", "ZeroDivisionError: division by zero"),
        "right": ("timed", ""),
    }
    assert record.exit_code == 0


def silent(batch: PagedBatch):
    raise SystemExit("silent")


def exits(batch: PagedBatch, call: int, number: int) -> None:
    raise SystemExit


def exits_in_a_round(batch: PagedBatch, call: int, number: int) -> None:
    paged_attention(batch)
    if call == 5:
        raise SystemExit


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (silent, "planning it, the process gave no answer within 0.5 s; give it more with"),
        (counting(exits), "calling it, the process ended with code 0"),
        (counting(exits_in_a_round), "timing it, the process ended with code 0"),
    ],
)
def test_who_ends_the_process_is_named_and_the_others_are_timed(run, plan, why):
    record = run(candidate("bad", plan), RIGHT, points=(SMALL, SMALL))
    for point in record.points:
        assert (point.subjects[1].status, len(point.subjects[1].cold_s)) == ("timed", 6)
    first = record.points[0].subjects[0]
    assert first.status == "died"
    assert first.why.startswith(why)
    again = record.points[1].subjects[0]
    assert (again.status, again.why) == ("not run", f"died on {SMALL.name}")
    assert record.exit_code == 1
    assert [each.name for _, each in record.wrong] == ["bad"]


def test_a_failure_of_the_inputs_is_ours(run, monkeypatch):
    monkeypatch.setattr("bench.throughput.worker.usual", lambda *_, **__: 1 / 0)
    with pytest.raises(RuntimeError, match="the measuring process raised division by zero"):
        run(RIGHT)


KERNELS = """
import ctypes, os, time
from paged.attention import paged_attention

def crashes(batch):
    ctypes.string_at(0)

def hangs(batch):
    time.sleep(3600)

def lies(batch):
    paged_attention(batch)
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b'{"times": {}}\\n')
        except OSError:
            pass

def prints(batch):
    os.write(1, b"{}\\n")
    print({"times": {}})
    paged_attention(batch)
"""


def test_deaths_of_real_processes_are_findings(tmp_path):
    (tmp_path / "k.py").write_text(KERNELS)
    (tmp_path / "dies.py").write_text("import os; os._exit(3)")
    names = [f"{tmp_path}/k.py:{name}" for name in ("crashes", "hangs", "lies", "prints")]
    record = run_throughput(
        ThroughputPlan(
            points=(SMALL,),
            names=["torch", *names, f"{tmp_path}/dies.py:attention"],
            device="cpu",
            rounds=2,
            time_limit_s=5.0,
        ),
        SmallCache(),
        progress=Silence(),
        stop=threading.Event(),
    )
    said = {each.name.rpartition("/")[2]: each for each in record.points[0].subjects}
    assert said.pop("torch").status == said.pop("k.py:prints").status == "timed"
    assert {each.status for each in said.values()} == {"died"}
    assert "which is the answer to no question" in said["k.py:lies"].why
    assert said["k.py:crashes"].why.startswith("calling it, the process was killed by SIGSEGV")
    silence = "the process gave no answer within 5 s; give it more with --time-limit"
    assert said["k.py:hangs"].why == f"calling it, {silence}"
    assert said["dies.py:attention"].why == "importing it, the process ended with code 3"
    assert record.exit_code == 1


def test_an_interrupted_run_keeps_what_is_done(run):
    stop = threading.Event()

    class StopsLater(Silence):
        points = 0

        def begin(self, what: str, total: int) -> None:
            self.points += "rounds" in what
            if self.points == 2:
                stop.set()

    record = run(RIGHT, points=(SMALL,) * 3, progress=StopsLater(), stop=stop)
    assert [point.subjects[0].status for point in record.points] == ["timed", "interrupted"]
    assert not record.complete
    assert record.exit_code == 130


# --- who there is --------------------------------------------------------------------------------


def test_names_become_candidates_or_reasons():
    found = {
        name: find_candidates(name, device="cpu")
        for name in ("torch", "contiguous", "triton", "flash-attn", "flashinfer")
    }
    ((torch_, _),) = found["torch"]
    ((contiguous, _),) = found["contiguous"]
    assert torch_.name == "torch"
    assert contiguous.refusal(SMALL.problem) == ""
    assert "its time means nothing" in found["triton"].why
    assert "runs on a GPU only" in found["flash-attn"].why
    assert "runs on a GPU only" in found["flashinfer"].why
    with pytest.raises(SubjectError):
        find_candidates("nowhere_at_all.py:kernel", device="cpu")


def test_a_candidate_crosses_the_pipe_as_it_is():
    capabilities = Capabilities(block_sizes=frozenset({16, 32}), variants=frozenset({"lse"}))
    one = Candidate(name="a splits=2", subject="a", capabilities=capabilities, num_splits=2)
    said = json.loads(json.dumps(CANDIDATE.dump_python(one, mode="json")))
    assert CANDIDATE.validate_python(said) == one


def test_splits_are_candidates_of_their_own(monkeypatch):
    asked = []

    def kernel(batch, *, num_splits=None):
        asked.append(num_splits)

    monkeypatch.setattr(
        "bench.throughput.candidates.resolve_kernel",
        lambda name, device: SimpleNamespace(kernel=kernel, capabilities=Capabilities()),
    )
    found = [
        one
        for name in ("triton", "sdpa")
        for one in find_candidates(name, device="cuda", splits=[None, 8, 8])
    ]
    assert [each.name for each, _ in found] == ["triton", "triton splits=8", "sdpa"]
    for _, plan in found:
        plan(usual(SMALL.problem, device="cpu", seed=0))()
    assert asked == [None, 8, None]
    prompt = AttentionProblem.parse("(q4 k4) d16 b8 bf16")
    assert found[1][0].refusal(prompt) == "prefill has no splits"
    assert found[0][0].refusal(prompt) == ""


def test_flex_plans_all_sequences_in_one_call(monkeypatch):
    from torch.nn.attention import flex_attention

    # What is compiled is torch's matter; whether it is asked the right thing is ours.
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(planned, "_compiled_flex", lambda: flex_attention.flex_attention)
    for spec in (str(SMALL.problem), "2x(q40 k40) h2 g2 d16 b8 bf16"):
        point = Point(batch="by hand", problem=AttentionProblem.parse(spec))
        (sample,) = make_samples(point, 1, device="cpu")
        batch = usual(point.problem, device="cpu", seed=0)
        call = planned.flex_call(batch)
        batch.out.fill_(torch.nan)
        call()
        assert sample.finding(batch.out[sample.rows]) == ""


def test_flashinfer_and_vllm_are_planned_once_and_run_in_the_call(monkeypatch):
    batch = usual(SMALL.problem, device="cpu", seed=0)
    log = []

    class Wrapper:
        def run(self, query, cache, *, out):
            log.append("run")
            keys, values = cache.unbind(1)
            paged_attention(batch.replace(key_cache=keys, value_cache=values, out=out))

    monkeypatch.setattr(flashinfer, "decode_wrapper", lambda _: log.append("plan") or Wrapper())
    call = planned.flashinfer_call(batch)
    call()
    call()
    assert log == ["plan", "run", "run"]
    assert batch.out.isfinite().all()

    launches = []
    monkeypatch.setattr(vllm_unified, "_launcher", lambda **given: launches.append(given))
    monkeypatch.setattr(vllm_unified, "_takes", frozenset({"out", "softmax_segm_output"}))
    call = planned.vllm_call(batch)
    assert launches == []
    call()
    call()
    assert len(launches) == 2
    assert launches[0]["out"] is launches[1]["out"] is batch.out
    assert launches[0]["softmax_segm_output"] is launches[1]["softmax_segm_output"]


# --- bars, roofs, exports ------------------------------------------------------------------------


@pytest.fixture
def timed(run):
    """A point that was timed with one subject, to be changed into others."""
    point = run(RIGHT).points[0]

    def changed(name: str, *subjects: dict):
        return point.model_copy(
            update={
                "name": name,
                "subjects": [
                    point.subjects[0].model_copy(update={"subject": each["name"], **each})
                    for each in subjects
                ],
            }
        )

    return changed


def times_of(name: str, ratio: float) -> dict:
    return {"times_of": {name: Interval(ratio, None, None)}}


@pytest.mark.parametrize(("ratio", "state"), [(1.0, "met"), (1.15, "met"), (1.16, "missed")])
def test_the_bar_of_the_cpu_is_the_most_that_paging_may_cost(timed, ratio, state):
    (point,) = Grid(batches=["azure-conv:32"]).points()
    paged = {"name": "torch", **times_of("contiguous", ratio)}
    record = timed(point.name, paged, {"name": "contiguous", "times_of": {}})
    first, *others = judge_bars([record], device="cpu")
    assert (first.state, first.got) == (state, ratio)
    assert {bar.state for bar in others} == {"not measured"}
    assert {bar.why for bar in others} == {"this run has no GPU"}


def test_the_bars_of_a_gpu_are_shares_and_speeds_beside_peers(timed):
    def beside_flex(name: str, share: float, ratio: float):
        flex = {"name": "flex", **times_of("triton", ratio)}
        return timed(name, {"name": "triton", "read_share": share, "times_of": {}}, flex)

    shares = {"bandwidth_share": 0.1, "matrix_share": 0.6, "times_of": {}}
    points = [
        beside_flex("decode 64x4096 h8 g4 d128 b16 bf16", 0.86, 1.1),
        beside_flex("decode 64x4096 h8 g4 d128 b1 bf16", 0.69, 0.9),
        timed("prefill 16x2048 h8 g4 d128 b16 bf16", {"name": "triton", **shares}),
        timed(
            "decode 16x4096 h8 g4 d128 shared=1024 b16 bf16",
            {"name": "triton", "times_of": {}},
            {"name": "triton-cascade", **times_of("triton", 1.03)},
        ),
        timed(
            "decode 32x4096 h1 g128 d576 rope=64 b64 bf16",
            {"name": "triton-latent", "times_of": {}},
            {"name": "flash-mla", **times_of("triton-latent", 0.8)},
            {"name": "vllm-mla", **times_of("triton-latent", 1.19)},
        ),
    ]
    bars = judge_bars(points, device="cuda")
    got = {
        (bar.what, bar.point.split()[1], bar.point.split()[5]): bar.state
        for bar in bars
        if bar.got is not None
    }
    assert got == {
        ("share of the read bandwidth", "64x4096", "b16"): "met",
        ("share of the read bandwidth", "64x4096", "b1"): "missed",
        ("speed beside flex", "64x4096", "b16"): "met",
        ("speed beside flex", "64x4096", "b1"): "missed",
        ("share of the dense matrix rate", "16x2048", "b16"): "met",
        ("time of the cascade over plain attention", "16x4096", "shared=1024"): "missed",
        ("speed beside flash-mla", "32x4096", "rope=64"): "met",
        ("speed beside vllm-mla", "32x4096", "rope=64"): "missed",
    }
    assert len(bars) == 12 * (1 + 5) + 2 + 1 + 1 + 3 + 2
    whys = {bar.why for bar in bars if bar.got is None}
    assert whys == {"not a point of this run", "not a subject of this run"}


def test_the_roofs_are_measured(monkeypatch):
    monkeypatch.setattr(roofs, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(roofs, "MATRIX_SIZE", {"cpu": 128})
    monkeypatch.setattr(SmallCache, "mark", lambda self: time.perf_counter())
    roof = roofs.measure_roof(SmallCache())
    assert roof.copy_bytes == 2**20
    assert 0.01 < roof.copy_median_gigabytes_per_s <= roof.copy_gigabytes_per_s < 10_000
    assert 0 < roof.matrix_median_teraflops_per_s <= roof.matrix_teraflops_per_s < 100


@pytest.mark.parametrize(
    ("batch", "cache_bytes", "copies"),
    [
        ("1x2048", 2**25, 12),  # of 8 MiB each: cold at last
        ("1x2048", 480 * 2**20, 32),  # not the 180 that would be
        ("32x2048", 480 * 2**20, 2),  # 256 MiB each
        ("32x16384", 2**25, 1),  # 2 GiB
    ],
)
def test_a_large_cache_of_a_cpu_does_not_make_a_point_take_minutes(batch, cache_bytes, copies):
    device = SmallCache()
    device.cache_bytes = cache_bytes
    (point,) = Grid(batches=(batch,)).points()
    found = copies_that_fit(point, cache_bytes=cache_bytes, most_bytes=most_bytes(point, device))
    assert found == copies


def test_asv_gets_a_series_of_times_and_one_of_bandwidth(run, tmp_path):
    pytest.importorskip("asv")
    record = run(RIGHT)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=asv.ROOT
    ).stdout.strip()
    if not commit:
        pytest.skip("not a git checkout")
    clean = record.environment.model_copy(update={"commit": commit, "dirty": False})
    record = record.model_copy(update={"environment": clean})
    for _ in "twice":
        exported = asv.export(record, tmp_path)
    (path,) = exported.paths
    results = json.loads(path.read_text())["results"]
    name = "throughput.decode_by_hand_h2_g2_d16_b8_bf16.right"
    assert set(results) == {f"gate.{name}.time", f"gate_more.{name}.bandwidth"}
    listed = json.loads((tmp_path / "benchmarks.json").read_text())
    assert listed[f"gate.{name}.time"]["unit"] == "seconds"

    dirty = record.model_copy(update={"environment": clean.model_copy(update={"dirty": True})})
    assert "not committed" in asv.export(dirty, tmp_path).left_out[0]
