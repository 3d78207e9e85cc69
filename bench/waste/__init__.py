"""Where the memory goes: servers simulated over request streams, and every slot accounted for."""
