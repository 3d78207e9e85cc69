"""NVIDIA's machine code, as `nvdisasm -c -g` prints it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from kernels.compiled.disassembly import Access, Instruction, Listing

_SOURCE = re.compile(r'//## File "(.+)", line (\d+)$')
_LABEL = re.compile(r"\s*(\.L_[\w.]+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_BRANCH = re.compile(r"`\((\.L_[\w.]+)\)")
_WIDTH = re.compile(r"\.[US]?(8|16|32|64|128|256)\b")

_MEMORY: Final = {
    "LDG": "load",
    "LD": "load",
    "LDGSTS": "async copy",
    "UTMALDG": "bulk copy",
    "UBLKCP": "bulk copy",
    "STG": "store",
    "ST": "store",
    "UTMASTG": "store",
    "ATOM": "atomic",
    "ATOMG": "atomic",
    "RED": "atomic",
    "REDG": "atomic",
    "UTMAREDG": "atomic",
}
_NO_WIDTH: Final = ("UTMA", "UBLKCP")
"""What moves boxes: how many bytes is in a descriptor, not in the instruction."""

_CLASSES: Final = {
    "multiply-add": "FFMA FFMA2 FFMA32I DFMA",
    "float": "FADD FADD2 FADD32I FMUL FMUL2 FMUL32I FMNMX FMNMX3 FSETP FSEL FSET FCHK FSWZADD "
    "DADD DMUL DSETP",
    "half": "HADD2 HADD2_32I HFMA2 HFMA2_32I HMUL2 HMUL2_32I HSETP2 HSET2 HMNMX2",
    "special function": "MUFU",
    "conversion": "F2F F2FP F2I F2IP I2F I2FP I2I FRND",
    "integer": "IMAD IADD IADD3 IADD32I IMUL IMUL32I ISETP IMNMX VIMNMX VIMNMX3 VIADD VIADDMNMX "
    "LEA LOP3 LOP LOP32I PLOP3 SHF SHL SHR PRMT SEL ISCADD BFE SGXT IABS POPC FLO BREV IDP BMSK "
    "VABSDIFF IDE",
    "move": "MOV MOV32I CS2R S2R S2UR R2UR R2P P2R UP2UR UR2UP MOVM R2B B2R",
    "constant load": "LDC LDCU ULDC LDC64",
    "shared memory": "LDS STS LDSM STSM ATOMS",
    "tensor memory": "LDTM STTM UTCCP UTCATOMSWS UTCBAR UTCSHIFT",
    "spill": "LDL STL",
    "shuffle": "SHFL VOTE VOTEU MATCH REDUX CREDUX",
    "barrier": "BAR DEPBAR LDGDEPBAR SYNCS MEMBAR WARPSYNC WARPGROUP ERRBAR FENCE CCTL ARRIVES "
    "UCGABAR_ARV UCGABAR_WAIT ACQBULK PREEXIT UTMACMDFLUSH UTMACCTL",
    "control": "NOP BRA BRX EXIT BSSY BSYNC CALL RET JMP BREAK BMOV YIELD NANOSLEEP ELECT BPT KILL "
    "USETMAXREG UVIRTCOUNT",
}
_CLASS_OF: Final = {name: kind for kind, names in _CLASSES.items() for name in names.split()}


Source = tuple[str, int]
"""File and line of a statement."""

ShiftedLines = dict[tuple[str, Source], Source]
"""(kind of access, where it seems to come from) -> where it comes from."""


def parse_sass(text: str, shifted_lines: ShiftedLines | None = None) -> Listing:
    """Read a kernel's listing, but the NOPs at its end, which are padding."""
    lines = shifted_lines or {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source = ("", 0)
    for line in text.splitlines():
        if said := _SOURCE.search(line):
            source = (said[1], int(said[2]))
        elif label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.search(line):
            opcode, operands = found[1], found[2]
            access = access_of(opcode)
            branch = _BRANCH.search(operands) if opcode.startswith("BRA") else None
            instructions.append(
                Instruction(
                    opcode=opcode,
                    kind=class_of(opcode),
                    access=access,
                    label=branch[1] if branch else None,
                    source=_true_source(access.kind, source, lines) if access else source,
                )
            )
    while instructions and instructions[-1].opcode == "NOP":
        instructions.pop()
    return Listing(tuple(instructions), labels)


def _true_source(kind: str, source: Source, lines: ShiftedLines) -> Source:
    """The statement of an access.

    Where two files follow each other with the same line number, the listing goes on with the first
    one: a line of which the PTX knows no such access is looked for in the other files.
    """
    if (kind, source) in lines:
        return lines[kind, source]
    same_line = {at for (of, (_, line)), at in lines.items() if (of, line) == (kind, source[1])}
    return same_line.pop() if len(same_line) == 1 else source


def class_of(opcode: str) -> str:
    """The class of an instruction; `other` for one that is not known here."""
    name = opcode.partition(".")[0]
    if name.endswith("MMA"):
        return "matrix"
    if name in _MEMORY:
        return {"load": "global load", "store": "global store"}.get(_MEMORY[name], _MEMORY[name])
    # The uniform datapath has the same instructions with a U before them.
    return _CLASS_OF.get(name) or _CLASS_OF.get(name.removeprefix("U"), "other")


def access_of(opcode: str) -> Access | None:
    """What an instruction does with global memory; 4 bytes where its name has no width."""
    name, _, modifiers = opcode.partition(".")
    if name not in _MEMORY:
        return None
    if name.startswith(_NO_WIDTH):
        return Access(_MEMORY[name], 0)
    width = _WIDTH.search("." + modifiers)
    return Access(_MEMORY[name], int(width[1]) // 8 if width else 4)


_PTX_LOCATION = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
_PTX_LOAD = re.compile(r"\s*(?:@!?%p\d+\s+)?(ld\.global|cp\.async\.c[ag])")
_PTX_KINDS: Final = {"l": "load", "c": "async copy"}


def read_shifted_lines(ptx: str) -> ShiftedLines:
    """Where loads seem to come from, and where they do.

    Triton writes loads as inline assembly of several lines, and LLVM counts these lines on from
    the statement's own: a load after three moves seems to come from three lines below. The first
    location inside each piece of assembly is the true one. Where two statements seem to lie on one
    line, the one with more loads is meant.
    """
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', ptx, re.MULTILINE))
    seen: Counter[tuple[tuple[str, Source], Source]] = Counter()
    true: Source | None = None
    shifted: Source | None = None
    inside = False
    for line in ptx.splitlines():
        if "begin inline asm" in line:
            inside, true = True, None
        elif "end inline asm" in line:
            inside = False
        elif said := _PTX_LOCATION.match(line):
            shifted = (files.get(said[1], ""), int(said[2]))
            true = true or shifted
        elif inside and shifted and true and (load := _PTX_LOAD.match(line)):
            seen[(_PTX_KINDS[load[1][0]], shifted), true] += 1
    return dict(pair for pair, _ in reversed(seen.most_common()))


def read_resources(text: str) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of `cuobjdump --dump-resource-usage`."""
    found = re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)
    return {name: int(count) for name, count in found}


def read_spill_bytes(text: str) -> int:
    """Bytes of spill stores in what `ptxas -v` says, of all functions together."""
    return sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", text))
