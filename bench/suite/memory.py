"""What a request stream wastes of the cache memory that is allocated to it, and what it takes.

Arithmetic over the built-in streams, 2,000 requests drawn with seed 0 and the shape of Llama-3-8B
in a 16-bit type (`bench.check.need`). Exact, and the same on every machine.
"""

from __future__ import annotations

from typing import Final

from bench.check.need import LLAMA_3_8B, contiguous_need, paged_need
from bench.workloads.builtin import builtin_stream

STREAMS: Final = ("azure-conv", "azure-code", "sharegpt", "sharegpt-first-turns", "mooncake-conv")
BLOCK_SIZES: Final = (16, 64, 256)
NUM_REQUESTS: Final = 2000
SEED: Final = 0


class Contiguous:
    """The longest length that may occur, reserved for every request."""

    version = "1"
    params = (STREAMS,)
    param_names = ("stream",)

    def setup(self, stream: str) -> None:
        """Draw the stream and count."""
        requests = builtin_stream(stream, num_requests=NUM_REQUESTS, seed=SEED)
        self.need = contiguous_need(requests, geometry=LLAMA_3_8B)

    def track_waste_fraction(self, stream: str) -> float:
        """Share of the allocated slot-steps that holds no token."""
        return self.need.waste_fraction

    track_waste_fraction.unit = "fraction"  # type: ignore[attr-defined]

    def track_bytes_per_request(self, stream: str) -> float:
        """Bytes of cache for a running request, averaged over its steps."""
        return self.need.bytes_per_request

    track_bytes_per_request.unit = "bytes"  # type: ignore[attr-defined]


class Paged:
    """Blocks as tokens reach them."""

    version = "1"
    params = (STREAMS, BLOCK_SIZES)
    param_names = ("stream", "block_size")

    def setup(self, stream: str, block_size: int) -> None:
        """Draw the stream and count."""
        requests = builtin_stream(stream, num_requests=NUM_REQUESTS, seed=SEED)
        self.need = paged_need(requests, block_size=block_size, geometry=LLAMA_3_8B)

    def track_waste_fraction(self, stream: str, block_size: int) -> float:
        """Share of the allocated slot-steps that holds no token."""
        return self.need.waste_fraction

    track_waste_fraction.unit = "fraction"  # type: ignore[attr-defined]

    def track_bytes_per_request(self, stream: str, block_size: int) -> float:
        """Bytes of cache for a running request, averaged over its steps."""
        return self.need.bytes_per_request

    track_bytes_per_request.unit = "bytes"  # type: ignore[attr-defined]
