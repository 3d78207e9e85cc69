"""What wrong kernels compile to, compared with what the right ones do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import kernels.compiled.hosts
from bench.compile.run import ask, start
from helpers.mutants import Mutant, renamed, write_package
from kernels.compiled.explain import explain, is_worse
from kernels.compiled.figures import VariantFigures
from kernels.compiled.targets import find_target
from kernels.compiled.variants import VARIANTS, Variant
from subjects.process import SubjectProcess

TARGET: Final = "sm_90"

_DECODE: Final = ("decode bf16", "decode bf16, block 128", "decode bf16, split, sinks")
_PREFILL: Final = ("prefill bf16",)
_EVERYTHING: Final = (*_DECODE, *_PREFILL, "decode fp32", "prefill bf16, all")

LOOKED_AT: Final = {
    "decode": _DECODE,
    "prefill": _PREFILL,
    "sweep": _EVERYTHING,
    "merge": ("decode bf16, split, sinks",),
    "attention": _EVERYTHING,
    "launch": _EVERYTHING,
    "cache_ops": ("write bf16", "write e4m3", "copy bf16"),
}
"""For each file of `kernels`, the variants in which a change of it can show."""

_VARIANTS: Final = {variant.name: variant for variant in VARIANTS}


@dataclass(slots=True)
class Compiler:
    """A child that compiles for `TARGET`, and what the right kernels compile to."""

    child: SubjectProcess
    folder: Path
    _right: dict[str, VariantFigures] = field(default_factory=dict)

    def worse(self, mutant: Mutant, *, most: int | None = None) -> list[str]:
        """In which way a mutant compiles to something worse, in words; or how it does not compile.

        Looked at are the first `most` variants in which the change can show; None: all of them.
        """
        package = write_package(mutant, self.folder)
        hosts = self.folder / f"{package}_hosts.py"
        source = Path(kernels.compiled.hosts.__file__).read_text()
        hosts.write_text(renamed(source, package))
        words: list[str] = []
        for name in LOOKED_AT[mutant.file][:most]:
            variant = _VARIANTS[name]
            function = variant.subject.partition(":")[2]
            now = ask(self.child, Variant(name, f"{hosts}:{function}", variant.problem))
            if now.failure:
                return [f"{name} does not compile: {now.failure}"]
            for before, after in zip(self.right(variant).launches, now.launches, strict=False):
                changes = explain(before, after)
                if is_worse(changes):
                    words += [f"{name}: {change.words}" for change in changes]
        return words

    def right(self, variant: Variant) -> VariantFigures:
        """Figures of the kernels as they are."""
        if variant.name not in self._right:
            self._right[variant.name] = ask(self.child, variant)
        return self._right[variant.name]


@contextmanager
def compiler(folder: Path) -> Iterator[Compiler]:
    """A compiler whose children and files live as long as this context."""
    with start(find_target(TARGET), cache=folder / "cache") as child:
        yield Compiler(child, folder)
