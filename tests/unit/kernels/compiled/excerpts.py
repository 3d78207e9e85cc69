"""Lines of real listings, taken down by hand: what the parsers have to read."""

# nvdisasm -c -g of the decode kernel for sm_90 (triton 3.9.0, ptxas 13.4), most lines left out.
SASS = """\
	.target	sm_90a
        .type           decode_kernel,@function
decode_kernel:
.text.decode_kernel:
	//## File "/src/kernels/decode.py", line 57
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*00c0*/              @!P0 EXIT ;
	//## File "/src/kernels/sweep.py", line 53
        /*0960*/              @!P0 LDGSTS.E [R82+0x8800], desc[UR12][R2.64], !P1 ;
	//## File "/src/kernels/sweep.py", line 70
        /*1240*/                   LDGSTS.E.BYPASS.128 [R84], desc[UR12][R28.64], !P1 ;
        /*14d0*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
	//## File "/src/kernels/sweep.py", line 128
        /*14e0*/                   LDSM.16.M88.4 R40, [R40+UR8] ;
        /*1560*/                   HMMA.16816.F32.BF16 R32, R24, R40, RZ ;
        /*1570*/                   HMMA.16816.F32.BF16 R44, R24, R42, RZ ;
        /*1cf0*/                   FFMA R32, R32, UR24, -R91.reuse ;
        /*1d70*/                   MUFU.EX2 R32, R32 ;
        /*1df0*/                   F2FP.BF16.F32.PACK_AB R36, R33, R32 ;
        /*2000*/                   UIADD3 UR15, UR15, 0x1, URZ ;
	//## File "/src/kernels/sweep.py", line 70
        /*3210*/                   LDGSTS.E.BYPASS.128 [R83], desc[UR12][R2.64], P2 ;
        /*3330*/               @P1 BRA `(.L_x_1) ;
        /*3340*/                   BRA `(.L_x_2) ;
.L_x_0:
        /*3350*/                   CS2R R18, SRZ ;
.L_x_2:
        /*4000*/                   STL [R1], R2 ;
        /*4010*/                   LDL.LU R2, [R1] ;
	//## File "/src/kernels/decode.py", line 121
        /*7f20*/              @!P6 STG.E.128 desc[UR12][R2.64], R84 ;
        /*7f40*/                   STG.E desc[UR12][R4.64], R13 ;
        /*7f50*/                   EXIT ;
.L_x_5:
        /*7f60*/                   BRA `(.L_x_5);
        /*7f70*/                   NOP;
        /*7f80*/                   NOP;
.L_x_6:
"""

# cuobjdump --dump-resource-usage of the same kernel.
RESOURCES = """\
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function decode_kernel:
  REG:124 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:680 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

# ptxas -v of the prefill kernel for sm_120 (triton 3.9.0).
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'prefill_kernel' for 'sm_120a'
ptxas info    : Function properties for prefill_kernel
    128 bytes stack frame, 124 bytes spill stores, 132 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 128 bytes cumulative stack size
"""

# PTX of the decode kernel with one stage: a load lies one line below its statement.
PTX = """\
	.loc	3 53 29, function_name $L__info_string0, inlined_at 3 110 20 // sweep.py:53:29
	mad.wide.s32 	%rd32, %r417, 4, %rd6;
	// begin inline asm
	.loc	3 53 21, function_name $L__info_string0, inlined_at 3 110 20 // sweep.py:53:21
	mov.u32 %r199, 0x0;
	.loc	3 54 21, function_name $L__info_string0, inlined_at 3 110 20 // sweep.py:54:21
	ld.global.b32 { %r199 }, [ %rd32 + 0 ];

	// end inline asm
	// begin inline asm
	.loc	3 70 16, function_name $L__info_string0, inlined_at 3 110 20 // sweep.py:70:16
	@%p5 cp.async.cg.shared.global [ %r300 + 0 ], [ %rd40 + 0 ], 0x10, %r301;
	// end inline asm
	.file	1 "/src/kernels/decode.py"
	.file	3 "/src/kernels/sweep.py"
"""

# Triton's amdgcn of the decode kernel for gfx942 (triton 3.9.0), most lines left out. The line with
# "lds" is from gfx950.
AMDGCN = """\
	.amdgcn_target "amdgpu9.42-amd-amdhsa-unknown-gfx942"
	.text
	.globl	decode_kernel                   ; -- Begin function decode_kernel
decode_kernel:                          ; @decode_kernel
.Lfunc_begin0:
	.cfi_startproc
	.file	1 "/src/kernels" "decode.py"
	.loc	1 10 0 prologue_end             ; decode.py:10:0
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_waitcnt lgkmcnt(0)
	s_cbranch_scc0 .LBB0_37
; %bb.1:
	.loc	1 81 12                         ; decode.py:81:12
	buffer_load_dwordx4 v[20:23], v3, s[20:23], 0 offen
	.file	3 "/src/kernels" "sweep.py"
	.loc	3 53 21                         ; sweep.py:53:21 @[ sweep.py:110:20 ]
	buffer_load_dword v20, v14, s[8:11], 0 offen
.LBB0_3:                                ; =>This Inner Loop Header: Depth=1
	ds_read2_b64 v[6:9], v3 offset1:16
	v_mfma_f32_16x16x16_bf16 v[2:5], v[6:7], v[8:9], 0
	v_cvt_f32_bf16_e32 v1, v2
	v_exp_f32_e32 v1, v1
	v_fma_f32 v1, v2, s4, v3
	v_add_u32_e32 v2, s6, v3
	.loc	3 70 16                         ; sweep.py:70:16 @[ sweep.py:110:20 ]
	buffer_load_dwordx4 v[20:23], v2, s[4:7], 0 offen
	buffer_load_dwordx4 v5, s[16:19], 0 offen lds
	s_cbranch_scc1 .LBB0_3
	scratch_store_dword off, v1, off offset:4 ; 4-byte Folded Spill
	buffer_store_dwordx2 v[2:3], v4, s[8:11], 0 offen
.LBB0_37:
	s_endpgm
.Lfunc_end0:
	.section	.AMDGPU.csdata
; Occupancy: 2
    .private_segment_fixed_size: 8
    .sgpr_count:     106
    .sgpr_spill_count: 25
    .vgpr_count:     217
    .agpr_count:     0
    .vgpr_spill_count: 1
"""
