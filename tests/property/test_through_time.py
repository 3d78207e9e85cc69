"""Pool, tables, prefix index, cache and kernel together, through time.

Sequences are admitted, grow, fork, end and push each other out of the pool. After every step the
attention of every sequence is compared with a contiguous twin that knows nothing of blocks.
"""

import pytest

import kernels.interpreter  # noqa: F401 - corrects the interpreter
from bench.search.drawing import draw_each
from kernels import attention as triton_attention
from kernels import cache_ops
from paged.system import CAPABILITIES, PagedSystem
from reference.allocator.machine import find_fault
from reference.allocator.moves import drawn_programs, run_drawn
from reference.system.machine import SystemMachine


class OnTriton(PagedSystem):
    """The same engine on the Triton kernels, interpreted."""

    attention = staticmethod(triton_attention.paged_attention)
    write_slots = staticmethod(cache_ops.write_slots)
    copy_blocks = staticmethod(cache_ops.copy_blocks)


@pytest.mark.parametrize(
    ("system", "count", "moves"),
    [(PagedSystem, 15, 40), (OnTriton, 5, 10)],
    ids=["torch", "triton"],
)
def test_every_sequence_attends_to_its_own_tokens_after_every_step(system, count, moves):
    def make(num_blocks, block_size, *, prefix_caching, window):
        return system(num_blocks, block_size, prefix_caching=prefix_caching)

    def example(drawn):
        run = lambda machine: run_drawn(drawn, machine)  # noqa: E731
        found = find_fault(make, drawn.pool, run, capabilities=CAPABILITIES, machine=SystemMachine)
        assert found is None, f"{found}\n{found.program}"

    programs = drawn_programs(CAPABILITIES, max_moves=moves, block_size=4, num_blocks=10)
    draw_each(programs, count=count, seed_of_draw="through time", example=example)
