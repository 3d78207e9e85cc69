"""Calls a host function and compiles what it launches, instead of launching it.

The arguments of each launch are the host function's own, so that Triton specialises them as it
would on a GPU: tensors by whether their address is divisible by 16, integers by whether they are
divisible by 16 or equal to 1. Tile sizes and launch options are the host function's, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest import mock

import triton
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from kernels.compiled.stub_driver import StubDriver, no_time
from kernels.compiled.targets import Target
from reference.attention.contract import AttentionKernel, PagedBatch

SIMPLE: Final = (bool, int, float, str, type(None))
"""Constexprs that a record can hold; others, such as a function, are named."""


class NothingLaunched(RuntimeError):
    """The host function launched no Triton kernel."""


@dataclass(slots=True)
class Launch:
    """What one launch compiled."""

    function: Any
    """The `@triton.jit` function."""
    compiled: Any
    """Triton's compiled kernel."""
    constexprs: dict[str, Any]
    arguments: dict[str, str]
    """As in `kernels.compiled.figures.LaunchFigures`."""
    count: int = 1
    """Launches that compiled to this."""


@dataclass(slots=True)
class Captured:
    """The launches of one call, each different one once, and what a reader should know of them."""

    launches: list[Launch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def install(target: Target) -> None:
    """Make this process compile for a target. Raises RuntimeError: if it interprets already."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            "Triton was imported with TRITON_INTERPRET=1; compile in a process without it"
        )
    triton.runtime.driver.set_active(StubDriver(target))


def capture(host_function: AttentionKernel, batch: PagedBatch) -> Captured:
    """Compile every kernel that a host function launches for a batch; `install` comes first.

    Nothing is computed. Raises NothingLaunched, and whatever host function or compiler raises.
    """
    captured = Captured()
    with _compiling_instead(captured):
        host_function(batch)
    if not captured.launches:
        raise NothingLaunched(
            "the host function launched no Triton kernel for this batch; name a function that "
            "does, or a problem for which it does"
        )
    return captured


@contextmanager
def _compiling_instead(captured: Captured) -> Iterator[None]:
    stock_run, stock_tune = JITFunction.run, Autotuner.run
    by_hash: dict[str, Launch] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: Any, **options: Any) -> Any:
        compiled = stock_run(self, *args, grid=grid, warmup=True, **options)
        if compiled.hash in by_hash:
            by_hash[compiled.hash].count += 1
        else:
            by_hash[compiled.hash] = _launch(self, compiled)
            captured.launches.append(by_hash[compiled.hash])
        return compiled

    def tune(self: Any, *args: Any, **options: Any) -> Any:
        # A kernel may bring its own way of timing, and would launch.
        self._do_bench = self.__dict__["do_bench"] = no_time
        result = stock_tune(self, *args, **options)
        if len(self.configs) > 1:
            note = (
                f"{self.base_fn.__name__} is autotuned over {len(self.configs)} configurations, "
                f"which needs a GPU: these are the figures of the first, {self.best_config}"
            )
            captured.notes += [note] if note not in captured.notes else []
        return result

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(Autotuner, "run", tune):
        yield


def _launch(function: Any, compiled: Any) -> Launch:
    source = compiled.src
    constexprs, arguments = {}, {}
    for index, parameter in enumerate(function.params):
        name = parameter.name
        if parameter.is_constexpr:
            constexprs[name] = _plain(source.constants.get((index,)))
        else:
            arguments[name] = _specialised(source, name, (index,))
    return Launch(function, compiled, constexprs, arguments)


def _plain(value: Any) -> bool | int | float | str | None:
    """A constexpr's value as a record can hold it, without addresses of this process."""
    if isinstance(value, triton.language.constexpr):
        value = value.value
    return value if isinstance(value, SIMPLE) else getattr(value, "__name__", None) or str(value)


def _specialised(source: Any, name: str, path: tuple[int, ...]) -> str:
    kind = source.signature[name]
    if kind == "constexpr":
        # An argument that is not declared so: None, or the integer 1.
        return f"i32:{value}" if (value := source.constants.get(path)) is not None else "None"
    told = dict(source.attrs.get(path, ()))
    return f"{kind}:{told['tt.divisibility']}" if "tt.divisibility" in told else str(kind)
