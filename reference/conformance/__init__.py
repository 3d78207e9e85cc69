"""Named checks that any subject can be run through.

- `attention`: for kernels; needs torch.
- `allocator`: for allocators; a state machine with every check after every call.
"""
