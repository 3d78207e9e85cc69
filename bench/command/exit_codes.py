"""What the commands end with.

Python, the terminal library and a closed pipe all like to end a process with 1, which here means
that a kernel is wrong, or a published figure is missed: what is not a verdict never ends so.
"""

from __future__ import annotations

RIGHT = 0
WRONG = 1
"""Also worse than before, a published figure missed, an allocator that did not finish a race."""
USAGE = 2
INCONCLUSIVE = 3
HARNESS_FAILED = 4
"""Also where a report cannot be written: what is not there to be read is no verdict."""
OUTPUTS_DIFFER = 5
INTERRUPTED = 130
"""By Ctrl-C or SIGTERM."""
