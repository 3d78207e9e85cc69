"""Wrong readers and writers of codecs, each of which the checks must reject: codec_bugs.toml."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.mutants import Mutant, as_on_a_gpu, import_package, write_package
from helpers.planted import bugs_beside, changed_module
from kernels.attention import paged_attention as triton
from kernels.interpreter.memory import watch_attention
from kernels.launch import Tiles
from paged.attention import paged_attention as torch_reader
from paged.latent import paged_latent_attention as latent_reader
from reference.attention.catalogue import CHECKS
from reference.attention.checks import run_check
from reference.attention.contract import PagedBatch, capabilities_of, declares
from reference.attention.problem import AttentionProblem

BUGS = bugs_beside(__file__)
CHECKED = {check.name: check for check in CHECKS}
TRITON = "kernels/"
SMALL = Tiles(block_n=16, block_m=16)

Reader = Callable[..., None]


def writer(mutant: Mutant | None, file: str, folder: Path) -> Reader:
    """A cache write with a bug in one of its files."""
    if file.startswith(TRITON):
        package = write_package(mutant, folder)
        import_package(package, folder / package)
        return importlib.import_module(f"{package}.stores").write  # type: ignore[no-any-return]
    changed = changed_module("paged.stores", None)
    changed.encode = changed_module("reference.attention.codecs", mutant).encode
    return changed.write  # type: ignore[no-any-return]


def reader(mutant: Mutant | None, file: str, codec: str, folder: Path) -> Reader:
    """A reader of a codec with a bug in one of its files."""
    if file.startswith(TRITON):
        package = write_package(mutant, folder)
        import_package(package, folder / package)
        attention = importlib.import_module(f"{package}.attention").paged_attention

        @declares(capabilities_of(triton))
        def in_triton(batch: PagedBatch) -> None:
            with as_on_a_gpu():
                attention(batch, tiles=SMALL)

        return in_triton
    codecs = changed_module("reference.attention.codecs", mutant)
    keyed = changed_module("paged.attention", mutant)
    for name in ("decode", "unswizzled_pages"):
        vars(keyed)[name] = vars(codecs)[name]
    if codec != "fp8-ds-mla":
        return keyed.paged_attention  # type: ignore[no-any-return]
    latent = changed_module("paged.latent", mutant)
    latent.attend_to, latent.decoded = keyed.attend_to, keyed.decoded
    return latent.paged_latent_attention  # type: ignore[no-any-return]


def asked(file: str, fields: dict[str, Any]) -> list[AttentionProblem]:
    """Decode and a chunk of a prefill, of two seeds."""
    latent = "rope" in fields
    words = "(q1 k21) (q1 k37)" if latent else "(q1 k21) (q3 k37) h2 g2"
    words = words.replace(" g2", "") if "write" in fields else words
    base = AttentionProblem.parse(f"{words} d32 b16 fp32")
    made = []
    for seed in (1, 2):
        problem = base.replace(seed=seed, **{"dtype": "fp32", **fields})
        made += [problem.replace(requests=problem.requests[:1]), problem]
    return made


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_rejected(name: str, tmp_path: Path) -> None:
    mutant, fields = BUGS[name]
    file, codec = mutant.file, fields["by"]["codec"]
    mutant = Mutant(name, file.removeprefix(TRITON), mutant.edits)
    check = fields.get("check", "truth")
    if fields["by"].get("write"):
        bad, right = (writer(each, file, tmp_path) for each in (mutant, None))
    else:
        bad, right = (reader(each, file, codec, tmp_path) for each in (mutant, None))
    for problem in asked(file, fields["by"]):
        plain = run_check(CHECKED["truth"], bad, problem) if check != "truth" else None
        verdict = run_check(CHECKED[check], bad, problem, watch=watch_attention)
        if verdict.wrong:
            findings = " ".join(verdict.findings)
            assert re.search(fields.get("finding", r"^(?!raised)"), findings), findings
            assert plain is None or not plain.wrong, f"{name}: the truth has it too"
            again = run_check(CHECKED[check], right, problem, watch=watch_attention)
            assert not again.wrong, again
            return
    pytest.fail(f"{name} survived")


def test_each_codec_and_each_of_several_checks_is_needed() -> None:
    assert {fields["by"]["codec"] for _, fields in BUGS.values()} == {
        *capabilities_of(torch_reader).codecs,
        *capabilities_of(latent_reader).codecs,
    }
    checks = {fields.get("check", "truth") for _, fields in BUGS.values()}
    assert checks == {"truth", "memory", "scaled-values"}
