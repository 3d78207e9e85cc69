"""Run as a script: random kernels, and the attention kernels, stock and with the corrections.

Arguments: a directory to write the kernels to, the first seed and the number of kernels. Writes
JSON: {name: [outcome stock, outcome corrected]}; an outcome is a digest of every bit of the output,
or the error that the launch raised. Only types that stock computes right take part: float32,
float16, float64, integers and bool. Start it with TRITON_INTERPRET=1 and
PAGEDBENCH_STOCK_INTERPRETER=1.
"""

import hashlib
import importlib.util
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from forks import in_fork

from kernels.attention import paged_attention
from kernels.interpreter import CORRECTIONS, install
from reference.attention.inputs import make_inputs
from reference.attention.placement import place
from reference.attention.problem import AttentionProblem

SIDE = 16
STATEMENTS = 14
ATTENTION = (
    "(q1 k129) (q1 k40) g4 d64 b16 fp32 window=40 alibi sinks",
    "2x(q1 k77) h2 d80 b128 fp16 softcap=20.0",
    "(q20 k129) (q1 k40) (q5 k5) g3 d64 b1 fp32",
    "(q9 k33) (q1 k0) g2 d32 b16 fp16 noncausal sinks",
)

HEADER = """import triton
import triton.language as tl


@triton.jit
def helper(a, b):
    return tl.maximum(tl.sum(a, 0), tl.max(b, 0)) + a


@triton.jit
def kernel(floats, halves, ints, longs, bytes, out, number, count, SIDE: tl.constexpr):
    row = tl.arange(0, SIDE)
    at = row[:, None] * SIDE + row[None, :]
    f = tl.load(floats + at)
    h = tl.load(halves + at)
    i = tl.load(ints + at)
    u = tl.load(bytes + at, mask=row[None, :] < count, other=3)
    f_row = tl.load(floats + row * SIDE)
    i_row = tl.load(ints + row, mask=row < count, other=0)
    j_row = tl.load(longs + row)
    number = number + 0.0
"""


