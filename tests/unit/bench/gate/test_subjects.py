"""A project's subjects as data and as benchmarks: what they are measured on, what is counted."""

import sys
from pathlib import Path

import pytest

from bench.command.project import Project
from bench.gate.benchmark import Prepared
from bench.gate.needs import Declined, Missing
from bench.gate.subject_benchmarks import Pool, check_origin, requests_of, subject_benchmarks
from bench.gate.subjects import TREE_VARIABLE, Lengths, Subjects, lengths_of, spec_of, subjects_of
from reference.allocator.contract import AllocatorCapabilities
from reference.attention.problem import AttentionProblem
from reference.errors import BadInput

HERE = Path()
POINT = "2x(q1 k40) h1 g2 d32 b16 fp32"
STREAM = "azure-conv:system=64,prompts=2,max_len=900:12"


def prepared(subject: str, project: Project) -> Prepared:
    (found,) = (
        each for each in subject_benchmarks(subjects_of(project)) if each.subject == subject
    )
    return found.prepare()


def test_a_point_is_a_spec_or_so_many_requests_of_a_stream(tmp_path: Path) -> None:
    assert spec_of(POINT, folder=HERE) == str(AttentionProblem.parse(POINT))
    found = AttentionProblem.parse(spec_of("azure-conv:3 h1 g2 d32 b16 fp32", folder=HERE))
    assert [each.query_len for each in found.requests] == [1, 1, 1]
    lengths = [each.seq_len for each in found.requests]
    assert lengths == sorted(lengths, reverse=True)
    assert (found.group_size, found.dtype) == (2, "fp32")
    assert AttentionProblem.parse(spec_of("azure-conv:2", folder=HERE)).dtype == "bf16"
    (tmp_path / "mine.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:15:46.6805900,700,9\n" * 3
    )
    assert lengths_of("mine.csv:2", folder=tmp_path).prompt_tokens == [700, 700]


@pytest.mark.parametrize("point", ["nonsense", "no-such-stream:3", "azure-conv:0", "azure-conv:x"])
def test_what_is_no_point_and_no_stream_is_refused(point: str) -> None:
    with pytest.raises(BadInput):
        spec_of(point, folder=HERE)
    with pytest.raises(BadInput):
        lengths_of(point, folder=HERE)


@pytest.mark.parametrize("requests", [0, 1_000_000])
def test_how_many_requests_there_may_be_is_said(requests: int) -> None:
    for read in (spec_of, lengths_of):
        with pytest.raises(BadInput, match=f"{requests:,} requests; take 1 to 999,999"):
            read(f"azure-conv:{requests}", folder=HERE)


def test_subjects_are_read_as_they_were_written(tmp_path: Path) -> None:
    project = Project(root=tmp_path, kernels=("torch",), allocators=("paged",), points=(POINT,))
    found = subjects_of(project)
    found.write(tmp_path / "subjects.json")
    assert Subjects.read(tmp_path / "subjects.json") == found
    assert not subjects_of(Project(root=tmp_path)).points


def test_tokens_agree_exactly_as_far_as_prefixes_do() -> None:
    lengths = Lengths(
        prompt_tokens=[10, 10, 7],
        output_tokens=[1, 1, 1],
        prefix=[[0, 1], [0, 2], []],
        tokens_per_block=4,
    )
    one, other, alone = (each.prompt for each in requests_of(lengths))
    assert one[:4] == other[:4]
    assert not set(one[4:]) & set(other[4:])
    assert len(set(alone)) == 7
    assert not set(alone) & {*one, *other}


def test_an_interpreted_kernel_is_counted_by_tensor_and_a_torch_one_is_not(tmp_path: Path) -> None:
    project = Project(root=tmp_path, kernels=("torch", "triton"), points=(POINT,))
    interpreted, plain = (prepared(name, project) for name in ("triton", "torch"))
    assert (interpreted.interpreted(), plain.interpreted()) == (True, False)
    counts = {name: each.value for name, each in interpreted.counters().items()}
    assert counts["loaded.key_cache"] == counts["loaded.value_cache"] == 2 * 40 * 32 * 4
    assert counts["stored.out"] == 2 * 2 * 32 * 4
    assert plain.counters() == {}
    for each in (interpreted, plain):
        outputs = each.outputs()
        assert set(outputs) == {"out", "lse"}
        assert {output.wrong for output in outputs.values()} == {""}
    gaps = interpreted.outputs()["out"].values - plain.outputs()["out"].values
    allowed = plain.outputs()["out"].allowed
    assert allowed is not None
    assert (abs(gaps) <= 2 * allowed).all()


def test_an_allocator_is_counted_on_its_stream(tmp_path: Path) -> None:
    project = Project(root=tmp_path, allocators=("paged",), streams=(STREAM,))
    made = prepared("paged", project)
    counts = {name: each.value for name, each in made.counters().items()}
    assert counts["hits"] % 64 == 0
    assert counts["hits"] >= 64
    assert counts["copies"] == 7, "each fork copies the common last block, but for one writer"
    assert counts["wasted_slots"] > 0
    assert made.outputs()["requests"].values == 12
    made.call()
    assert {name: each.value for name, each in made.counters().items()} == counts


def test_a_pool_has_room_for_the_longest_request() -> None:
    lengths = Lengths(prompt_tokens=[5000], output_tokens=[8], prefix=[[]], tokens_per_block=1)
    pool = Pool.of(lengths, AllocatorCapabilities(block_sizes=frozenset({4}), spare_blocks=2))
    assert pool.block_size == 4
    assert pool.num_blocks * 4 >= 5008


def test_what_a_subject_cannot_do_is_declined(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(
        "from pagedbench import Capabilities, declares\n"
        "@declares(Capabilities(dtypes=frozenset({'fp16'})))\n"
        "def attention(batch): ...\n"
    )
    name = f"{tmp_path / 'small.py'}:attention"
    with pytest.raises(Declined, match="fp32"):
        prepared(name, Project(root=tmp_path, kernels=(name,), points=(POINT,)))


def test_a_module_from_elsewhere_is_not_the_trees_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    for folder, module in ((tree, "ours_here"), (elsewhere, "ours_there")):
        folder.mkdir()
        (folder / f"{module}.py").write_text("def attention(batch): ...\n")
    monkeypatch.setattr(sys, "path", [str(tree), str(elsewhere), *sys.path])
    check_origin("ours_there:attention")
    monkeypatch.setenv(TREE_VARIABLE, str(tree))
    check_origin("ours_here:attention")
    check_origin("torch")
    (tree / "broken.py").write_text("def attention(:\n")
    with pytest.raises(Missing, match=r"that imports \(SyntaxError: "):
        check_origin("broken:attention")
    for name in ("ours_there:attention", "ours_here:other", "nowhere:attention", "no.py:attention"):
        with pytest.raises(Missing):
            check_origin(name)
