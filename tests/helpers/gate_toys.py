"""Trees and plans with which the gate's engine is tried out; see `helpers.toy_suite`."""

from pathlib import Path
from typing import Any

from bench.command.project import Project
from bench.gate.contestant import Contestant
from bench.gate.record import Design
from bench.gate.run import GatePlan

SUITE = str(Path(__file__).with_name("toy_suite.py"))

QUICK = Design(alpha=0.05, looks=(5,), confirm_looks=(5,))
"""As few launches as can decide anything: 2^-5 is below 5 %."""

TOY = """
NAME = {name!r}
COST_US = 100.0
ANSWER = [1, 2, 3]
OPERATIONS = 1000
MORE = True

def work(clock, name):
    clock.spend(COST_US)
"""


def tree(folder: Path, name: str, change: str = "", **files: str) -> Path:
    """A tree with the room that the toy suite needs; `change` is appended to it."""
    root = folder / name
    (root / "bench" / "gate").mkdir(parents=True)
    (root / "paged").mkdir()
    for room in ("bench", "paged"):
        (root / room / "__init__.py").write_text(files.get(room, ""))
    (root / "paged" / "toy.py").write_text(TOY.format(name=name) + change)
    return root


def plan(base: Path, head: Path, **changes: Any) -> GatePlan:
    """A quick plan for two trees."""
    usual: dict[str, Any] = {
        "base": Contestant(asked=str(base)),
        "head": Contestant(asked=str(head)),
        "design": QUICK,
        "pairs": 4,
        "turn_s": 0.001,
        "suite": SUITE,
        "project": Project(root=base.parent),
        "answer_limit_s": 20.0,
    }
    return GatePlan(**{**usual, **changes})
