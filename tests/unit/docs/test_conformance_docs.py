"""What docs/contract.md and docs/conformance.md say of checks, features and files holds."""

import re
from inspect import signature

from bench.check.coverage import LEGEND
from bench.check.expected_file import read_expected
from bench.check.testing import parametrize_with_checks
from bench.check.trial import PROBLEMS, Trial, run_trial
from helpers.places import DOCS
from reference.attention.catalogue import CHECKS
from reference.attention.expected import Expectations
from reference.attention.features import ADDED, FEATURES
from reference.attention.verdict import Status

CONTRACT = (DOCS / "contract.md").read_text()
CONFORMANCE = (DOCS / "conformance.md").read_text()


def section(heading: str) -> str:
    return re.split(r"^## ", CONFORMANCE.partition(f"## {heading}\n")[2], flags=re.M)[0]


def test_every_check_stands_in_the_contract_with_its_law():
    laws = dict(re.findall(r"^\| ([a-z-]+) \| (\w.*\.) \|$", CONTRACT, re.M))
    # What is compared within the tolerance is said so there, and is no part of the law.
    bare = {name: law.replace(" (within rounding)", "") for name, law in laws.items()}
    assert bare == {check.name: check.law for check in CHECKS}


def test_every_feature_is_explained_and_none_besides():
    named = set(re.findall(r"`([a-z0-9_=]+)`", section("Features").replace("`when`", "")))
    for kind in ("dtype", "kv_dtype", "heads", "inputs"):
        row = re.search(rf"^\| `{kind}=` \|(.*)\|$", section("Features"), re.M)[1]
        values = set(re.findall(r"`(\w+)`", row))
        assert {f"{kind}={value}" for value in values} == {
            feature.name for feature in FEATURES if feature.name.startswith(f"{kind}=")
        }
    flags = {feature.name for feature in (*FEATURES, *ADDED) if "=" not in feature.name}
    assert flags <= named


def test_the_file_that_is_shown_is_one(tmp_path):
    (tmp_path / "expected.toml").write_text(re.search(r"```toml\n(.*?)```", CONFORMANCE, re.S)[1])
    (expected,) = read_expected(tmp_path / "expected.toml")
    assert expected.when == ("kv_dtype=e5m2", "window")


def test_the_arguments_are_those_of_the_decorator():
    arguments = re.findall(r"^\| `(\w+)` \|", section("In a test file"), re.M)
    assert arguments == list(signature(parametrize_with_checks).parameters)
    assert signature(parametrize_with_checks).parameters["problems"].default == PROBLEMS
    assert f"draws {PROBLEMS} problems" in section("In a test file")


def test_each_sign_of_the_matrix_is_explained():
    legend = " ".join(LEGEND)
    for sign, state in re.findall(r"^\| `(\S+)` \| ([a-z ]+) \|", section("Coverage"), re.M):
        mark = re.sub(r"\d+", "N", sign)
        words = "no problem with it" if state == "no problem shows it" else state
        assert f"{mark} {words}" in legend


THEIRS = """
import torch

def paged_decode(query, keys, values, table, lengths):
    assert len(query) == len(lengths) and bool((lengths > 0).all())
    rows = []
    for row, blocks, length in zip(query, table, lengths):
        blocks = blocks[: -(-int(length) // 16)].long()
        k, v = (cache[blocks].flatten(0, 1)[:length].float() for cache in (keys, values))
        k, v = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (k, v))
        weights = (torch.einsum("hd,nhd->hn", row.float(), k) * row.shape[-1] ** -0.5).softmax(1)
        rows.append(torch.einsum("hn,nhd->hd", weights, v))
    return torch.stack(rows).to(query.dtype)
"""


def test_somebody_elses_kernel_is_right_without_expected_failures(tmp_path, monkeypatch):
    shown = re.search(r"```python\n(.*?)```", section("Somebody else's kernel"), re.S)[1]
    assert len(shown.splitlines()) < 20
    (tmp_path / "their_kernels.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    adapter = {}
    exec(shown, adapter)
    for check in (each for each in CHECKS if each.name in ("truth", "history", "alone")):
        trial = Trial(kernel=adapter["attention"], check=check, problems=4)
        outcome = run_trial(trial, Expectations())
        assert (outcome.failure, outcome.counts) == (None, {Status.PASSED: 5})
