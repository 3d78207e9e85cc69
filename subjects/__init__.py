"""Who is under test: kernels by name, each in a process of its own.

Imports the reference room only. Built-in subjects are names like anybody else's.
"""

from reference.moved import moved_modules

moved_modules(
    __name__,
    {
        "allocator_worker": "allocators.worker",
        "mixed_stream": "allocators.mixed_stream",
        "peers": "attention.peers",
        "remote_allocator": "allocators.remote",
        "resolve": "attention.resolve",
    },
)
