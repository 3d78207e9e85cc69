"""Fuzz every engine's allocator, then race them against ours: `make engines`.

What is known of them (docs/findings) is run and not looked for. Records are written to
`.pagedbench/engines`.

Exit codes: 0 nothing new was found and all came to the end, otherwise the first of pagedbench's own
that was not 0.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = Path(".pagedbench") / "engines"
FINDINGS = Path("docs") / "findings"

# Options of each. Pages of one token are known to be wrong in sglang-pages, in one way and another.
FUZZED = {
    "vllm": (),
    "sglang": (),
    "sglang-pages": tuple(f"--block-size={size}" for size in (2, 3, 4, 5, 7, 8, 16)),
    "transformers": (),
    "torch": (),
}
RACED = ("paged", "vllm", "transformers", "torch", "sglang")


def pagedbench(*arguments: str) -> tuple[int, float]:
    """Exit code, and seconds that it took."""
    print(f"\n$ pagedbench {' '.join(arguments)}", flush=True)
    began = time.monotonic()
    command = [str(Path(sys.executable).with_name("pagedbench")), *arguments]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    return code, time.monotonic() - began


def main() -> int:
    """Run, and say how each ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=5000, help="programs for each engine")
    parser.add_argument("--rounds", type=int, default=3, help="of the race; 0 for none")
    parser.add_argument("engines", nargs="*", help=f"some of {', '.join(FUZZED)}; all if none")
    asked = parser.parse_args()
    for name in set(asked.engines) - FUZZED.keys():
        parser.error(f"{name} is no engine: choose from {', '.join(FUZZED)}")

    (ROOT / RECORDS).mkdir(parents=True, exist_ok=True)
    ended = []
    for name in asked.engines or FUZZED:
        code, seconds = pagedbench(
            *("fuzz", "--allocator", name, "--examples", str(asked.examples), *FUZZED[name]),
            *("--known", str(FINDINGS), "--json", str(RECORDS / f"{name}.json")),
        )
        ended.append((f"fuzz {name}", code, seconds))
    if asked.rounds:
        raced = [part for name in RACED for part in ("--allocator", name)]
        code, seconds = pagedbench(
            "race", *raced, "--rounds", str(asked.rounds), "--json", str(RECORDS / "race.json")
        )
        ended.append(("race", code, seconds))

    print()
    for what, code, seconds in ended:
        print(f"{what:<20} {'passed' if code == 0 else f'exit code {code}'}, {seconds:.0f} s")
    return next((code for _, code, _ in ended if code), 0)


if __name__ == "__main__":
    sys.exit(main())
