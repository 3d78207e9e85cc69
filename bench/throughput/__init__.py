"""How fast attention kernels are, ours and others', in one process and in turns.

Data flows one way: a point (`points`) gives tensors (`tensors`); candidates (`candidates`) make
calls of them; `bench.machine.timing` times the calls; `run` puts it all into a record, and
`report` and `plot` read nothing else.
"""
