"""A published figure in the terminal, beside what was measured."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.waste.figures.figure import Component, Figure


def show_figure(figure: Figure, console: Console) -> None:
    """Print a published figure beside what was measured, component by component."""
    console.print(Text(f"{figure.name}: {figure.title}", style="bold"))
    console.print(Text(figure.source))
    console.print(Text(figure.setup, style="dim"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold", ratio=1)
    for head, width in (("published", 9), ("measured", 8), ("off by", 7), ("has to be", 16)):
        table.add_column(head, justify="right", no_wrap=True, min_width=width)
    table.add_column("", min_width=6)
    bars: dict[str, list[Component]] = {}
    for component in figure.components:
        bars.setdefault(component.bar, []).append(component)
    for bar, components in bars.items():
        if len(components) == 1:
            _add_component(table, components[0], f"{bar}: {_component_name(components[0])}")
        else:
            table.add_row(Text(bar, style="bold"))
            for component in components:
                _add_component(table, component, f"  {_component_name(component)}")
        table.add_section()
    console.print(table)
    for note in figure.notes:
        console.print(Text(f"- {note}"))
    judged = [component for component in figure.components if component.judged]
    met = sum(component.met for component in judged)
    verdict = Text(
        "met" if figure.met else "missed", style="bold green" if figure.met else "bold red"
    )
    console.print(
        verdict.append(f": {met} of {len(judged)} judged components", style="not bold default")
    )


def _component_name(component: Component) -> str:
    return f"{component.name}, {component.unit}" if component.unit else component.name


def _add_component(table: Table, component: Component, name: str) -> None:
    published, measured = component.published, component.measured
    low, high = component.lowest, component.highest
    if low is None and high is None:
        allowed, verdict = "", Text("shown", style="dim")
    else:
        allowed = _allowed(low, high)
        verdict = Text("met", style="green") if component.met else Text("missed", style="red")
    table.add_row(
        Text(name),
        "-" if published is None else _figure(published),
        _figure(measured),
        "" if published is None else f"{measured - published:+,.2f}",
        allowed,
        verdict,
    )


def _allowed(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {_figure(high)}" if high is not None else ""
    if high is None:
        return f"at least {_figure(low)}"
    return f"exactly {_figure(low)}" if low == high else f"{_figure(low)} to {_figure(high)}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"
