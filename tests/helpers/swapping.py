"""Our allocator with a host tier: what the checks of swapping are tried on."""

from __future__ import annotations

from paged.allocator import PagedAllocator
from paged.errors import OutOfBlocks
from paged.pool import BlockPool
from paged.prefix import KeyedPrompt
from paged.subject import PagedSubject
from reference.allocator.contract import AllocatorCapabilities, declares_allocator

HOST_BLOCKS = 24


class SwappingSubject(PagedSubject):
    """Sequences may wait in blocks of the host, which is a pool of its own."""

    def __init__(self, allocator: PagedAllocator) -> None:
        super().__init__(allocator)
        self.host = BlockPool(HOST_BLOCKS)
        self.waiting: dict[str, tuple[int, list[int]]] = {}
        self.free = self._free

    def _free(self, sequence: str) -> None:
        if sequence in self.waiting:
            self.give_back(self.waiting.pop(sequence)[1])
        else:
            self.allocator.free(sequence)

    def give_back(self, hosts: list[int]) -> None:
        self.host.release_all(hosts, keep=())

    def swap_out(self, sequence: str) -> list[tuple[int, int]] | None:
        blocks = self.blocks_of(sequence)
        if len(blocks) > self.host.num_free:
            return None
        hosts = self.host.allocate(len(blocks))
        self.waiting[sequence] = (self.allocator.num_tokens(sequence), hosts)
        self.allocator.free(sequence)
        return list(zip(blocks, hosts, strict=True))

    def swap_in(self, sequence: str) -> list[tuple[int, int]] | None:
        num_tokens, hosts = self.waiting[sequence]
        try:
            self.allocator.admit(sequence, KeyedPrompt(num_tokens))
        except OutOfBlocks:
            return None
        del self.waiting[sequence]
        self.give_back(hosts)
        return list(zip(hosts, self.blocks_of(sequence), strict=True))

    def blocks_of(self, sequence: str) -> list[int]:
        return [int(block) for block in self.allocator.block_table([sequence])[0]]


@declares_allocator(
    AllocatorCapabilities(
        salt=True, fork=True, swap=True, chunked_prefill=True, reset=True, eviction="lru"
    )
)
def swapping_allocator(
    num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None
) -> SwappingSubject:
    assert window is None
    return SwappingSubject(PagedAllocator(num_blocks, block_size, prefix_caching=prefix_caching))
