"""What a KV-cache allocator has to do: its contract, programs of calls, and who judges them."""
