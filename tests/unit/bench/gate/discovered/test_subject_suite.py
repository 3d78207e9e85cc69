"""Three lines in somebody's suite of asv: their subjects, found and run as asv does it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.command.project import Project
from bench.gate.discovered.subjects import groups_of, suite
from helpers import toy_repository
from reference.errors import BadInput

SUITE = """
from pagedbench.asv import suite

globals().update(suite())
"""

PROBE = """
import json, sys
from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks, get_benchmark_from_name

root = sys.argv[1]
update_sys_path(root)
said = {"found": sorted(each.name for each in disc_benchmarks(root))}
for name in ("Kernel.time_call-0", "Kernel.track_torch_bytes-0", "Kernel.track_loaded-0",
             "Kernel.track_evictions-0", "Allocator.track_peak_blocks-0",
             "Allocator.track_evictions-0", "Allocator.peakmem_call-0"):
    try:
        entry = get_benchmark_from_name(root, name)
    except ValueError:
        continue
    said[name] = "n/a" if entry.do_setup() else entry.do_run()
print(json.dumps(said))
"""

TABLE = """
[tool.pagedbench]
kernels = ["toy.torch_kernel:attention"]
allocators = ["toy.plain_pool:make"]
points = ["2x(q1 k100) h1 g2 d32 b16 fp32"]
streams = ["azure-conv:max_len=300:6"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("toy/__init__.py", "toy/can.py", "toy/torch_kernel.py", "toy/pool.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(toy_repository.FILES[name])
    pool = toy_repository.POOL.replace(toy_repository.IN_C, toy_repository.IN_PYTHON)
    (tmp_path / "toy" / "plain_pool.py").write_text(pool)
    (tmp_path / "pyproject.toml").write_text(TABLE)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text(SUITE)
    return tmp_path


def test_three_lines_make_benchmarks_of_the_tables_subjects(project: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROBE, str(project / "benchmarks")],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert {"Allocator.time_call", "Kernel.peakmem_call", "Kernel.track_calls"} <= set(
        said["found"]
    )
    assert min(said["Kernel.time_call-0"]["samples"]) > 0
    assert said["Kernel.track_torch_bytes-0"] > 0
    assert said["Kernel.track_loaded-0"] == "n/a", "no Triton kernel is launched"
    assert "Kernel.track_evictions-0" not in said
    assert said["Allocator.track_peak_blocks-0"] > 10
    assert said["Allocator.track_evictions-0"] == "n/a", "it does not count them"
    assert said["Allocator.peakmem_call-0"] > 10_000_000


def test_a_suite_without_a_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has a table"):
        suite(str(tmp_path / "benchmarks" / "__init__.py"))


def test_a_kernel_that_the_commit_lacks_is_not_applicable(tmp_path: Path) -> None:
    table = Project(root=tmp_path, kernels=("no_such_module:kernel",), points=("(q1 k3)",))
    entry = groups_of(table, module="benchmarks")["Kernel"]()
    with pytest.raises(NotImplementedError, match="no_such_module"):
        entry.setup("kernel/no_such_module:kernel[(q1,k3)]")
