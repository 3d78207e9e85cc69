"""`python -m pagedbench`, and what the command `pagedbench` starts."""

import os
import signal
import sys


def main() -> None:
    """Run the command line; it exits with the command's exit code."""
    # Until this line a signal is the interpreter's; `bench.command.signals` takes them over.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(130))
    package = os.path.dirname(os.path.realpath(__file__))
    if not os.path.isdir(os.path.join(package, "bench")):
        # In a checkout the rooms lie beside this package: before whatever else has their names.
        sys.path.insert(0, os.path.dirname(package))
    from bench.cli import main as run

    run()


if __name__ == "__main__":
    main()
