"""`python -m pagedbench`, and what the command `pagedbench` starts."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line; it exits with the command's exit code."""
    package = Path(__file__).resolve().parent
    if not (package / "bench").is_dir():
        # In a checkout the rooms lie beside this package: before whatever else has their names.
        sys.path.insert(0, str(package.parent))
    from bench.cli import main as run

    run()


if __name__ == "__main__":
    main()
