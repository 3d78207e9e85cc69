"""How fast attention kernels are, ours and others', in one process and in turns.

Data flows one way: a point (`points`) gives tensors (`tensors`); candidates (`candidates`) make
calls of them; `bench.cuda_timing` times the calls; `run` puts it all into a record (`record`), and
the reports in `bench.report` read nothing else.
"""
