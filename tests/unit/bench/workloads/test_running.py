"""Requests that run at once: each as often as it has tokens to generate, at any step of them."""

import pytest
import torch

from bench.workloads.running import running_lengths
from helpers.streams import stream


def test_a_request_runs_as_often_as_it_has_tokens_to_generate():
    lengths = running_lengths(stream([100, 1000, 10_000], [10, 30, 0]), 20_000, seed=0)
    long = sum(length > 1000 for length in lengths) / len(lengths)
    assert long == pytest.approx(30 / 40, abs=0.01)
    assert max(lengths) < 10_000  # what generates nothing is never in the cache


def test_it_is_met_at_every_step_of_its_output_alike():
    lengths = running_lengths(stream([7], [5]), 20_000, seed=1)
    counts = torch.bincount(torch.tensor(lengths)) / len(lengths)
    assert counts[:8].sum() == 0  # the prompt's last step already generated one
    assert counts[8:].tolist() == pytest.approx([0.2] * 5, abs=0.01)


def test_the_same_seed_runs_the_same_requests():
    requests = stream([20, 33], [90, 400])
    draws = [running_lengths(requests, 8, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
