"""A kernel that is judged from another process: it gets what it would get here, and no more."""

import os
import sys

import pytest
import torch

from bench.check import subject as other_side
from bench.check import worker
from bench.check.apart import LATE, ApartKernel, Gone
from bench.check.watching import watcher
from helpers.apart import InThisProcess, apart_here
from helpers.wrong_kernels import named
from paged.attention import paged_attention
from reference.attention import far
from reference.attention.caches import bits_of
from reference.attention.catalogue import CHECKS, TRUTH
from reference.attention.checks import run_check
from reference.attention.contract import Capabilities
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import LAYOUTS, AttentionProblem
from reference.attention.verdict import Status

SPECS = [
    "(q1 k41) h2 g2 d32 b16 bf16",
    "2x(q1 k20) (q3 k30) (q1 k0) h1 g3 d32 b8 fp16 kv=e4m3 alibi",
    "(q3 k40) (q1 k48) h2 d16 b16 fp32 sinks "
    "window=7 shared=32 strides=query,table,out,lse spare=0",
    "(q0 k20) (q2 k9) d32 b4 fp32 softcap=20",
]
FAR = "(q1 k20) (q2 k30) h2 d64 b16 bf16 pool=134217728"


def described(batch):
    """All that a kernel can tell of a batch, addresses apart."""
    told = {}
    for name in batch.__dataclass_fields__:
        told[name] = each = getattr(batch, name)
        if isinstance(each, torch.Tensor):
            bits, whole = bits_of(each.contiguous()), each.untyped_storage()
            where = each.stride(), each.storage_offset(), whole.nbytes()
            told[name] = each.dtype, each.shape, where, bits.tolist()
    return told


@pytest.mark.parametrize(
    "spec", [*SPECS, *(f"(q1 k41) h2 g2 d32 b16 bf16 layout={name}" for name in LAYOUTS)]
)
def test_a_kernel_is_given_the_same_tensors_as_here(spec):
    placement = place(make_inputs(AttentionProblem.parse(spec)))
    seen = []
    with apart_here(lambda batch: seen.append((batch, described(batch)))) as apart:
        apart.introduce()
        apart(placement.batch)
    (batch, had) = seen[0]
    assert had == described(placement.batch)
    assert batch is not placement.batch
    shared = batch.key_cache.untyped_storage().data_ptr()
    mine = placement.batch.key_cache.untyped_storage().data_ptr()
    assert shared != mine
    assert (batch.value_cache.untyped_storage().data_ptr() == shared) == (
        placement.batch.value_cache.untyped_storage().data_ptr() == mine
    )


@pytest.mark.parametrize("kernel", ["right", "scaled", "writes_nothing", "writes_cache", "raises"])
def test_verdicts_are_those_of_a_kernel_in_this_process(kernel):
    here = other_side.resolve_kernel(named(kernel)).kernel
    with apart_here(named(kernel)) as apart:
        for spec in SPECS:
            problem = AttentionProblem.parse(spec)
            for check in CHECKS:
                if check.applies(problem):
                    verdict = run_check(check, here, problem, watch=watcher())
                    said = worker.answer(apart, {"check": check.name, "problem": spec})
                    assert said == {
                        "status": verdict.status.value,
                        "findings": list(verdict.findings),
                    }


@pytest.fixture
def in_files(monkeypatch):
    monkeypatch.setattr(far, "_in_files", True)


def test_of_a_far_pool_what_is_touched_crosses(in_files):
    with apart_here(paged_attention) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": FAR})
        assert said == {"status": "passed", "findings": []}
        problem = AttentionProblem.parse(FAR)
        apart.introduce()
        placement = place(make_inputs(problem), far=True)
        apart(placement.batch)
        assert placement.batch.key_cache.untyped_storage().nbytes() > 2**34
        assert len(apart._bytes) < 2**25
        files = len(far._FILES)
        del placement
        apart.late()
        assert len(far._FILES) < files


@pytest.mark.parametrize("name", ["key_cache", "value_cache"])
def test_what_a_kernel_writes_to_a_far_pool_is_seen(name, in_files):
    def attend(batch):
        paged_attention(batch)
        getattr(batch, name)[batch.block_table[0, 0], 0] = 1

    with apart_here(attend) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": FAR})
    assert said["findings"] == ["wrote to the key or value cache"]


def test_a_kernel_that_copies_a_far_pool_is_not_run_on_it(in_files):
    def attend(batch):
        batch.key_cache.float()

    with apart_here(attend) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": FAR})
    assert said["status"] == "not run"
    assert "a copy of the pool" in said["findings"][0]


