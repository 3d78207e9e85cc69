"""Listings of both makers: instructions, accesses, loops, sources, resources."""

from __future__ import annotations

import pytest

from kernels.compiled import amdgcn, sass
from kernels.compiled.disassembly import (
    Access,
    Instruction,
    Listing,
    count_classes,
    count_matrix,
    count_memory,
    count_sources,
    main_loop,
)

from .excerpts import AMDGCN, PTX, PTXAS, RESOURCES, SASS

SWEEP = "/src/kernels/sweep.py"


def line_of(source):
    return f"{source[0].rpartition('/')[2]}:{source[1]}"


def test_sass_is_read_up_to_its_padding():
    listing = sass.parse_sass(SASS)
    assert len(listing.instructions) == 22
    assert listing.instructions[-1].opcode == "BRA"
    assert count_memory(listing.instructions) == {
        "async copy 16 B": 2,
        "async copy 4 B": 1,
        "store 16 B": 1,
        "store 4 B": 1,
    }
    classes = count_classes(listing.instructions)
    assert classes["spill"] == 2
    assert classes["control"] == 6
    assert "other" not in classes


def test_the_main_loop_of_sass_is_the_one_with_the_matrix_instructions():
    loop = main_loop(sass.parse_sass(SASS))
    assert loop[0].opcode == "LDSM.16.M88.4"
    assert loop[-1].label == ".L_x_1"
    assert count_matrix(loop) == {"HMMA": 2}
    assert count_classes(loop) == {
        "matrix": 2,
        "async copy": 1,
        "control": 1,
        "conversion": 1,
        "integer": 1,
        "multiply-add": 1,
        "shared memory": 1,
        "special function": 1,
    }
    assert count_sources(loop, line_of) == {"sweep.py:70": {"async copy 16 B": 1}}


@pytest.mark.parametrize(
    ("opcode", "kind", "access"),
    [
        ("LDG.E.128", "global load", Access("load", 16)),
        ("LDG.E.U16", "global load", Access("load", 2)),
        ("LDG.E.U8.CONSTANT", "global load", Access("load", 1)),
        ("LDG.E", "global load", Access("load", 4)),
        ("LDGSTS.E.64", "async copy", Access("async copy", 8)),
        ("UTMALDG.2D", "bulk copy", Access("bulk copy", 0)),
        ("REDG.E.ADD.F32.FTZ.RN.STRONG.GPU", "atomic", Access("atomic", 4)),
        ("HGMMA.64x64x16.F32.BF16", "matrix", None),
        ("UTCHMMA", "matrix", None),
        ("FFMA", "multiply-add", None),
        ("REDUX.SUM.S32", "shuffle", None),
        ("UIADD3", "integer", None),
        ("STL.64", "spill", None),
        ("QUUX.R1", "other", None),
    ],
)
def test_an_opcode_of_sass_has_a_class_and_a_width(opcode, kind, access):
    assert sass.class_of(opcode) == kind
    assert sass.access_of(opcode) == access


def test_a_load_is_traced_past_the_lines_of_its_assembly():
    shifted = sass.read_shifted_lines(PTX)
    assert shifted == {
        ("load", (SWEEP, 54)): (SWEEP, 53),
        ("async copy", (SWEEP, 70)): (SWEEP, 70),
    }
    text = f'\t//## File "{SWEEP}", line 54\n        /*0000*/  LDG.E R1, desc[UR12][R2.64] ;\n'
    (load,) = sass.parse_sass(text, shifted).instructions
    assert load.source == (SWEEP, 53)
    # A copy on that line is another statement's.
    text = text.replace("LDG.E R1", "LDGSTS.E [R1]")
    (copied,) = sass.parse_sass(text, shifted).instructions
    assert copied.source == (SWEEP, 54)


