import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.places import ROOT

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_script() -> Callable[..., Any]:
    """Run a script of this folder in a process whose interpreter is stock; its JSON output."""

    def run(name: str, *arguments: str) -> Any:
        switches = {"TRITON_INTERPRET": "1", "PAGEDBENCH_STOCK_INTERPRETER": "1"}
        process = subprocess.run(
            [sys.executable, str(HERE / name), *arguments],
            cwd=ROOT,
            env=os.environ | switches | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return run
