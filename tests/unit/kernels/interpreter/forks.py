"""What the scripts beside this file share: they run each variant of the interpreter in a fork.

The interpreter is the process's, and what is patched stays patched. A fork starts in milliseconds
from a process that has imported torch and Triton already.
"""

import json
import os
from collections.abc import Callable
from typing import Any


def in_fork(task: Callable[[], Any]) -> Any:
    """The result of a task, by way of JSON, run in a fork of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            with os.fdopen(writer, "w", encoding="utf-8") as pipe:
                json.dump(task(), pipe)
        finally:
            os._exit(0)  # what is missing in the pipe tells the parent
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RuntimeError(f"the fork ended with status {status} after {text!r}") from error
