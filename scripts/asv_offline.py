"""Make the page that `asv publish` writes work where there is no network.

asv's index.html takes jQuery, Flot, Bootstrap and three smaller scripts from other hosts, and shows
an error page where they do not come. `scripts/asv_vendor` holds the same libraries, unchanged, from
their npm packages. Its `manifest.json` has the path that asv asks the other host for, the package
and the SHA-256 of each file; `LICENSES.txt` has their license. Files whose bytes asv itself pins
are those bytes, with two exceptions: of Flot, which the other host has minified by itself, it is
the package's own source of that release; of Stupid Table it is 1.1.3 instead of 1.0.1.

    python scripts/asv_offline.py .asv/html

A browser does not let a page read its data from file://, so look at it through any web server:
`asv preview`, or `python -m http.server -d .asv/html`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, TypeAdapter

VENDOR: Final = Path(__file__).with_name("asv_vendor")

_TAG: Final = re.compile(r"<(?:script|link)\b[^>]*>", re.IGNORECASE)
_ELSEWHERE: Final = re.compile(r"""\b(?:src|href)\s*=\s*["']((?:https?:)?//[^"']+)["']""")


class OfflineError(ValueError):
    """The page cannot be made to work offline; the message says what is missing."""


class VendoredFile(BaseModel):
    """One library file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: str
    """The path of the address that asv's page would take it from, without the host."""
    file: str
    """Its name in the vendor folder."""
    package: str
    path: str
    """The npm package with its version, and the path inside."""
    sha256: str
    """Of its bytes, in hexadecimal."""


def read_manifest(vendor: Path = VENDOR) -> dict[str, VendoredFile]:
    """Vendored files by the address that asv names.

    Raises OfflineError where a file is missing or is not the one that the manifest describes.
    """
    text = (vendor / "manifest.json").read_bytes()
    files = TypeAdapter(list[VendoredFile]).validate_json(text)
    for each in files:
        path = vendor / each.file
        if not path.is_file():
            raise OfflineError(f"{path} is missing: it is {each.path} of {each.package}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != each.sha256:
            raise OfflineError(
                f"{path} has SHA-256 {found}, the manifest {each.sha256}: restore it from "
                f"{each.path} of {each.package}"
            )
    return {each.asked: each for each in files}


def make_offline(html_dir: Path, *, vendor: Path = VENDOR) -> tuple[str, ...]:
    """Rewrite a published page so that it loads nothing from another host.

    Parameters
    ----------
    html_dir
        What `asv publish` wrote. Doing it twice changes nothing more.
    vendor
        Folder of the libraries and their manifest.

    Returns
    -------
    tuple of str
        Paths of the addresses that were replaced.

    Raises OfflineError where there is no page, or it loads something that is not vendored.
    """
    index = html_dir / "index.html"
    if not index.is_file():
        raise OfflineError(f"{index} does not exist: run `asv publish` first")
    known = read_manifest(vendor)
    replaced: list[str] = []

    def local(match: re.Match[str]) -> str:
        tag = match[0]
        address = _ELSEWHERE.search(tag)
        if address is None:
            return tag
        asked = urlsplit(address[1]).path
        if asked not in known:
            raise OfflineError(
                f"{index} loads {address[1]}, which is not in {vendor}: add the file and its line "
                f"in manifest.json"
            )
        file = known[asked].file
        replaced.append(asked)
        if tag.lower().startswith("<link"):
            return f'<link rel="stylesheet" href="vendor/{file}">'
        return f'<script src="vendor/{file}" onerror="js_load_failure()">'

    page = _TAG.sub(local, index.read_text(encoding="utf-8"))
    for asked in replaced:
        (html_dir / "vendor").mkdir(exist_ok=True)
        shutil.copyfile(vendor / known[asked].file, html_dir / "vendor" / known[asked].file)
    if replaced:
        shutil.copyfile(vendor / "LICENSES.txt", html_dir / "vendor" / "LICENSES.txt")
        index.write_text(page, encoding="utf-8")
    return tuple(replaced)


def main(arguments: list[str]) -> int:
    """Rewrite the page in the folder that is named; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python scripts/asv_offline.py HTML_DIR", file=sys.stderr)
        return 2
    try:
        replaced = make_offline(Path(arguments[0]))
    except OfflineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments[0]}: {len(replaced)} files of other hosts are now its own")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
