"""`pagedbench waste` as a picture: where the slots went, who ran, and the pool through time.

The occupancy maps come from a short run of their own, from the first step on: they show how the
pool fills and how holes come about, one column for each sampled step, one row for a few slots each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.waste.contiguous import ContiguousPolicy, Piece, serve_contiguous
from bench.waste.parallel import Job
from bench.waste.policies import Policy, format_policy
from bench.waste.record import WasteRecord, WasteRow
from bench.waste.report import CLASS_NAMES, MEANINGS, policy_name
from bench.waste.simulate import lengths_of, requests_of
from paged import scheduler
from paged.clock import StepTime
from reference.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS: Final = ("png", "svg", "pdf")

MAX_MAPS: Final = 6
"""Most occupancy maps in a picture."""

MAX_COLUMNS: Final = 400
"""Most steps that a map samples."""

MAX_ROWS: Final = 500
"""Most rows of a map. A row is as many slots as it takes, and shows what most of them are."""

GENERATIONS: Final = 6
"""Length of a map in mean outputs: as often has the pool been filled anew, or nearly."""

RESERVE, ROUNDUP = 5, 6
"""What a reservation adds to the classes of `paged.scheduler.Scheduler.slot_map`."""

NUM_CLASSES: Final = 7

FREE, TOKEN, SHARED = scheduler.FREE, scheduler.TOKEN, scheduler.SHARED
INTERNAL, IDLE = scheduler.INTERNAL, scheduler.IDLE

# Okabe and Ito's colours, which differ in lightness too. Cold is in use, warm is lost, white is
# free. A token's shade says whose it is: neighbours differ.
TOKEN_SHADES: Final = ("#00466e", "#0072b2", "#3f9ad0", "#7fc1e8")
COLOURS: Final = {
    TOKEN: TOKEN_SHADES[1],
    SHARED: "#cc79a7",
    RESERVE: "#f0e442",
    INTERNAL: "#e69f00",
    ROUNDUP: "#d55e00",
    IDLE: "#009e73",
    FREE: "#ffffff",
}
MAP_NAMES: Final = {
    TOKEN: "token (a shade for each request)",
    SHARED: "token that several sequences read",
    RESERVE: "reserved: will be filled",
    INTERNAL: "internal: will not be filled",
    ROUNDUP: "rounding",
    IDLE: "cached, idle",
    FREE: "free",
}
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
LINES: Final = (
    ("#000000", "-"),
    ("#d55e00", "-"),
    ("#009e73", "-"),
    ("#cc79a7", "-"),
    ("#0072b2", "-"),
    ("#e69f00", "-"),
)


class PlotFormatError(BadInput):
    """A file's ending that says no format that can be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolMap:
    """What was in each slot, step by step."""

    policy: Policy
    """Whose pool it is."""
    slots: int
    slots_per_row: int
    """Size of the pool; slots that a row stands for, the last one for fewer."""
    steps: NDArray[np.int64]
    """int64 [columns], the sampled steps."""
    classes: NDArray[np.uint8]
    """uint8 [rows, columns], the most frequent class of each row's slots; of two that are equally
    frequent the one with the smaller number."""
    owners: NDArray[np.int32]
    """int32 [rows, columns], a request that has a slot of that class there; -1 for none."""
    counts: NDArray[np.int64]
    """int64 [columns, classes], slots in each class, exact."""


class _Enough(Exception):
    """The last column has been seen."""


