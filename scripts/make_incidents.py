"""Make labelled recordings of servers with known faults: `make incidents`.

vLLM's own engine on a virtual clock (`subjects/servers/vllm_engine.py`), loaded in the ways of
`scripts/incidents`, in configurations that are drawn anew for each seed. Each recording
is a folder: metrics.prom.gz, kv_events.jsonl.gz, server.log.gz, and beside them the truth, which no
diagnosis may read: truth.json and client_requests.csv.gz. Every third seed is held out: its pools,
rates, lengths and intervals are from bands that no other seed takes them from.

With --changed the same incidents are recorded with other arguments of the engine, such as
--changed="--watermark 0.05": arrivals, lengths and clients stay as they are, so what differs is
what the change does.

What is done is not made again: end it at any time. 2 s of processor time a recording.

Exit codes: 0 all are made, 2 cannot start, 4 some failed.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reference.errors import BadInput  # noqa: E402 - the checkout's own
from scripts.incidents.setups import EVERY  # noqa: E402 - likewise
from subjects.environments import engine_python  # noqa: E402 - likewise

ALL_MADE = 0
CANNOT_START = 2
SOME_FAILED = 4

FIXTURES = (
    *("healthy_low", "nothing_shared", "pool_too_small", "head_of_line", "engine_slowed"),
    *("max_num_seqs_cap", "template_change", "working_set_too_big", "restart", "start_refused"),
    "max_num_seqs_cap+varying_prefix",
)
"""What the tests of the diagnosis need."""


def make(jobs: Sequence[dict[str, object]], python: str) -> list[str]:
    """Make recordings in one process; the folders of those that failed."""
    left = [str(job["folder"]) for job in jobs]
    with subprocess.Popen(
        [python, "-W", "ignore", str(ROOT / "scripts" / "incidents" / "record.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("".join(json.dumps(job) + "\n" for job in jobs))
        child.stdin.close()
        for line in child.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # what a library prints while it is imported
            if "folder" not in said:
                continue
            print(f"{said['folder']}: {said['cpu_s']} s", flush=True)
            if "failed" in said:
                print(said["failed"], file=sys.stderr)
            else:
                left.remove(said["folder"])
    return left


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make recordings of servers with known faults.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="an incident; --list shows them")
    parser.add_argument("--list", action="store_true", help="show the incidents")
    parser.add_argument("--into", type=Path, default=ROOT / ".incidents", help="folder")
    parser.add_argument("--seeds", type=int, default=9, help="recordings of each; default 9")
    parser.add_argument("--held-out", action="store_true", help="only those held out")
    parser.add_argument("--lanes", type=int, default=1, help="processes; default 1")
    parser.add_argument("--fixtures", action="store_true", help="those of the tests, and no other")
    parser.add_argument("--changed", type=shlex.split, default=[], help="the engine's arguments")
    options = parser.parse_args(arguments)

    names = list(EVERY)
    if options.list:
        print("\n".join(names))
        return ALL_MADE
    if unknown := [name for name in options.names if name not in names]:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr)
        return CANNOT_START
    try:
        python = str(engine_python("vllm"))
    except BadInput as error:
        print(error, file=sys.stderr)
        return CANNOT_START

    seeds, into = options.seeds, options.into.absolute()
    asked = options.names or names
    if options.fixtures:
        asked, seeds, into = list(FIXTURES), 1, ROOT / "tests" / "data" / "incidents"
    # Seeds without: a few of each soon, more of each later.
    jobs = [
        {
            "name": name,
            "seed": seed,
            "held_out": seed % 3 == 2,
            "folder": f"{into}/{name}-{seed}",
            "changed": options.changed,
        }
        for seed in range(seeds)
        for name in asked
        if seed % 3 == 2 or not options.held_out
    ]
    todo = [job for job in jobs if not Path(str(job["folder"]), "truth.json").is_file()]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} are made", flush=True)
    failed: list[str] = []
    lanes = [todo[lane :: options.lanes] for lane in range(max(1, options.lanes))]
    threads = [
        Thread(target=lambda own=own: failed.extend(make(own, python))) for own in lanes if own
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        print("\n".join(["", "failed:", *failed]), file=sys.stderr)
    return SOME_FAILED if failed else ALL_MADE


if __name__ == "__main__":
    sys.exit(main())
