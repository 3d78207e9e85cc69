"""The regression gate: base against head, counted first, timed in pairs second.

`record`      what a run leaves behind
`contestant`  code and an interpreter: commits, folders, environments
`benchmark`   what a benchmark is, and what it says of itself besides its time
`suite`       the benchmarks
`worker`      one contestant's process: sets up, counts, takes turns
`turns`       one launch: two workers in turns on one core
`statistics`  exact tests at fixed looks
`counters`    equal, better, or worse by how much
`verdict`     from samples to verdicts, again from a record alone
`run`         all of it in order

This package comes from the head for both sides; all other rooms come from each side's own tree.
"""