class _Sampler:
    """Collects columns, and ends the run after the last."""

    def __init__(self, slots: int, every: int, columns: int) -> None:
        self.slots, self.every, self._columns = slots, every, columns
        self.slots_per_row = -(-slots // MAX_ROWS)
        self.steps: list[int] = []
        self.classes: list[NDArray[np.uint8]] = []
        self.owners: list[NDArray[np.int32]] = []
        self.counts: list[NDArray[np.int64]] = []

    def add(self, step: int, classes: NDArray[np.uint8], owners: NDArray[np.int32]) -> None:
        rows = -(-self.slots // self.slots_per_row)
        # Slots beyond the pool are in no class.
        padded = np.full((rows, self.slots_per_row), NUM_CLASSES, np.uint8)
        padded.reshape(-1)[: self.slots] = classes
        tally = np.stack([(padded == kind).sum(axis=1) for kind in range(NUM_CLASSES)])
        most = tally.argmax(axis=0).astype(np.uint8)
        first = (padded == most[:, None]).argmax(axis=1) + np.arange(rows) * self.slots_per_row
        self.steps.append(step)
        self.classes.append(most)
        self.owners.append(owners[first])
        self.counts.append(tally.sum(axis=1))
        if len(self.steps) == self._columns:
            raise _Enough

    def add_pieces(self, step: int, pieces: list[Piece]) -> None:
        classes = np.full(self.slots, FREE, np.uint8)
        owners = np.full(self.slots, -1, np.int32)
        for address, granted, requested, final, tokens, number in pieces:
            piece = classes[address : address + granted]
            piece[:] = ROUNDUP
            piece[:requested] = INTERNAL
            piece[:final] = RESERVE
            piece[:tokens] = TOKEN
            owners[address : address + granted] = number
        self.add(step, classes, owners)

    def add_scheduler(self, server: scheduler.Scheduler) -> None:
        if server.step % self.every == 0:
            self.add(server.step, *server.slot_map())


def pool_map(job: Job, *, mean_output_tokens: float, columns: int = MAX_COLUMNS) -> PoolMap:
    """Serve the beginning of a stream, and look at the pool as often as it has columns.

    Parameters
    ----------
    job
        As for a sweep.
    mean_output_tokens
        Of the stream: how long a request runs. The map covers `GENERATIONS` times as many steps, or
        fewer where the stream ends before.
    columns
        Steps to sample, evenly spaced, the first sample a spacing after the start.
    """
    policy, time = job.policy, job.time or StepTime()
    steps = max(columns, round(GENERATIONS * mean_output_tokens))
    sampler = _Sampler(job.slots, every=steps // columns, columns=columns)
    try:
        if isinstance(policy, ContiguousPolicy):
            serve_contiguous(
                lengths_of(job.source),
                policy,
                slots=job.slots,
                time=time,
                observe=sampler.add_pieces,
                observe_every=sampler.every,
            )
        else:
            keys = policy.block_size if policy.prefix_caching else None
            scheduler.serve(
                requests_of(job.source, key_block_size=keys),
                policy,
                slots=job.slots,
                time=time,
                clients=job.clients,
                observe=sampler.add_scheduler,
            )
    except _Enough:
        pass
    return PoolMap(
        policy=policy,
        slots=job.slots,
        slots_per_row=sampler.slots_per_row,
        steps=np.array(sampler.steps, np.int64),
        classes=_columns(sampler.classes, np.uint8),
        owners=_columns(sampler.owners, np.int32),
        counts=np.array(sampler.counts, np.int64).reshape(-1, NUM_CLASSES),
    )


def _columns(columns: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.stack(columns, axis=1) if columns else np.empty((0, 0), dtype)


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


def check_format(file: Path) -> None:
    """Raise PlotFormatError where the file's ending is none of `FORMATS`."""
    if file.suffix.removeprefix(".").lower() not in FORMATS:
        raise PlotFormatError(
            f"--plot {file}: end the name with {', '.join(f'.{known}' for known in FORMATS)}"
        )


def draw(record: WasteRecord, stream: str, maps: list[PoolMap], file: Path) -> None:
    """Draw the rows of one stream, and maps of their pools, to a file.

    Raises PlotFormatError: the file's ending says no format that can be drawn.
    """
    check_format(file)
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
    _bars(figure.add_subplot(grid[0, 0]), rows)
    _batches(figure.add_subplot(grid[0, 1]), rows)
    for index, pool in enumerate(maps):
        axes = figure.add_subplot(grid[1 + index // 2, index % 2])
        _map(axes, pool)
    if seen := {kind for pool in maps for kind in np.unique(pool.classes).tolist()}:
        from matplotlib.patches import Patch

        handles = [
            Patch(facecolor=COLOURS[kind], edgecolor="#888888", label=name)
            for kind, name in MAP_NAMES.items()
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


def _bars(axes: Axes, rows: list[WasteRow]) -> None:
    names = [policy_name(row.policy) for row in rows]
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
            label=f"{CLASS_NAMES[name]}: {MEANINGS[name]}",
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


def _batches(axes: Axes, rows: list[WasteRow]) -> None:
    for index, row in enumerate(rows):
        steps, batch = row.series.mean_batch()
        colour, style = LINES[index % len(LINES)]
        axes.plot(
            steps,
            batch,
            color=colour,
            linestyle=style if index < len(LINES) else "--",
            linewidth=1.2,
            label=f"{policy_name(row.policy)}: {row.mean_batch:,.1f}",
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


def _map(axes: Axes, pool: PoolMap) -> None:
    axes.set_title(policy_name(format_policy(pool.policy)), loc="left", fontsize=10)
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