def test_a_pool_that_does_not_fit_where_the_kernel_runs_is_not_run(in_files, monkeypatch):
    def room_for(*_):
        raise far.NoRoom("17 GB, and the GPU has 3 GB free")

    monkeypatch.setattr(other_side, "room_for", room_for)
    with apart_here(paged_attention) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": FAR})
    assert said == {
        "status": "not run",
        "findings": ["the pool does not fit here: 17 GB, and the GPU has 3 GB free"],
    }


def test_on_another_device_a_kernel_works_on_copies_that_are_put_back():
    addresses = set()

    def attend(batch):
        addresses.add(batch.out.untyped_storage().data_ptr())
        paged_attention(batch)

    with apart_here(attend) as apart:
        apart._process.shelf._in_the_file = False
        for check in ("truth", "history", "repeated"):
            said = worker.answer(apart, {"check": check, "problem": SPECS[0]})
            assert said == {"status": "passed", "findings": []}
        start = apart._bytes.data_ptr()
        assert not any(start <= each < start + len(apart._bytes) for each in addresses)


def test_a_batch_that_is_called_again_is_the_same_object_and_another_is_none_of_them():
    seen = []
    problem = AttentionProblem.parse(SPECS[0])
    one, other = (place(make_inputs(problem)).batch for _ in range(2))
    with apart_here(seen.append) as apart:
        apart.introduce()
        for batch in (one, other, one):
            apart(batch)
        assert seen[0] is seen[2]
        assert seen[0].out.data_ptr() != seen[1].out.data_ptr()
        apart.introduce()
        apart(one)
        assert seen[3] is not seen[0]


@pytest.mark.skipif(sys.platform != "linux", reason="files are sealed on Linux only")
def test_a_kernel_cannot_take_the_shared_file_away_from_its_judge():
    def attend(batch):
        os.ftruncate(apart._file, 0)

    with apart_here(attend) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": SPECS[0]})
    assert said["status"] == "failed"
    assert "PermissionError" in said["findings"][0]


def test_of_what_a_kernel_raises_the_beginning_is_said_with_its_line():
    def attend(batch):
        raise ValueError("no tile " + 1_000_000 * "z")

    with apart_here(attend) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": SPECS[0]})
    (finding,) = said["findings"]
    assert len(finding) < 2100
    assert finding.startswith("raised ValueError: no tile zzz")
    assert "(1,000,008 characters) (at test_apart.py:" in finding


def test_a_late_write_is_a_finding_though_the_answer_is_right():
    def attend(batch):
        paged_attention(batch)
        late.append(batch.out)

    late = []
    with apart_here(attend) as apart:
        apart.introduce()
        run_check(TRUTH, apart, AttentionProblem.parse(SPECS[0]))
        assert apart.late() == []
        apart.introduce()
        verdict = run_check(TRUTH, apart, AttentionProblem.parse(SPECS[0]))
        late[-1].zero_()
        assert apart.late() == [LATE]
    assert verdict.status is Status.PASSED


def test_what_is_written_between_two_calls_on_a_batch_is_a_finding_too():
    late = []

    def attend(batch):
        for out in late:
            out.zero_()
        paged_attention(batch)
        late[:] = [batch.out]

    with apart_here(attend) as apart:
        said = worker.answer(apart, {"check": "repeated", "problem": SPECS[0]})
    assert said["status"] == "failed"
    assert LATE in said["findings"]


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"done": "yes"},
        {"done": True, "raised": "both"},
        {"seen": []},
        {"status": "passed", "findings": []},
        {"no_room": 3},
        {"raised": 70_000 * "z"},
    ],
)
def test_an_answer_that_is_none_ends_the_check(reply, monkeypatch):
    monkeypatch.setattr(other_side, "answer", lambda *_: dict(reply))
    with apart_here(paged_attention) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": SPECS[0]})
    assert said["died"].startswith("broke the protocol: ")
    assert said["timed_out"] is False


def test_a_death_ends_a_check_whatever_catches_what_kernels_raise():
    assert not issubclass(Gone, Exception)


def test_a_kernel_that_does_not_introduce_itself_has_broken_the_protocol():
    class Strange(InThisProcess):
        def introduce(self) -> dict:
            return {"capabilities": {"variants": 3}}

    with ApartKernel(lambda file: Strange(paged_attention, file), time_limit_s=1.0) as apart:
        said = worker.answer(apart, {"check": "truth", "problem": SPECS[0]})
    assert said["died"].startswith("broke the protocol: {'capabilities'")


def test_a_kernel_that_can_do_less_than_it_said_is_found_out():
    with apart_here(named("narrow")) as apart:
        apart._declared = Capabilities()
        said = worker.answer(apart, {"check": "truth", "problem": SPECS[0]})
    assert said["died"] == "declares other capabilities than it did before"
