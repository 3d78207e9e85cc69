"""The memory side: a KV cache in blocks, and the bookkeeping of which sequence owns which block.

From the bottom up, each part knowing only the parts above it in this list:

- `errors`: what can go wrong, by name.
- `pool`: physical blocks with reference counts; free, used, idle; who is evicted next.
- `table`: the blocks of one sequence, and the slot of each of its tokens.
- `prefix`: which block holds which prefix, by chained hashes.
- `allocator`: the three together: admit, append, fork, free.

This bookkeeping is plain Python and numpy. Tensors come in with `paged.cache` and
`paged.attention`, which import torch; import them by name.
"""
