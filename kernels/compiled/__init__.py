"""Ahead-of-time figures: what the compilers make of Triton kernels, without a GPU.

`variants` says what is compiled and `targets` for what. `capture` compiles the launches of a host
function, `measure` reads the machine code, `figures` holds what is read. `baseline` compares with
figures that are stored, and `explain` puts each change into words.

Compiling needs a process in which Triton was imported without TRITON_INTERPRET: `capture` and
`measure` are for such a process (`bench.compile.worker`). The other modules import no Triton.
"""