class Program:
    """A random kernel: a list of names with their rank and kind, and the statements that made them.

    Kinds are f (floating), i (integer) and b (bool).
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.names: list[tuple[str, int, str]] = [
            ("f", 2, "f"),
            ("h", 2, "f"),
            ("i", 2, "i"),
            ("u", 2, "i"),
            ("f_row", 1, "f"),
            ("i_row", 1, "i"),
            ("j_row", 1, "i"),
            ("number", 0, "f"),
            ("count", 0, "i"),
        ]
        # The order of a transposed tile in memory, and with it of its sum, must be stock's too.
        self.lines = ["    v0 = tl.sum(0.3 * tl.trans(f), 1)"]
        self.names.append(("v0", 1, "f"))
        for step in range(1, STATEMENTS):
            self.add(f"v{step}")

    def pick(
        self, *, kinds: str = "fib", ranks: tuple[int, ...] = (0, 1, 2)
    ) -> tuple[str, int, str]:
        fitting = [name for name in self.names if name[1] in ranks and name[2] in kinds]
        # Half of the time a late one: chains of operations, not many short ones.
        return self.draw.choice(fitting[-3:] if self.draw.random() < 0.5 else fitting)

    def spread(self, name: str, rank: int, to: int) -> str:
        """A vector as a row or a column where a matrix is wanted."""
        if rank == 1 and to == 2:
            return name + self.draw.choice(["[:, None]", "[None, :]"])
        return name

    def operands(self, kinds: str) -> tuple[str, str, int]:
        """Two operands, one of which may be a number."""
        one, rank, kind = self.pick(kinds=kinds)
        if self.draw.random() < 0.3:
            number = self.draw.choice(["2", "3", "7"] if kind != "f" else ["0.5", "3", "-1.25"])
            return (one, number, rank) if self.draw.random() < 0.5 else (number, one, rank)
        other, other_rank, _ = self.pick(kinds=kinds)
        both = max(rank, other_rank)
        return self.spread(one, rank, both), self.spread(other, other_rank, both), both

    def add(self, name: str) -> None:
        kind, rank, line = self.draw.choice(
            [
                self.arithmetic,
                self.arithmetic,
                self.division,
                self.bits,
                self.comparison,
                self.choice,
                self.unary,
                self.cast,
                self.reduction,
                self.scan,
                self.transpose,
                self.product,
                self.nested,
            ]
        )()
        self.lines.append(f"    {name} = {line}")
        self.names.append((name, rank, kind))

    def arithmetic(self) -> tuple[str, int, str]:
        a, b, rank = self.operands(self.draw.choice(["f", "i", "fi"]))
        expression = self.draw.choice(
            [f"{a} + {b}", f"{a} - {b}", f"{a} * {b}", f"tl.maximum({a}, {b})"]
        )
        return ("f" if self.mentions("f", a, b) else "i"), rank, expression

    def division(self) -> tuple[str, int, str]:
        if self.draw.random() < 0.5:
            a, b, rank = self.operands("f")
            return "f", rank, f"{a} / {b}"
        a, rank, _ = self.pick(kinds="i")
        return "i", rank, self.draw.choice([f"{a} // 7", f"{a} % 5", f"tl.cdiv({a}, 3)"])

    def bits(self) -> tuple[str, int, str]:
        a, b, rank = self.operands("i")
        return (
            "i",
            rank,
            self.draw.choice(
                [f"{a} & {b}", f"{a} | {b}", f"{a} ^ {b}", f"({a} & 7) << 3", f"{a} >> 2"]
            ),
        )

    def comparison(self) -> tuple[str, int, str]:
        a, b, rank = self.operands(self.draw.choice(["f", "i"]))
        sign = self.draw.choice(["<", "<=", ">", ">=", "==", "!="])
        condition = f"({a} {sign} {b})"
        if rank == 2 and self.draw.random() < 0.3:
            condition += " & (row[:, None] >= row[None, :])"
        return "b", rank, condition

    def choice(self) -> tuple[str, int, str]:
        condition, rank, _ = self.pick(kinds="b") if self.has("b") else ("count > 2", 0, "b")
        a, b, both = self.operands("f")
        most = max(rank, both)
        if most == 2:
            condition = self.spread(condition, rank, 2)
            a, b = (self.matrix(x) for x in (a, b))
        return "f", most, f"tl.where({condition}, {a}, {b})"

    def unary(self) -> tuple[str, int, str]:
        a, rank, _ = self.pick(kinds="f")
        function = self.draw.choice(["exp2", "floor", "sqrt", "sin", "erf"])
        return (
            "f",
            rank,
            self.draw.choice(
                [f"-{a}", f"tl.abs({a})", f"tl.{function}(tl.abs({a}).to(tl.float32))"]
            ),
        )

    def cast(self) -> tuple[str, int, str]:
        a, rank, _ = self.pick()
        to = self.draw.choice(
            ["float16", "float32", "float64", "uint8", "int16", "int32", "int64", "int1"]
        )
        kind = {"f": "f", "u": "i", "i": "b" if to == "int1" else "i"}[to[0]]
        return kind, rank, f"{a}.to(tl.{to})"

    def reduction(self) -> tuple[str, int, str]:
        a, rank, kind = self.pick(kinds="fi", ranks=(1, 2))
        function = self.draw.choice(["sum", "max", "min", "argmax"])
        axis = self.draw.randrange(rank)
        if function == "argmax":
            kind = "i"
        return kind, rank - 1, f"tl.{function}({a}, {axis})"

    def scan(self) -> tuple[str, int, str]:
        a, rank, kind = self.pick(kinds="fi", ranks=(1, 2))
        return kind, rank, f"tl.cumsum({a}, {self.draw.randrange(rank)})"

    def transpose(self) -> tuple[str, int, str]:
        a, _, kind = self.pick(ranks=(2,))
        return kind, 2, self.draw.choice([f"tl.trans({a})", f"{a}.T"])

    def product(self) -> tuple[str, int, str]:
        a, _, _ = self.pick(kinds="f", ranks=(2,))
        b, _, _ = self.pick(kinds="f", ranks=(2,))
        to = self.draw.choice(["float16", "float32"])
        return "f", 2, f'tl.dot({a}.to(tl.{to}), {b}.to(tl.{to}), input_precision="ieee")'

    def nested(self) -> tuple[str, int, str]:
        a, rank, _ = self.pick(kinds="f", ranks=(1, 2))
        return "f", rank, f"helper({a}, {a})"

    def has(self, kind: str) -> bool:
        return any(name[2] == kind for name in self.names)

    def mentions(self, kind: str, *expressions: str) -> bool:
        of_kind = {name for name, _, its in self.names if its == kind}
        return any(x.partition("[")[0] in of_kind or "." in x for x in expressions)

    def matrix(self, expression: str) -> str:
        ranks = {name: rank for name, rank, _ in self.names}
        return self.spread(expression, ranks.get(expression, 0), 2)

    def source(self) -> str:
        stores = [
            f"    tl.store(out + {number * SIDE * SIDE} + {address}, {name})"
            for number, (name, rank, _) in enumerate(self.names[-STATEMENTS:])
            for address in [("0", "row", "at")[rank]]
        ]
        return "\n".join([HEADER, *self.lines, *stores, ""])


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(*arrays: torch.Tensor) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(array.contiguous().numpy().tobytes())
    return total.hexdigest()


def run_program(path: Path, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(SIDE, SIDE, generator=generator)
    integers = torch.randint(-1000, 1000, (SIDE, SIDE), generator=generator)
    out = torch.full((STATEMENTS, SIDE, SIDE), -7.0, dtype=torch.float64)
    load_module(path).kernel[(1,)](
        numbers,
        numbers.T.half().contiguous(),
        integers.int(),
        integers[0].clone(),
        integers.to(torch.uint8),
        out,
        0.75,
        11,
        SIDE=SIDE,
    )
    return digest(out)


def run_attention(spec: str) -> str:
    placement = place(make_inputs(AttentionProblem.parse(spec)))
    paged_attention(placement.batch)
    return digest(placement.batch.out, placement.batch.lse)


def outcome_of(run: Callable[[], str]) -> str:
    try:
        return run()
    except Exception as error:  # stock must raise the same
        return f"{type(error).__name__}: {error}"


def main(directory: Path, first: int, count: int) -> None:
    torch.set_num_threads(1)
    runs: dict[str, Callable[[], str]] = {}
    for seed in range(first, first + count):
        path = directory / f"kernel_{seed}.py"
        path.write_text(Program(seed).source(), encoding="utf-8")
        runs[path.name] = lambda path=path, seed=seed: run_program(path, seed)
    for spec in ATTENTION:
        runs[spec] = lambda spec=spec: run_attention(spec)

    def outcomes() -> dict[str, str]:
        return {name: outcome_of(run) for name, run in runs.items()}

    def stock() -> dict[str, str]:
        install(without=CORRECTIONS - {"index"})  # without this one 3.6 cannot run a loop
        return outcomes()

    def corrected() -> dict[str, str]:
        install()
        return outcomes()

    with np.errstate(all="ignore"):
        pairs = [in_fork(stock), in_fork(corrected)]
    json.dump({name: [outcome[name] for outcome in pairs] for name in runs}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
