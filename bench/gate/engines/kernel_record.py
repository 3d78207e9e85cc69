"""What is found out about each release of a kernel, and about all of them together."""

from __future__ import annotations

from typing import Final, Literal

from bench.gate.engines.record import Located
from bench.machine.record import StrictRecord

SCHEMA_VERSION: Final = 1


class KernelSettings(StrictRecord):
    """What each release is asked; results are kept under it."""

    problems: int = 100
    """Problems that `pagedbench check` draws."""
    seed: int = 0
    """Of the problems."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of the check: on a cpu Triton is interpreted."""
    targets: tuple[str, ...] = ("sm_90",)
    """GPUs that are compiled for."""
    also: tuple[str, ...] = ()
    """Problems at which every release is judged besides."""
    expected: str = ""
    """Failures that are expected, in TOML as `pagedbench check --expected` takes it."""


class Wrong(StrictRecord):
    """The first problem that a release got wrong, made smaller."""

    check: str
    problem: str
    first_problem: str = ""
    """As it was drawn."""
    finding: str


class Checked(StrictRecord):
    """What `pagedbench check` said."""

    problems: int
    """That were run and right."""
    wrong: Wrong | None


class Judged(StrictRecord):
    """Whether a release is wrong at a problem; None: it does not say, as where it declines it."""

    wrong: bool | None


class Code(StrictRecord):
    """The machine code of one Triton launch."""

    target: str
    problem: str
    kernel: str
    registers: int
    spills: int
    """Instructions that store and load what registers cannot hold."""
    instructions: int
    instructions_per_key: float | None
    """Of the main loop, for one KV token; None where it is not known."""


class Compiled(StrictRecord):
    """What `pagedbench compile` made of a release."""

    triton: str
    toolchains: dict[str, str]
    """By target: its assembler."""
    code: list[Code]
    failures: dict[str, str]
    """By target and problem: why it does not compile."""


class KernelRelease(StrictRecord):
    """One release of one kernel. None, and problems that are missing: it was not measured."""

    name: str
    """What it is called in the comparison: its requirements, or the kernel's name."""
    kernel: str
    requirements: list[str] = []
    """Exact versions in its environment; none: it runs as it is installed."""
    adapter: str = ""
    """Digest of what drives it."""
    checked: Checked | None = None
    wrong_at: dict[str, bool] = {}
    """By problem: whether it is wrong there, of those that any release was found wrong at."""
    compiled: Compiled | None = None
    trouble: dict[str, str] = {}
    """By step: why it did not come to its end."""


class KernelsRecord(StrictRecord):
    """Releases of kernels, side by side."""

    schema_version: int = SCHEMA_VERSION
    settings: KernelSettings
    releases: list[KernelRelease]
    located: list[Located]
    complete: bool
    """Whether every step of every release was taken."""
    python: str
    torch: str
    pagedbench: str
    measured_on: str
    """Date of the last step, as YYYY-MM-DD."""
    exit_code: int
