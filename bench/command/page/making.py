"""Makes the page: one file, which asks no other for anything and runs only its own script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import metadata
from importlib.resources import files
from typing import Final

from bench.command.page.parts import Sheet

SIGNS: Final = {"good": "\u2713", "bad": "\u2717", "unsure": "?", "": "\u2022", "dim": "\u2022"}
"""Beside the colour of a tone."""


def page(sheets: Sequence[Sheet], *, links: Sequence[tuple[str, str]] = ()) -> str:
    """Records as one page, those that need somebody first; `links` are of an address and words."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    script, style = _asset("page.js"), _asset("page.css")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    order = {"bad": 0, "unsure": 1}
    made: str = environment.from_string(_asset("page.html")).render(
        sheets=sorted(sheets, key=lambda sheet: order.get(sheet.tone, 2)),
        signs=SIGNS,
        links=links,
        version=pagedbench_version(),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'",
        # Both stand between tags as they are, and hold nothing but what is in this folder.
        style=Markup(style),
        script=Markup(script),
        trusted=Markup,
    )
    return made


def pagedbench_version() -> str:
    """Of what makes the page."""
    found = next(iter(metadata.distributions(name="pagedbench")), None)
    return "not installed" if found is None else found.version


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
