"""Where the commands write. Text of subjects does nothing there but be read."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from bench.command.streams import SafeStream, without_commands
from bench.command.tables import say
from bench.command.words import printable


class SafeConsole(Console):
    """A console on which text of whatever is under test does nothing but be read."""

    def __init__(self, *, stderr: bool = False) -> None:
        self._stream = SafeStream(
            lambda: sys.stderr if stderr else sys.stdout, cleaned=without_commands
        )
        super().__init__(file=cast("IO[str]", self._stream))

    @property
    def lost(self) -> OSError | None:
        """Why not all that was printed could be written."""
        return self._stream.lost

    def say(self, line: str, style: str = "") -> None:
        """Print a line as it is, however long."""
        say(self, line, style)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does, with text that does nothing to a terminal."""
        if isinstance(renderable, Text) and not renderable.plain.isprintable():
            renderable = renderable.copy()
            renderable.plain = printable(renderable.plain)
        return super().render(renderable, options)

    def render_str(self, text: str, **how: Any) -> Text:
        """As rich does, with text that does nothing to a terminal."""
        return super().render_str(printable(text), **how)
