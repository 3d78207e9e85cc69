"""What is true: attention problems, their float64 answers, and how far a right answer may be off.

Nothing here imports another room. Torch on the CPU is enough.
"""

from reference.moved import moved_modules

moved_modules(
    __name__,
    {
        "allocator_contract": "allocator.contract",
        "chunked": "attention.chunked",
        "conformance": "attention",
        "conformance.allocator": "allocator.machine",
        "conformance.attention": "attention.checks",
        "conformance.coverage": "attention.coverage",
        "conformance.expected": "attention.expected",
        "conformance.features": "attention.features",
        "contiguous": "allocator.arenas",
        "contiguous_attention": "attention.contiguous",
        "contract": "attention.contract",
        "inputs": "attention.inputs",
        "moves": "allocator.moves",
        "placement": "attention.placement",
        "problem": "attention.problem",
        "programs": "allocator.programs",
        "shadow": "allocator.shadow",
        "strategies": "attention.strategies",
        "tolerance": "attention.tolerance",
        "verdict": "attention.verdict",
    },
)
