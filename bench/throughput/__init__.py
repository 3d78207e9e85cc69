"""How fast attention kernels are, ours and others', side by side in one process and in turns.

Data flows one way: a point (`points`) goes to the process that measures (`child`, and `worker` on
its other side), where candidates (`candidates`) make calls of its inputs and
`bench.machine.timing` times them; what they answer is held against samples of the truth
(`tensors`) here. `run` puts it all into a record, and `report` and `plot` read nothing else.
"""
