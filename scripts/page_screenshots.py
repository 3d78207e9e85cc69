"""Make the pictures of docs/report.md and README.md: pages of real records, in headless Chromium.

An allocator that gives blocks back although a fork still reads them is fuzzed, a stream is served
from a pool; `python -m scripts.page_screenshots` writes docs/report-*.png. Needs Debian's chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "bench" / "command" / "templates" / "pool.py.txt"

FORKING = """

class Forking(Pool):
    def fork(self, parent, child):
        self.tables[child] = self.tables[parent]
        return True

    def take_copies(self):
        return []

    def counts(self):
        used = {block for blocks, _ in self.tables.values() for block in blocks}
        return self.num_blocks - len(used), 0, len(used)


def make(num_blocks, block_size, *, prefix_caching, window):
    return Forking(num_blocks, block_size)


make.capabilities = {"prefix_caching": False, "fork": True, "single_appends": True}
"""

FUZZ = "fuzz --allocator pool.py:make --seed 3 --examples 500 --findings 2 --html fuzz.html"
WASTE = (
    "waste -q --stream sharegpt-fit --requests 300 --slots 4000 --policy max/buddy "
    "--policy paged --html waste.html"
)
PICTURES = {"report-fuzz": (FUZZ, "1000,1180"), "report-waste": (WASTE, "1200,1420")}


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no chromium: install Debian's package of that name")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pool.py").write_text(TEMPLATE.read_text() + FORKING)
        for picture, (command, size) in PICTURES.items():
            words = [sys.executable, "-m", "pagedbench", *command.split()]
            subprocess.run(words, cwd=folder, check=False, stdout=subprocess.DEVNULL)
            drawn = folder / f"{picture}.png"
            shot = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            shot += [f"--user-data-dir={folder / 'profile'}", f"--window-size={size}"]
            shot += [f"--screenshot={drawn}", "--virtual-time-budget=3000"]
            page = (folder / command.split()[-1]).as_uri()
            subprocess.run([*shot, page], check=True, stderr=subprocess.DEVNULL)
            target = ROOT / "docs" / drawn.name
            Image.open(drawn).convert("RGB").quantize(160).save(target, optimize=True)
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
