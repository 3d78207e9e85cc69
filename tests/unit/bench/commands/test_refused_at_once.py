"""What is refused or only asked about needs no torch, whose import takes seconds."""

import json
import subprocess
import sys

import torch

from helpers.places import ROOT

REFUSED = (
    "check --problem (q1",
    "check --kernel nope",
    "check --kernel gone.py:attend",
    "check --stream nope",
    "check --trace gone.csv",
    "check --device tpu",
    "check --expected gone.toml",
    "check --json gone/check.json",
    "compile --kernel nope",
    "compile --kernel gone.py:attend",
    "compile --kernel triton --problem (q1",
    "compile --target sm_1",
    "throughput --batch 8y",
    "throughput --prefill x",
    "throughput --heads 0",
    "throughput --splits 0",
    "throughput --dtype fp7",
    "throughput --plot roof.doc",
    "throughput --subject gone.py:attend",
    "fuzz --replay gone.json",
    "fuzz --allocator nope",
    "race --allocator nope",
    "waste --policy nope",
    "waste --stream nope",
    "waste --figure nope",
    "gate",
    "gate HEAD --device tpu",
    "compare HEAD",
    "compare HEAD HEAD~1 --pairs nope",
    "compare --record gone.json",
    "history --config gone.json",
    "import gone.json",
)

SAID = {
    "--help": "pagedbench check --kernel my_kernel.py:attention",
    "check --help": '--problem "(q1 k129) g4 d80 b16 bf16"',
    "--version": f"torch {torch.__version__}",
}

PROBE = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
from typer.testing import CliRunner
from bench.cli import app
said = {}
for line, words, light in json.loads(sys.argv.pop(1)):
    result = CliRunner().invoke(app, line.split(), env={"COLUMNS": "80"})
    heavy = {"torch", "triton"} | ({"numpy", "hypothesis"} if light else set())
    fine = words in result.output and "Traceback" not in result.output
    said[line] = [result.exit_code, fine, sorted(heavy & set(sys.modules))]
print(json.dumps(said))
"""


def test_what_is_refused_and_help_come_before_torch_is_imported(tmp_path):
    lines = [(line, words, True) for line, words in SAID.items()]
    lines += [(line, "", False) for line in REFUSED]
    run = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, str(ROOT), json.dumps(lines)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said == {line: [0 if light else 2, True, []] for line, _, light in lines}
