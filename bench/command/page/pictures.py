"""Figures of matplotlib as SVG that stands in a page: no styles, no identifiers twice, no ink.

A content-security policy that lets no inline style through is the reason for the first: what
matplotlib writes as `style="fill: #0072b2"` becomes the attribute. Black becomes the text's colour,
so that axes can be read on a dark page, too.
"""

from __future__ import annotations

import re
from functools import partial
from io import BytesIO
from itertools import count
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG: Final = "http://www.w3.org/2000/svg"
XLINK: Final = "{http://www.w3.org/1999/xlink}href"
INK: Final = {"#000000", "black"}

# Okabe and Ito's colours, which differ in lightness too; black is the text's.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS: Final = ("o", "s", "^", "D", "v", "P")

_DROPPED: Final = frozenset({"metadata", "style"})
_SIZE: Final = re.compile(r"(?:font-size: *|font: *[^;]*?)([\d.]+)px")
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_numbers = count()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; 5.2 of them are a telephone's width with text to be read."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain_numbers(axes: Axes) -> None:
    """Label a logarithmic axis without formulas, which need fonts of their own."""
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            low, high = axis.get_view_interval()
            between = "25" if high < 50 * low else ""
            axis.set_minor_formatter(partial(_minor, between))


def _minor(shown: str, value: float, _: object) -> str:
    """A tick between powers of ten, of those that begin with a digit that is shown."""
    return f"{value:g}" if f"{value:e}"[0] in shown else ""


def as_svg(figure: Figure, *, said: str) -> str:
    """A figure as an element of a page; `said` is for those who do not see it."""
    import matplotlib as mpl
    from matplotlib.text import Text

    written = BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar in a name begins no formula
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pagedbench"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(_CONTROLS.sub(b" ", written.getvalue()))
    prefix = f"f{next(_numbers)}-"
    for parent in root.iter():
        for child in [each for each in parent if _name(each) in _DROPPED]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _name(element)
        _without_styles(element, prefix)
    for word in ("width", "height", "version"):
        root.attrib.pop(word, None)
    root.attrib |= {"role": "img", "aria-label": said, "xmlns": SVG}
    return ElementTree.tostring(root, encoding="unicode")


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _without_styles(element: ElementTree.Element, prefix: str) -> None:
    given = element.attrib
    style = given.pop("style", "")
    for part in style.split(";"):
        name, _, value = (word.strip() for word in part.partition(":"))
        if name and not name.startswith("font") and name != "image-rendering":
            given[name] = value
    if (size := _SIZE.search(style)) is not None:
        given["font-size"] = size[1]
    for name in ("fill", "stroke"):
        if given.get(name, "") in INK:
            given[name] = "currentColor"
    if element.tag == "text" and "fill" not in given:
        given["fill"] = "currentColor"
    if "id" in given:
        given["id"] = prefix + given["id"]
    if XLINK in given:
        given["href"] = given.pop(XLINK)
    for name, value in list(given.items()):
        if name == "href" or "url(#" in value:
            given[name] = re.sub(r"(^|url\()#", rf"\g<1>#{prefix}", value)
