"""Make recordings, one after the other, in the engine's environment: JSON lines of what on stdin.

`scripts/make_incidents.py` starts it. Each line is {"name", "seed", "held_out", "folder",
"changed", "drain"}, where `changed` are arguments of the engine in place of those that were drawn,
and `drain` seconds in which what is left may end; each is answered with a line when it is done.
"""

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from scripts.incidents.setups import drawn  # noqa: E402 - found by the line above
from scripts.incidents.world import record  # noqa: E402 - likewise
from subjects.servers.vllm_engine import VARIABLES, release  # noqa: E402 - likewise

# What vLLM looks for has names that our rooms have too.
sys.path.remove(str(ROOT))
os.environ.update(VARIABLES)
cpu_s = time.process_time
print(json.dumps({"release": release()}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    began = cpu_s()
    setup = drawn(job["name"], job["seed"], held_out=job["held_out"])
    setup.drain = job.get("drain", setup.drain)
    # Of an argument that is given twice, the last one holds.
    setup.arguments += job.get("changed", [])
    said = {"folder": job["folder"]}
    try:
        record(setup, job["seed"], Path(job["folder"]), held_out=job["held_out"])
    except Exception:
        said["failed"] = traceback.format_exc()
    # vLLM freezes what lives when an engine starts: without this no engine is ever collected.
    gc.unfreeze()
    gc.collect()
    print(json.dumps({**said, "cpu_s": round(cpu_s() - began, 2)}), flush=True)
