"""The table of docs/memory-waste.md on a real trace: tokens in use, per cent of the pool."""

import pytest

from bench.waste.contiguous import ContiguousPolicy
from bench.waste.simulate import simulate
from bench.workloads.source import fitting, read_all, saturated
from bench.workloads.traces import TraceSource
from helpers.published import published_file
from paged.policy import PagedPolicy

SERVERS = [("max", "buddy"), ("pow2", "buddy"), ("oracle", "buddy"), ("oracle", "first-fit")]

# Pool and longest request; the four reservations, found by an independent simulation of the same
# rules; paging in blocks of 16 and 128.
AZURE_CONVERSATION = [
    (15_728, 2_048, (48.3, 57.0, 58.2, 71.9), (96.1, 91.0)),
    (131_072, 16_384, (7.5, 49.8, 53.9, 73.1), (98.6, 94.3)),
]


@pytest.mark.parametrize(("slots", "longest", "reserved", "paged"), AZURE_CONVERSATION)
def test_tokens_in_use_on_the_azure_conversations(slots, longest, reserved, paged):
    trace = TraceSource(published_file("azure-conv"))
    source = read_all(saturated(fitting(trace, longest)))
    for (reservation, arena), percent in zip(SERVERS, reserved, strict=True):
        policy = ContiguousPolicy(reservation=reservation, arena=arena, max_model_len=longest)
        loaded = simulate(source, policy, slots=slots).loaded
        assert 100 * loaded.token_fraction == pytest.approx(percent, abs=0.06)
    for size, percent in zip((16, 128), paged, strict=True):
        loaded = simulate(source, PagedPolicy(block_size=size), slots=slots).loaded
        assert 100 * loaded.token_fraction == pytest.approx(percent, abs=0.06)
