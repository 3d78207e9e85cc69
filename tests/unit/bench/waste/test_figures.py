"""The published figures: what must come out of the simulators, component by component.

In everyday runs three of them have a part of their requests; with the long profile all.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bench.waste.figures import block_size as block_figure
from bench.waste.figures import sharing as sharing_figure
from bench.waste.figures import watermark as watermark_figure
from bench.waste.figures.block_size import block_size
from bench.waste.figures.figure import Component, Figure
from bench.waste.figures.jenga import MIXES, jenga
from bench.waste.figures.sharing import SEED, saving, sharing
from bench.waste.figures.sosp23 import BATCHES, SHARES, SLOTS, sosp23
from bench.waste.figures.watermark import watermark
from bench.workloads.fits import fitted
from bench.workloads.source import read_all
from helpers.profiles import scale


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer requests, of which the means hardly differ."""
    if scale() > 1:
        return
    monkeypatch.setattr(block_figure, "REQUESTS", 1500)
    monkeypatch.setattr(watermark_figure, "SEEDS", watermark_figure.SEEDS[:3])
    monkeypatch.setattr(sharing_figure, "REQUESTS", {"sharegpt-fit": 500, "alpaca-fit": 1000})
    monkeypatch.setattr(sharing_figure, "BEAM_REQUESTS", {"sharegpt-fit": 10, "alpaca-fit": 50})


def by_name(figure: Figure) -> dict[tuple[str, str], Component]:
    return {(component.bar, component.name): component for component in figure.components}


def test_the_papers_memory_figure_is_met_in_every_component() -> None:
    figure = sosp23()
    found = by_name(figure)
    for bar, shares in SHARES.items():
        names = ("token", "reserve", "internal", "external & others")
        for name, published in zip(names, shares, strict=True):
            if published is not None:
                assert found[bar, name].measured == pytest.approx(published, abs=2.5)
    for bar in ("Orca (Pow2)", "Orca (Oracle)"):
        assert found[bar, "mean batch"].measured == pytest.approx(BATCHES[bar], rel=0.05)
    assert found["Orca (Max)", "mean batch"].measured == 7
    assert SLOTS == 15_728
    remainder = found["Orca (Max)", "remainder of the pool"].measured
    assert Fraction(SLOTS - 7 * 2048, SLOTS) == Fraction(remainder / 100).limit_denominator(10**6)
    assert found["Orca (Max)", "external & others"].measured == remainder
    assert figure.met
    assert sum(component.judged for component in figure.components) == 17


@pytest.mark.usefixtures("sampled")
def test_internal_waste_meets_its_closed_form_up_to_blocks_of_64() -> None:
    figure = block_size()
    judged = [component for component in figure.components if component.judged]
    assert len(judged) == 2 * 7
    for component in judged:
        assert component.published is not None
        assert component.measured == pytest.approx(component.published, abs=0.3)
    assert figure.met


@pytest.mark.usefixtures("sampled")
def test_preemptions_fall_with_the_watermark_as_published() -> None:
    figure = watermark()
    measured = [c.measured for c in figure.components if c.name == "preemptions"]
    assert measured == sorted(measured, reverse=True)
    for component in figure.components:
        if component.judged and component.name == "preemptions":
            assert component.measured == pytest.approx(component.published, rel=0.2)
        if component.name == "requests a second, more":
            assert component.measured == pytest.approx(component.published, abs=3.0)
    assert figure.met


@pytest.mark.usefixtures("sampled")
def test_sharing_saves_as_much_as_published() -> None:
    figure = sharing()
    found = [c.measured for c in figure.components if c.bar.startswith("ShareGPT") and c.judged]
    two, four, six, _ = found
    assert 16.2 <= two < four < six <= 30.5
    assert figure.met
    beams = [c for c in figure.components if c.bar.endswith("beams")]
    assert [c.judged for c in beams] == [False] * 6


@pytest.mark.parametrize("samples", [2, 6])
def test_the_saving_by_blocks_is_the_saving_by_arithmetic(samples: int) -> None:
    """Blocks of the prompt that are full are saved for all samples but one, at every step; the one
    behind them until somebody writes into it.
    """
    stream = read_all(fitted("alpaca-fit", num_requests=200, seed=SEED))
    prompt, output = stream.prompt_tokens, stream.output_tokens
    saved = (samples - 1) * int((output * (prompt // 16) + (prompt % 16 > 0)).sum())
    blocks = sum(
        int(np.ceil((i + np.arange(o)) / 16).sum())
        for i, o in zip(prompt.tolist(), output.tolist(), strict=True)
    )
    measured = saving("alpaca-fit", num_requests=200, samples=samples)
    # Nobody gives way: their pool holds all of them.
    assert measured == pytest.approx(saved / (samples * blocks), rel=1e-12)


def test_jengas_figures_are_exact() -> None:
    assert [mix.waste for mix in MIXES] == [
        1 - Fraction(32 * 43 + 8 * 6193, 40 * 6236),
        Fraction(1, 4),
        Fraction(9, 16),
    ]
    assert jenga().met
    everything = replace(MIXES[0], kept_tokens=((3, 6236), (5, 6236)))
    assert everything.waste == 0


def test_a_component_outside_its_bar_fails_the_figure() -> None:
    component = Component(bar="a", name="b", unit="%", published=5, measured=5, lowest=4, highest=6)
    figure = Figure(name="f", title="", source="", setup="", components=(component,))
    assert figure.met
    for measured in (3.999, 6.001, float("nan")):
        assert not replace(figure, components=(replace(component, measured=measured),)).met
    shown = replace(component, measured=9, lowest=None, highest=None)
    assert replace(figure, components=(component, shown)).met
