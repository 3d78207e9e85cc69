"""AMD's machine code: the assembly that Triton keeps, with the metadata at its end."""

from __future__ import annotations

import re
from typing import Final

from kernels.compiled.disassembly import Access, Instruction, Listing

_FILE = re.compile(r'\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?')
_LOCATION = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
_LABEL = re.compile(r"(\.?\w+):")
_INSTRUCTION = re.compile(r"\s+([a-z]\w+)(?:\s+([^;]*))?")
_BRANCHES: Final = ("s_cbranch", "s_branch")
_MEMORY = re.compile(r"(?:buffer|global|flat)_(load|store|atomic)_(?:lds_)?(\w+)")
_WIDTHS: Final = {
    "dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "byte": 1,
}  # fmt: skip

_CLASSES: Final = (
    ("matrix", r"v_s?mfma"),
    ("multiply-add", r"v_(pk_)?(fma|fmac|mad|mac)_.*f(16|32|64)"),
    ("conversion", r"v_cvt"),
    ("special function", r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_"),
    ("move", r"v_(mov|accvgpr|readlane|writelane|readfirstlane|swap)|s_c?mov"),
    ("shuffle", r"ds_(bpermute|permute|swizzle)|v_permlane"),
    ("shared memory", r"ds_"),
    ("spill", r"scratch_"),
    ("constant load", r"s_(buffer_)?load"),
    ("barrier", r"s_(waitcnt|barrier|sleep|setprio|nop)|buffer_(wbl2|inv)"),
    ("control", r"s_(cbranch|branch|endpgm|setpc|getpc|swappc|trap)"),
    ("float", r"v_.*_(b?f16|f32|f64)"),
    ("scalar", r"s_"),
    ("integer", r"v_"),
)
_CLASS_PATTERNS: Final = tuple((kind, re.compile(pattern)) for kind, pattern in _CLASSES)


def parse_amdgcn(text: str) -> Listing:
    """Read the instructions of a kernel's assembly."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    files: dict[str, str] = {}
    source = ("", 0)
    for line in text.splitlines():
        if line.startswith(".Lfunc_end"):
            break  # data and metadata follow
        if named := _FILE.match(line):
            files[named[1]] = f"{named[2]}/{named[3]}" if named[3] else named[2]
        elif said := _LOCATION.match(line):
            source = (files.get(said[1], ""), int(said[2]))
        elif label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            opcode, operands = found[1], (found[2] or "").strip()
            instructions.append(
                Instruction(
                    opcode=opcode,
                    kind=class_of(opcode, operands),
                    access=access_of(opcode, operands),
                    label=operands if opcode.startswith(_BRANCHES) else None,
                    source=source,
                )
            )
    return Listing(tuple(instructions), labels)


def class_of(opcode: str, operands: str = "") -> str:
    """The class of an instruction; `other` for one that is not known here."""
    if access := access_of(opcode, operands):
        return {"load": "global load", "store": "global store"}.get(access.kind, access.kind)
    return next((kind for kind, known in _CLASS_PATTERNS if known.match(opcode)), "other")


def access_of(opcode: str, operands: str = "") -> Access | None:
    """What an instruction does with global memory. A load may go to LDS, past the registers."""
    found = _MEMORY.match(opcode)
    if not found:
        return None
    kind, what = found.groups()
    width = next((size for name, size in _WIDTHS.items() if name in what), 0)
    if kind == "load" and ("_lds_" in opcode or operands.endswith(" lds")):
        kind = "async copy"
    return Access(kind, width)


def read_metadata(text: str) -> dict[str, int]:
    """The counts of a kernel's metadata, such as `vgpr_count`, by name."""
    return {
        name: int(count)
        for name, count in re.findall(r"^\s+\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)
    }
