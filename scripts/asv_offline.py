"""Make the page that `asv publish` writes work where there is no network.

asv's index.html takes jQuery, Flot, Bootstrap and three smaller scripts from other hosts, and shows
an error page where they do not come. The same libraries are in packages of npm's registry, from
which they are fetched once into `.asv/vendor`; from then on no network is needed.
`scripts/asv_vendor/manifest.json` has the path that asv asks the other host for, the package and
the SHA-256 of each file; `LICENSES.txt` has their license. Files whose bytes asv itself pins are
those bytes, with two exceptions: of Flot, which the other host has minified by itself, it is the
package's own source of that release; of Stupid Table it is 1.1.3 instead of 1.0.1.

    python scripts/asv_offline.py .asv/html

A browser does not let a page read its data from file://, so look at it through any web server:
`asv preview`, or `python -m http.server -d .asv/html`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, TypeAdapter

MANIFEST: Final = Path(__file__).with_name("asv_vendor")
"""Folder of the manifest and the licenses."""

VENDOR: Final = Path(__file__).parents[1] / ".asv" / "vendor"
"""Where fetched files are kept."""

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


def read_manifest(manifest: Path = MANIFEST) -> list[VendoredFile]:
    """What there is to fetch."""
    text = (manifest / "manifest.json").read_bytes()
    return TypeAdapter(list[VendoredFile]).validate_json(text)


def fetch(vendor: Path = VENDOR, *, manifest: Path = MANIFEST) -> None:
    """Fetch what is missing, by `npm pack` from the registry that npm is configured for.

    Raises OfflineError: npm is missing or cannot, or a file is not the one that the manifest
    describes.
    """
    files = read_manifest(manifest)
    missing = [each for each in files if not (vendor / each.file).is_file()]
    if missing and shutil.which("npm") is None:
        raise OfflineError(
            f"{vendor} lacks {missing[0].file} of {missing[0].package}, and npm, which fetches it, "
            f"is not installed: install npm (Debian's package is `npm`)"
        )
    vendor.mkdir(parents=True, exist_ok=True)
    for package, some in groupby(missing, key=lambda each: each.package):
        _fetch_package(package, list(some), vendor)
    for each in files:
        _check((vendor / each.file).read_bytes(), each, vendor)


def _fetch_package(package: str, files: Sequence[VendoredFile], vendor: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--fetch-retries=1", package.replace(" ", "@")]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        packed = list(Path(folder).glob("*.tgz"))
        if run.returncode or len(packed) != 1:
            said = (run.stderr or run.stdout).strip()[-500:]
            raise OfflineError(f"{' '.join(command)} ended with {run.returncode}: {said}")
        with tarfile.open(packed[0]) as archive:
            # The folder's name inside is the packer's choice; nothing is unpacked but these files.
            inside = {name.partition("/")[2]: name for name in archive.getnames()}
            for each in files:
                member = archive.extractfile(inside[each.path]) if each.path in inside else None
                if member is None:
                    raise OfflineError(f"{package} of npm's registry has no {each.path}")
                content = member.read()
                _check(content, each, vendor)
                (vendor / each.file).write_bytes(content)


def _check(content: bytes, each: VendoredFile, vendor: Path) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != each.sha256:
        raise OfflineError(
            f"{each.path} of {each.package} has SHA-256 {found}, the manifest {each.sha256}: it is "
            f"not what was vetted; remove {vendor / each.file} to fetch it again"
        )


def make_offline(
    html_dir: Path, *, vendor: Path = VENDOR, manifest: Path = MANIFEST
) -> tuple[str, ...]:
    """Rewrite a published page so that it loads nothing from another host.

    Doing it twice changes nothing more. Returns the paths of the addresses that were replaced.

    Raises OfflineError: there is no page, it loads something that the manifest lacks, or a file of
    the manifest cannot be had.
    """
    index = html_dir / "index.html"
    if not index.is_file():
        raise OfflineError(f"{index} does not exist: run `asv publish` first")
    fetch(vendor, manifest=manifest)
    known = {each.asked: each for each in read_manifest(manifest)}
    replaced: list[str] = []

    def local(match: re.Match[str]) -> str:
        tag = match[0]
        address = _ELSEWHERE.search(tag)
        if address is None:
            return tag
        asked = urlsplit(address[1]).path
        if asked not in known:
            raise OfflineError(
                f"{index} loads {address[1]}, which {manifest / 'manifest.json'} lacks: add its "
                f"package and digest"
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
        shutil.copyfile(manifest / "LICENSES.txt", html_dir / "vendor" / "LICENSES.txt")
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
