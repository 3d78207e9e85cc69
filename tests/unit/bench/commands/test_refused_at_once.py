"""What is refused needs no torch, whose import takes seconds: exit code 2 comes before it."""

import json
import subprocess
import sys

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

PROBE = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
from typer.testing import CliRunner
from bench.cli import app
said = {}
for line in json.loads(sys.argv.pop(1)):
    result = CliRunner().invoke(app, line.split())
    heavy = sorted({"torch", "triton"} & set(sys.modules))
    said[line] = [result.exit_code, "Traceback" in result.output, heavy]
print(json.dumps(said))
"""


def test_what_is_refused_is_refused_before_torch_is_imported(tmp_path):
    run = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, str(ROOT), json.dumps(REFUSED)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said == {line: [2, False, []] for line in REFUSED}
