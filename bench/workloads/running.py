"""Which requests of a stream run at once."""

from __future__ import annotations

import numpy as np

from bench.workloads.stream import RequestStream


def running_lengths(stream: RequestStream, count: int, *, seed: int) -> list[int]:
    """Context lengths of `count` requests that run at once, tokens.

    Each is drawn with a probability proportional to its output, at a uniform step of it.
    """
    rng = np.random.default_rng(seed)
    output = stream.output_tokens.astype(np.float64)
    chosen = rng.choice(len(stream), size=count, p=output / output.sum())
    step = np.floor(rng.random(count) * stream.output_tokens[chosen]).astype(np.int64)
    lengths: list[int] = (stream.prompt_tokens[chosen] + step + 1).tolist()
    return lengths
