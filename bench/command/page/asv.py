"""Links between a page and the one that `asv publish` wrote."""

from __future__ import annotations

import os
import re
from html import escape
from pathlib import Path
from urllib.parse import quote

MARK = "<!-- pagedbench report -->"


def link_to(target: Path, page: Path) -> str:
    """The address of one file in another."""
    return quote(os.path.relpath(target.absolute(), page.absolute().parent))


def link(index: Path, page: Path) -> None:
    """Put a link to a page into asv's, once."""
    text = index.read_text(encoding="utf-8")
    text = re.sub(f"{re.escape(MARK)}.*?{re.escape(MARK)}", "", text, flags=re.DOTALL)
    address = escape(link_to(page, index))
    line = f'{MARK}<p><a href="{address}">The last report of pagedbench</a></p>{MARK}'
    index.write_text(text.replace("</body>", f"{line}</body>", 1), encoding="utf-8")
