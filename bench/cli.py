"""The command line, of which `bench.commands.app` is made.

Next to nothing is imported before signals are taken care of: until then Ctrl-C is a traceback.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Entry point of the command `pagedbench`."""
    import gc

    from bench.command import signals

    signals.end_at_once()
    # What is imported is no garbage: looking for some takes a third of the start, and of the end.
    gc.set_threshold(100_000, 20, 20)
    from bench.command.exit_codes import HARNESS_FAILED
    from bench.command.streams import SafeStream

    stdout = sys.stdout
    sys.stdout = output = SafeStream(lambda: stdout)
    code: Any = HARNESS_FAILED
    try:
        from bench.commands.app import app
        from reference.stack import with_stack_room

        with_stack_room(app)(prog_name="pagedbench")
    except SystemExit as end:
        code = end.code
    except Exception:
        import traceback

        sys.stderr.write("the harness itself failed; this says nothing about the kernel:\n")
        traceback.print_exc()
    if output.lost is not None and not code:
        code = HARNESS_FAILED
    # What is left is the interpreter's own end: the verdict stands.
    signals.end_at_once(code or 0)
    gc.freeze()
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name == "app":
        from bench.commands.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()
