"""The memory side: a KV cache in blocks, and the bookkeeping of which sequence owns which block.

From the bottom up, each part knowing only the parts above it in this list:

- `errors`: what can go wrong, by name.
- `eviction`: which cached block goes first, and which went lately.
- `pool`: physical blocks with reference counts; free, used, idle.
- `table`: the blocks of one sequence, and the slot of each of its tokens.
- `prefix`: which block holds which prefix, by chained hashes or by keys.
- `allocator`: the three together: admit, append, fork, free.

A server on top of it, simulated step by step:

- `accounting`: where every slot went, in integers; what every simulator returns.
- `clock`, `arrivals`: how long a step takes, and who has arrived by then.
- `policy`: a paged server's rules.
- `group`, `scheduler`: a request's sequences, and continuous batching on the allocator.
- `counting`: the same server where counts decide everything, an order of magnitude faster.

All this is plain Python and numpy. Tensors come in with `paged.cache` and `paged.attention`, which
import torch; import them by name.
"""
