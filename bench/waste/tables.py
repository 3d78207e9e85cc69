"""Block tables of a model whose layers keep different things, as engines part them.

One pool of blocks of one size serves all layers. So layers that keep the same are parted into
tables of equally many layers, the last one of a kind perhaps with fewer; a request takes blocks for
each table, as many as the kind of its layers needs. Layers whose block would be smaller than
others' get more tokens in a block where that comes out even, and are padded where it does not; a
state takes a block, however long the request is, and blocks are made long enough to hold it. These
are the rules of vLLM, which `scripts/hold_models.py` holds this to.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bench.waste.models import LayerGroup, Model
from paged.layout import FOREVER, GroupTables, Layout

NEARLY_AS_MANY: Fraction = Fraction(3, 2)
"""Times the fewest layers of a kind, below which the most are put into one table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Tables of layers that keep the same, one like the other."""

    group: LayerGroup
    count: int
    """How many such tables a request has."""
    block_size: int
    """Tokens of a block; a state has one block for all."""
    used_bytes: Fraction
    """Bytes that its layers use of a full block of each table, all tables together."""

    def blocks(self, tokens: int, *, in_flight: int = 1) -> int:
        """Blocks that a request of so many tokens takes, `in_flight` of them being computed.

        Behind a window nothing is kept but the tokens before those; and one block more, as a
        window need not begin with a block.
        """
        if self.group.state_bytes:
            return self.count
        if self.group.window is None:
            return self.count * -(-tokens // self.block_size)
        kept = min(self.group.window - 1 + in_flight, tokens)
        return self.count * (-(-kept // self.block_size) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """How a model's layers share a pool."""

    block_bytes: int
    """Bytes of a block of the pool."""
    tables: tuple[Table, ...]

    def blocks(self, tokens: int, *, in_flight: int = 1) -> int:
        """Blocks that a request of so many tokens takes."""
        return sum(table.blocks(tokens, in_flight=in_flight) for table in self.tables)

    def layout(self) -> Layout | None:
        """As a server takes it; None where one table has all layers, and they keep everything."""
        if len(self.tables) == self.tables[0].count == 1 and self.tables[0].group.window is None:
            return None
        return Layout(block_bytes=self.block_bytes, groups=tuple(map(_for_server, self.tables)))

    def layers(self, model: Model, *, longest: int) -> list[dict[str, Any]]:
        """As an engine is told of them (`subjects.servers.remote`)."""
        kept = [table for table in self.tables if not table.group.state_bytes]
        page = max(table.block_size * model.layer_bytes(table.group) for table in kept)
        return [
            {
                "layers": model.layers_of(group := table.group),
                "block_size": longest if group.state_bytes else table.block_size,
                "bytes": int(model.state_of(group) or model.layer_bytes(group)),
                "page_bytes": int(page),
                "window": group.window,
                "state": group.state_bytes > 0,
            }
            for table in self.tables
        ]

    def waste(self, table: Table) -> float:
        """Share of the bytes of its full blocks that a kind of tables leaves empty, 0 to 1."""
        return float(1 - table.used_bytes / (table.count * self.block_bytes))


def _for_server(table: Table) -> GroupTables:
    group = table.group
    size = 0 if group.state_bytes else table.block_size
    return GroupTables(
        count=table.count,
        block_size=size,
        window=group.window or FOREVER,
        token_bytes=int(table.used_bytes // max(size, 1)),
    )


def tables_of(model: Model, *, block_size: int) -> Tables:
    """Part the layers of a model."""
    states = [model.state_of(group) for group in model.groups if group.state_bytes]
    kept = [group for group in model.groups if not group.state_bytes]
    if states:
        # As many tokens a block as hold the largest state.
        block_size *= -(-max(states) // int(block_size * model.layer_bytes(kept[0])))
    page = max(block_size * model.layer_bytes(group) for group in kept)
    layers = [model.layers_of(group) for group in model.groups]
    if len(layers) > 1 and max(layers) >= NEARLY_AS_MANY * min(layers):
        size = min(layers)
    else:
        size = max(layers)
    return Tables(
        block_bytes=int(size * page),
        tables=tuple(_table(group, model, size, page, block_size) for group in model.groups),
    )


def _table(group: LayerGroup, model: Model, size: int, page: Fraction, block_size: int) -> Table:
    layers = model.layers_of(group)
    if group.state_bytes:
        used = Fraction(layers * model.state_of(group))
    else:
        mine = model.layer_bytes(group)
        if page % (block_size * mine) == 0:
            block_size = int(page // mine)
        used = layers * block_size * mine
    return Table(group=group, count=-(-layers // size), block_size=block_size, used_bytes=used)
