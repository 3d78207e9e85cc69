"""One process, one mode: Triton's interpreter on the CPU, or tests/gpu compiled on a GPU.

Triton reads its mode when it is imported, and everything that tests import comes after this file.
Set PAGEDBENCH_TEST_GPU=1 for the GPU tests; nothing else is run then.
"""

import functools
import gc
import os
import signal
import sys
from importlib import metadata
from pathlib import Path

TRITON_CAME_FIRST = "triton" in sys.modules
GPU_RUN = os.environ.get("PAGEDBENCH_TEST_GPU", "0") == "1"
if GPU_RUN:
    os.environ.pop("TRITON_INTERPRET", None)
else:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
# Interpreted tiles are small: numpy's BLAS threads cost several times what they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Hundreds of short processes are started: what one compiled of our sources, the next ones find.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""
sys.dont_write_bytecode = False

# A run in the background of a shell is started with Ctrl-C ignored, and so would be the processes
# in which tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Until all tests are collected nothing is garbage; looking for it takes a quarter of that time.
gc.disable()

import pytest  # noqa: E402 - the environment above has to be set before anything can import triton
import torch  # noqa: E402
import typer.testing  # noqa: E402
from _pytest import runner  # noqa: E402
from hypothesis import settings  # noqa: E402

from helpers import profiles  # noqa: E402
from reference.stack import with_stack_room  # noqa: E402

torch.set_num_threads(1)
# Building the commands takes forty milliseconds, running one of them a few: build them once.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]
profiles.register_profiles()

GPU_TESTS = Path(__file__).parent / "gpu"


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run in a mode that the environment cannot give."""
    asked = os.environ.get("PAGEDBENCH_TEST_GPU", "0")
    if asked not in {"0", "1"}:
        raise pytest.UsageError(
            f"PAGEDBENCH_TEST_GPU={asked!r}: set it to 1, or to 0 or not at all"
        )
    if GPU_RUN and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"PAGEDBENCH_TEST_GPU=1, but torch {torch.__version__} finds no CUDA device: "
            "unset it to run the CPU tests"
        )
    if TRITON_CAME_FIRST and not GPU_RUN:
        raise pytest.UsageError(
            "triton was imported before tests/conftest.py could set TRITON_INTERPRET=1: "
            "set it in the environment, or leave out the plugin that imports triton"
        )


@pytest.hookimpl(tryfirst=True)
@with_stack_room
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """As pytest runs a test, a third faster: frames of pytest and Hypothesis lie deep."""
    return runner.pytest_runtest_protocol(item, nextitem)


def pytest_collection_finish() -> None:
    """Collect garbage again, and pass over what stays until the end."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let go of everything: a library says what of its own is left when the process ends."""
    gc.unfreeze()


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say under which conditions the results below were obtained."""
    active = settings()
    deadline = "no deadline" if active.deadline is None else f"deadline {active.deadline}"
    device = torch.cuda.get_device_name() if GPU_RUN else "cpu"
    return [
        f"hypothesis profile: {settings.get_current_profile_name()}, {deadline}, "
        f"examples x{profiles.scale():g}",
        f"torch {torch.__version__}, triton {_version('triton')}, "
        f"TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET', 'unset')}, device {device}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"torch threads {torch.get_num_threads()}",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the two modes apart: skip GPU tests on the CPU, and leave the others out on a GPU."""
    on_cpu, on_gpu = [], []
    for item in items:
        if item.path.is_relative_to(GPU_TESTS):
            item.add_marker(pytest.mark.gpu)
        (on_gpu if item.get_closest_marker("gpu") else on_cpu).append(item)
    if GPU_RUN:
        config.hook.pytest_deselected(items=on_cpu)
        items[:] = on_gpu
        return
    reason = (
        "runs compiled: set PAGEDBENCH_TEST_GPU=1"
        if torch.cuda.is_available()
        else "needs a CUDA device, and torch finds none"
    )
    for item in on_gpu:
        item.add_marker(pytest.mark.skip(reason=reason))
    # A seed on the command line makes it "long-with-...".
    if settings.get_current_profile_name().partition("-")[0] != profiles.LONG:
        for item in on_cpu:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="make test-long runs it"))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
