"""What asv discovers: `time_` and `track_` benchmarks, and nothing else.

A series is known across commits by module, class, method and parameters, as in
`attention.PagedTorch.time_decode(16, 2048)`: renaming one starts a new series. So does another
`version`, which every class states: raise it where the same name comes to measure something else.
Left to itself asv takes a hash of the source, which a comment changes and a helper does not. asv
takes less for better, so everything here is a cost: misses, not hits.

asv runs each entry in a process forked from one that has imported this package, once a round, the
rounds of one entry far apart in time. It calls `setup` again before every sample. What is large is
therefore built once per process and kept, or allocation and first touch would fall between the
samples; what a sample uses up is built anew. One call is one sample and takes a millisecond or
more, against which the clock's 0.1 microseconds do not count.

The environment holds torch, triton and numpy only. Nothing here may import anything else, nor
triton or CUDA before it is known that there is a GPU: a forked process cannot use a CUDA context
that its parent opened.
"""
