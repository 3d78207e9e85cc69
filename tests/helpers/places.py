"""Where the checkout and its documentation lie, and how its command is started."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

COMMAND = [
    *(sys.executable, "-P", "-c"),
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bench.cli import main; main()",
]
"""What the installed command does, without its being installed."""
