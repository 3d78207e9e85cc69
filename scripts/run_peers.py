"""Check other people's kernels under the attention contract: `make peers`.

What is known of them (docs/findings/kernels) is expected to fail, and said if it no longer does.
Records are written to `.pagedbench/peers`.

Exit codes: 0 nothing new was found in those that can run here, otherwise the first of pagedbench's
own that was not 0.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RECORDS = Path(".pagedbench") / "peers"
KNOWN = Path("docs") / "findings" / "kernels"

PEERS = (
    "sdpa",
    "flex",
    "vllm-unified",
    "vllm-diffkv",
    "vllm-mla",
    "vllm-sparse",
    "vllm-merge",
    "vllm-write",
    "sglang-decode",
    "sglang-mla",
    "sglang-extend",
    "sglang-merge",
    "flashinfer-merge",
    "vllm-cpu",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "flash-mla",
    "flashinfer",
)
NEED_A_GPU = {"flash-attn", "flash-attn-3", "flash-attn-4", "flash-mla", "flashinfer"}
NEED_THE_CPU = {"vllm-cpu"}


@dataclass(frozen=True)
class Row:
    """How the check of a peer ended."""

    peer: str
    verdict: str
    problems: int = 0
    checks: int = 0
    expected: int = 0
    seconds: float = 0.0
    code: int = 0


def check(peer: str, asked: argparse.Namespace) -> Row:
    """Check a peer, unless it cannot run here."""
    if peer in NEED_A_GPU and not torch.cuda.is_available():
        return Row(peer, "not run: no GPU")
    known, record = KNOWN / f"{peer}.toml", RECORDS / f"{peer}.json"
    arguments = [
        *("check", "--kernel", peer, "--problems", str(asked.problems), "--seed", str(asked.seed)),
        *("--lanes", str(asked.lanes), "--no-timing", "--json", str(record)),
        *(("--expected", str(known)) if (ROOT / known).is_file() else ()),
        *(("--device", "cpu") if peer in NEED_THE_CPU else ()),
        *(("--engine-python", asked.engine_python) if asked.engine_python else ()),
    ]
    print(f"\n$ pagedbench {' '.join(arguments)}", flush=True)
    (ROOT / record).unlink(missing_ok=True)
    began = time.monotonic()
    command = [str(Path(sys.executable).with_name("pagedbench")), *arguments]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    seconds = time.monotonic() - began
    if not (ROOT / record).is_file():
        return Row(peer, "no record", seconds=seconds, code=code or 1)
    said = json.loads((ROOT / record).read_text())
    kernel = said["kernels"][0]
    return Row(
        peer,
        said["verdict"],
        problems=kernel["problems"],
        checks=_counted(kernel, ("passed", "failed", "crashed", "failed as expected")),
        expected=_counted(kernel, ("failed as expected",)),
        seconds=seconds,
        code=code,
    )


def _counted(kernel: dict[str, Any], statuses: Iterable[str]) -> int:
    return sum(
        count
        for of_check in kernel["checks"].values()
        for status, count in of_check.items()
        if status in statuses
    )


def main() -> int:
    """Check, and say how each ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=300, help="drawn for each peer")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--lanes", type=int, default=0, help="processes for each; 0: one a core")
    parser.add_argument("--engine-python", help="interpreter to run them with")
    parser.add_argument("peers", nargs="*", help=f"some of {', '.join(PEERS)}; all if none")
    asked = parser.parse_args()
    for name in set(asked.peers) - set(PEERS):
        parser.error(f"{name} is no peer: choose from {', '.join(PEERS)}")

    (ROOT / RECORDS).mkdir(parents=True, exist_ok=True)
    rows = [check(peer, asked) for peer in asked.peers or PEERS]

    print(f"\n{'peer':<14} {'problems':>8} {'checks':>7} {'expected':>9} {'seconds':>8}  verdict")
    for row in rows:
        print(
            f"{row.peer:<14} {row.problems:>8,} {row.checks:>7,} {row.expected:>9,} "
            f"{row.seconds:>8.0f}  {row.verdict}"
        )
    return next((row.code for row in rows if row.code), 0)


if __name__ == "__main__":
    sys.exit(main())
