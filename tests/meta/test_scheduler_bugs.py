"""Wrong servers, each of which the checks of tests/property/test_scheduler.py must reject.

A bug is a line of the source changed into another. The modules are loaded anew with it, beside the
right ones, so nothing has to be undone.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import paged
from helpers.serving import AGREEMENT, TABLES, Servers, check_agreement, check_tables

# In order of import: what comes later is loaded with what came before.
MODULES = ("paged.arrivals", "paged.group", "paged.scheduler", "paged.counting")
# The rarest bug takes 4 to 370 from one seed to the next; what Hypothesis draws also depends on
# which modules are loaded.
MAX_EXAMPLES = 4000


@dataclass(frozen=True)
class Bug:
    """What is changed, where, and which check has to see it."""

    module: str
    right: str
    wrong: str
    tables: bool = True


BUGS = {
    # Counting.
    "a block too late at the boundary": Bug(
        "counting", "blocks = held // size + 1", "blocks = max(1, -(-held // size))", tables=False
    ),
    "the phase of growth is off by one": Bug(
        "counting", "growing[(1 - base) % size] += 1", "growing[-base % size] += 1", tables=False
    ),
    "one that runs alone is not protected by the watermark": Bug(
        "counting", "if running and blocks >", "if len(running) > 1 and blocks >", tables=False
    ),
    "who gave way comes back last": Bug("counting", "preempted[-1]", "preempted[0]", tables=False),
    "the remainder of the pool is forgotten": Bug(
        "counting", "+ remainder * (short_steps + watermark_steps)", "", tables=False
    ),
    # The levels.
    "tokens of who gives way stay": Bug(
        "scheduler",
        "self._logical -= samples * group.live(tokens)",
        "self._logical -= group.live(tokens)",
    ),
    "who gives way keeps growing": Bug(
        "scheduler", "self._widening -= samples\n", "self._widening -= 0\n"
    ),
    "a full window keeps growing": Bug(
        "scheduler", "if group.saturates == step:", "if group.saturates == step + 1:"
    ),
    "a block is taken a step early": Bug(
        "group", "-(self.base + step) % self.size", "-(self.base + step + 1) % self.size"
    ),
    "idle blocks count as used": Bug(
        "scheduler",
        "allocated = allocator.num_used * size",
        "allocated = (allocator.num_used + allocator.num_cached_idle) * size",
    ),
    "a block too many behind the window": Bug(
        "scheduler",
        "behind = max(0, group.tokens_at(self.step) - window) // size",
        "behind = max(0, group.tokens_at(self.step) - window + 1) // size",
    ),
    "the budget is not used up": Bug(
        "scheduler",
        "                left -= chunk\n            chunks",
        "                left -= 0\n            chunks",
    ),
    # The group.
    "samples share nothing": Bug(
        "group", "duplicate = (samples - 1) * (prompt - prompt % self.size)", "duplicate = 0"
    ),
    "samples share the partly filled block": Bug(
        "group",
        "duplicate = (samples - 1) * (prompt - prompt % self.size)",
        "duplicate = (samples - 1) * prompt",
    ),
    "dropped beams are not freed": Bug(
        "group", "if name not in heirs:", "if name not in heirs and name < 0:"
    ),
    "beams are not counted again": Bug("group", "return self._duplicate - before", "return 0"),
    "a shared prefix counts once more when it ends": Bug(
        "group",
        "duplicate += self.size * sum(references[block] > 1 for block in row)",
        "duplicate += self.size * sum(references[block] > 2 for block in row)",
    ),
    "a hit on an idle block counts as shared": Bug(
        "group",
        "return self.size * sum(references[block] > 1 for block in row)",
        "return self.size * len(row)",
    ),
    "what was generated is generated again": Bug(
        "group",
        "self.generated = self.base + step - self.request.prompt_tokens",
        "self.generated = max(0, self.base + step - self.request.prompt_tokens - 1)",
    ),
    "one sample too few grows": Bug(
        "group",
        "for name in self.sequences:\n            self._allocator.extend(name, more)",
        "for name in self.sequences[:1]:\n            self._allocator.extend(name, more)",
    ),
}


def planted(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Load the servers anew, with the bug."""
    loaded = {}
    found = False
    for name in MODULES:
        path = Path(paged.__file__).parent / f"{name.removeprefix('paged.')}.py"
        source = path.read_text()
        if name == f"paged.{bug.module}":
            assert source.count(bug.right) == 1, f"{bug.right!r} is not once in {path.name}"
            source = source.replace(bug.right, bug.wrong)
            found = True
        spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(source, f"planted {path.name}", "exec"), module.__dict__)
        loaded[name] = module
    assert found
    return Servers(
        serve=loaded["paged.scheduler"].serve,
        serve_by_counts=loaded["paged.counting"].serve_by_counts,
    )


@pytest.mark.parametrize("name", BUGS)
def test_the_check_rejects(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    servers = planted(bug, monkeypatch)

    @settings(
        max_examples=MAX_EXAMPLES,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(**(TABLES if bug.tables else AGREEMENT))
    def search(**drawn: Any) -> None:
        (check_tables if bug.tables else check_agreement)(servers, **drawn)

    with pytest.raises(Exception) as caught:  # noqa: PT011 - by an assertion, or by the identity
        search()
    assert not isinstance(caught.value, TypeError | NameError), "the bug does not even run"


def test_the_right_servers_pass_when_loaded_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers = planted(Bug("group", "class SequenceGroup:", "class SequenceGroup:"), monkeypatch)

    @settings(max_examples=100, database=None, derandomize=True)
    @given(**TABLES)
    def search(**drawn: Any) -> None:
        check_tables(servers, **drawn)

    search()