def test_a_load_whose_file_the_listing_lost_is_found_by_its_line():
    shifted = sass.read_shifted_lines(PTX)
    text = '\t//## File "/src/kernels/prefill.py", line {}\n  /*0000*/  LDGSTS.E [R1], [R2.64] ;\n'
    (lost,) = sass.parse_sass(text.format(70), shifted).instructions
    assert lost.source == (SWEEP, 70)
    (unknown,) = sass.parse_sass(text.format(71), shifted).instructions
    assert unknown.source == ("/src/kernels/prefill.py", 71)


def test_what_the_tools_say_of_resources():
    assert sass.read_resources(RESOURCES) == {"REG": 124, "STACK": 0, "SHARED": 1024, "LOCAL": 0}
    assert sass.read_spill_bytes(PTXAS) == 124


def test_amdgcn_is_read_up_to_the_end_of_its_function():
    listing = amdgcn.parse_amdgcn(AMDGCN)
    assert len(listing.instructions) == 17
    assert count_memory(listing.instructions) == {
        "load 16 B": 2,
        "async copy 16 B": 1,
        "load 4 B": 1,
        "store 8 B": 1,
    }
    classes = count_classes(listing.instructions)
    assert classes["spill"] == 1
    assert "other" not in classes
    loop = main_loop(listing)
    assert loop[0].opcode == "ds_read2_b64"
    assert loop[-1].label == ".LBB0_3"
    assert count_matrix(loop) == {"v_mfma_f32_16x16x16_bf16": 1}
    assert count_sources(listing.instructions, line_of) == {
        "decode.py:81": {"load 16 B": 1},
        "sweep.py:53": {"load 4 B": 1},
        "sweep.py:70": {"async copy 16 B": 1, "load 16 B": 1},
    }


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("v_fmac_f32_e32", "multiply-add"),
        ("v_pk_fma_f32", "multiply-add"),
        ("v_pk_mul_f32", "float"),
        ("v_max_f32_e32", "float"),
        ("v_lshlrev_b32_e32", "integer"),
        ("v_cvt_pk_bf16_f32", "conversion"),
        ("s_add_u32", "scalar"),
        ("s_load_dword", "constant load"),
        ("ds_bpermute_b32", "shuffle"),
        ("ds_read_b128", "shared memory"),
        ("global_load_lds_dwordx4", "async copy"),
        ("global_atomic_add_f32", "atomic"),
        ("s_waitcnt", "barrier"),
    ],
)
def test_an_opcode_of_amdgcn_has_a_class(opcode, kind):
    assert amdgcn.class_of(opcode) == kind


def test_metadata_of_amdgcn():
    counts = amdgcn.read_metadata(AMDGCN)
    assert counts["vgpr_count"] == 217
    assert counts["sgpr_spill_count"] == 25
    assert counts["private_segment_fixed_size"] == 8


def instructions(*kinds, branches=None):
    """A listing of instructions by class; `branches` maps an index to the index it jumps to."""
    branches = branches or {}
    return Listing(
        tuple(
            Instruction(kind, kind, None, f"L{branches[at]}" if at in branches else None, ("", 0))
            for at, kind in enumerate(kinds)
        ),
        {f"L{at}": at for at in branches.values()},
    )


def test_an_outer_loop_is_not_the_main_loop():
    listing = instructions("move", "matrix", "control", "matrix", "control", branches={2: 1, 4: 0})
    assert len(main_loop(listing)) == 2


def test_a_spinning_wait_inside_does_not_hide_the_main_loop():
    listing = instructions("matrix", "barrier", "control", "control", branches={2: 1, 3: 0})
    assert len(main_loop(listing)) == 4


def test_of_equal_loops_the_shortest_is_the_main_loop():
    listing = instructions(
        "matrix", "integer", "control", "matrix", "control", branches={2: 0, 4: 3}
    )
    assert len(main_loop(listing)) == 2


def test_multiply_adds_count_where_there_are_no_matrix_instructions():
    listing = instructions("integer", "control", "multiply-add", "control", branches={1: 0, 3: 2})
    assert [each.kind for each in main_loop(listing)] == ["multiply-add", "control"]
    assert main_loop(instructions("integer", "control", branches={1: 0})) == ()
