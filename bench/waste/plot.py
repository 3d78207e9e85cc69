"""`pagedbench waste` as a picture: where the slots went, who ran, and the pool through time.

An occupancy map has one column for each sampled step, and one row for a few slots each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.command.options import check_chart
from bench.waste.policies import policy_name
from bench.waste.pool_map import (
    FREE,
    IDLE,
    INTERNAL,
    NUM_CLASSES,
    RESERVE,
    ROUNDUP,
    SHARED,
    TOKEN,
    PoolMap,
)
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.report import CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MAPS: Final = 6
"""Most occupancy maps in a picture."""

# Okabe and Ito's colours, which differ in lightness too. Cold is in use, warm is lost, white is
# free. A token's shade says whose it is: neighbours differ.
TOKEN_SHADES: Final = ("#00466e", "#0072b2", "#3f9ad0", "#7fc1e8")
KINDS: Final = {
    TOKEN: (TOKEN_SHADES[1], "token (a shade for each request)"),
    SHARED: ("#cc79a7", "token that several sequences read"),
    RESERVE: ("#f0e442", "reserved: will be filled"),
    INTERNAL: ("#e69f00", "internal: will not be filled"),
    ROUNDUP: ("#d55e00", "rounding"),
    IDLE: ("#009e73", "cached, idle"),
    FREE: ("#ffffff", "free"),
}
COLOURS: Final = {kind: colour for kind, (colour, _) in KINDS.items()}
BAR_STYLES: Final[dict[str, dict[str, Any]]] = {
    "token": {"color": COLOURS[TOKEN]},
    "reserve": {"color": COLOURS[RESERVE]},
    "internal": {"color": COLOURS[INTERNAL]},
    "roundup": {"color": COLOURS[ROUNDUP]},
    "free_frag": {"color": "#ffffff", "hatch": "xxxx"},
    "free_short": {"color": "#ffffff", "hatch": "////"},
    "free_idle": {"color": "#ffffff"},
    "cached_idle": {"color": COLOURS[IDLE]},
}
LINE_COLOURS: Final = ("#000000", "#d55e00", "#009e73", "#cc79a7", "#0072b2", "#e69f00")


def coloured(pool: PoolMap) -> NDArray[np.uint8]:
    """Colour a map, uint8 [rows, columns, 3]: a colour for each class, a shade for each request."""
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(COLOURS[kind]) for kind in range(NUM_CLASSES)])
    shades = np.array([to_rgb(shade) for shade in TOKEN_SHADES])
    picture = palette[pool.classes]
    token = pool.classes == TOKEN
    picture[token] = shades[pool.owners[token] % len(shades)]
    # What only one request has of the other classes is a little paler for every other one: borders
    # show. A shared slot is of several.
    odd = ~token & (pool.classes != SHARED) & (pool.owners >= 0) & (pool.owners % 2 == 1)
    picture[odd] = 1 - 0.75 * (1 - picture[odd])
    bytes_: NDArray[np.uint8] = np.rint(picture * 255).astype(np.uint8)
    return bytes_


def draw(record: WasteRecord, stream: str, maps: list[PoolMap], file: Path) -> None:
    """Draw the rows of one stream, and maps of their pools, to a file."""
    check_chart(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = record.rows_of(stream)
    map_rows = -(-len(maps) // 2)
    bars_in = max(2.6, 0.34 * len(rows) + 1.4)
    figure = Figure(figsize=(13, bars_in + 3.0 * map_rows + (0.9 if maps else 0.2)))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08)
    heights = [bars_in] + [3.0] * map_rows
    grid = figure.add_gridspec(1 + map_rows, 2, height_ratios=heights)
    described = next(known for known in record.streams if known.label == stream)
    figure.suptitle(
        f"{stream}: {described.requests:,} requests, {record.pool.slots:,} slots "
        f"({record.pool.gibibytes:.4g} GiB)",
        x=0.01,
        ha="left",
    )
    bars(figure.add_subplot(grid[0, 0]), rows)
    batches(figure.add_subplot(grid[0, 1]), rows)
    for index, pool in enumerate(maps):
        axes = figure.add_subplot(grid[1 + index // 2, index % 2])
        pool_through_time(axes, pool)
    if seen := {kind for pool in maps for kind in np.unique(pool.classes).tolist()}:
        from matplotlib.patches import Patch

        handles = [
            Patch(facecolor=colour, edgecolor="#888888", label=name)
            for kind, (colour, name) in KINDS.items()
            if kind in seen
        ]
        if len(maps) % 2:
            free = figure.add_subplot(grid[map_rows, 1])
            free.set_axis_off()
            free.legend(
                handles=handles, loc="center left", frameon=False, title="slots of the pool"
            )
        else:
            figure.legend(
                handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9
            )
    figure.savefig(file, dpi=200)


def bars(axes: Axes, rows: list[WasteRow]) -> None:
    """Where the slots are, a bar for each policy."""
    names = [row.typed for row in rows]
    places = np.arange(len(rows))
    begin = np.zeros(len(rows))
    for name, style in BAR_STYLES.items():
        width = np.array([100 * row.shares[name] for row in rows])
        if not width.any():
            continue
        axes.barh(
            places,
            width,
            left=begin,
            height=0.72,
            edgecolor="#444444",
            linewidth=0.4,
            label=": ".join(CLASSES[name]),
            **style,
        )
        begin += width
    for place, row in enumerate(rows):
        share = 100 * row.shares["token"]
        if share >= 8:
            axes.text(
                share / 2, place, f"{share:.1f} %", ha="center", va="center", color="white", size=9
            )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the pool, %, averaged over the loaded steps")
    axes.set_title("where the slots are", loc="left", fontsize=10)
    if begin.any():
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8
        )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def batches(axes: Axes, rows: list[WasteRow]) -> None:
    """Requests that run at once, a line for each policy."""
    for index, row in enumerate(rows):
        steps, batch = row.series.mean_batch()
        axes.plot(
            steps,
            batch,
            color=LINE_COLOURS[index % len(LINE_COLOURS)],
            linestyle="-" if index < len(LINE_COLOURS) else "--",
            linewidth=1.2,
            label=f"{row.typed}: {row.mean_batch:,.1f}",
        )
    axes.set_xlim(left=0)
    # At first all requests are young and small: far more fit than ever again.
    axes.set_ylim(0, 1.35 * max(row.mean_batch for row in rows) or 1)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.set_xlabel("steps; a line ends where the stream has been served")
    axes.set_title("requests that run at once (mean of the loaded steps)", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=1 + len(rows) // 9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def pool_through_time(axes: Axes, pool: PoolMap) -> None:
    """An occupancy map."""
    axes.set_title(policy_name(pool.policy), loc="left", fontsize=10)
    if not len(pool.steps):
        axes.set_axis_off()
        axes.text(0, 0.5, "nothing to see: no request was ever admitted, or hardly a step taken")
        return
    every, last = int(pool.steps[0]), int(pool.steps[-1])
    # Half a column to each side of a sampled step.
    axes.imshow(
        coloured(pool),
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(every / 2, last + every / 2, 0, pool.slots),
    )
    axes.set_xlabel("step")
    axes.yaxis.set_major_formatter(lambda slot, _: f"{slot:,.0f}")
    axes.set_ylabel("slot address")
