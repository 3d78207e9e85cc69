"""A stranger's repository: a Triton kernel, a torch kernel, C built by a command, an allocator.

Its changes are one commit each on top of the first, as branches of these names.
"""

import subprocess
from pathlib import Path

PYPROJECT = """
[tool.pagedbench]
kernels = ["toy.triton_kernel:attention", "toy.torch_kernel:attention"]
allocators = ["toy.pool:make"]
points = ["2x(q1 k100) h1 g2 d32 b16 fp32"]
streams = ["azure-conv:system=64,prompts=2,max_len=300:12"]
problems = 2
build = "cc -O1 -shared -fPIC -o toy/_blocks.so toy/blocks.c && echo built >> ../built"
"""

CAN = """
from pagedbench import Capabilities

CAN = Capabilities(
    dtypes=frozenset({"fp32"}), kv_dtypes=frozenset(), head_dims=frozenset({32}),
    block_sizes=frozenset({16}), variants=frozenset(), declines=frozenset({"strides=table"}),
)
"""

TRITON_KERNEL = """
import triton
import triton.language as tl
from pagedbench import declares
from toy.can import CAN


@triton.jit
def decode(query, keys, values, table, lengths, starts, out, scale, q_row, k_block, k_slot,
           v_block, v_slot, columns, o_row, GROUP: tl.constexpr, DIM: tl.constexpr,
           SIZE: tl.constexpr, k_head, v_head, q_head, o_head):
    row, head = tl.program_id(0), tl.program_id(1)
    token, length = tl.load(starts + row).to(tl.int64), tl.load(lengths + row)
    if token == tl.load(starts + row + 1):
        return
    dim, offset = tl.arange(0, DIM), tl.arange(0, SIZE)
    q = tl.load(query + token * q_row + head * q_head + dim)
    best, total = float("-inf"), 0.0
    sums = tl.zeros([DIM], tl.float32)
    for column in range(0, tl.cdiv(length, SIZE)):
        block = tl.load(table + row * columns + column).to(tl.int64)
        own = column * SIZE + offset < length
        at = keys + block * k_block + offset[:, None] * k_slot + head // GROUP * k_head
        k = tl.load(at + dim[None, :], mask=own[:, None], other=0.0)
        scores = tl.where(own, tl.sum(q[None, :] * k, 1) * scale, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 0))
        weights = tl.exp(scores - higher)
        shrunk = tl.exp(best - higher)
        at = values + block * v_block + offset[:, None] * v_slot + head // GROUP * v_head
        v = tl.load(at + dim[None, :], mask=own[:, None], other=0.0)
        sums = sums * shrunk + tl.sum(weights[:, None] * v, 0)
        total = total * shrunk + tl.sum(weights, 0)
        best = higher
    tl.store(out + token * o_row + head * o_head + dim, tl.where(total > 0, sums / total, 0.0))


@declares(CAN)
def attention(batch):
    q, k, v, out = batch.query, batch.key_cache, batch.value_cache, batch.out
    decode[(batch.seq_lens.shape[0], q.shape[1])](
        q, k, v, batch.block_table, batch.seq_lens, batch.query_start_loc, out, batch.scale,
        q.stride(0), k.stride(0),
        k.stride(1), v.stride(0), v.stride(1), batch.block_table.stride(0), out.stride(0),
        GROUP=batch.group_size, DIM=q.shape[2], SIZE=batch.block_size, k_head=k.stride(2),
        v_head=v.stride(2), q_head=q.stride(1), o_head=out.stride(1),
    )
"""

TORCH_KERNEL = """
import torch
from pagedbench import declares
from toy.can import CAN


@declares(CAN)
def attention(batch):
    starts = batch.query_start_loc.tolist()
    for row, length in enumerate(batch.seq_lens.tolist()):
        token = starts[row]
        if token == starts[row + 1]:
            continue
        if not length:
            batch.out[token] = 0.0
            continue
        blocks = batch.block_table[row, : -(-length // batch.block_size)].long()
        keys, values = (
            cache[blocks].flatten(0, 1)[:length].repeat_interleave(batch.group_size, 1)
            for cache in (batch.key_cache, batch.value_cache)
        )
        scores = torch.einsum("hd,khd->hk", batch.query[token], keys) * batch.scale
        batch.out[token] = torch.einsum("hk,khd->hd", scores.softmax(-1), values)
"""

BLOCKS = """
int blocks(int tokens, int size) { return (tokens + size - 1) / size; }
"""

IN_C = """
import ctypes
from pathlib import Path

blocks = ctypes.CDLL(str(Path(__file__).with_name("_blocks.so"))).blocks
"""

IN_PYTHON = """
def blocks(tokens, size):
    return -(-tokens // size)
"""

POOL = (
    f"""{IN_C}
"""
    + """
class Pool:
    def __init__(self, num_blocks, size):
        self.size, self.total = size, num_blocks
        self.unused, self.tables, self.tokens = list(range(num_blocks)), {}, {}

    def admit(self, sequence, tokens, *, num_tokens, salt):
        if sequence in self.tables:
            raise KeyError(sequence)
        return 0 if self._grow(sequence, len(tokens)) else None

    def append(self, sequence, tokens):
        self.tables[sequence]
        return self._grow(sequence, len(tokens))

    def free(self, sequence):
        self.unused += self.tables.pop(sequence)
        del self.tokens[sequence]

    def slots(self, sequence):
        table, size = self.tables[sequence], self.size
        return [table[p // size] * size + p % size for p in range(self.tokens[sequence])]

    def counts(self):
        return len(self.unused), 0, self.total - len(self.unused)

    def _grow(self, sequence, more):
        table, tokens = self.tables.get(sequence, []), self.tokens.get(sequence, 0) + more
        need = blocks(tokens, self.size) - len(table)
        if need > len(self.unused):
            return False
        self.tables[sequence] = table + [self.unused.pop() for _ in range(need)]
        self.tokens[sequence] = tokens
        return True


def make(num_blocks, block_size, *, prefix_caching, window):
    return Pool(num_blocks, block_size)


make.capabilities = {"prefix_caching": False}
"""
)

FILES = {
    "pyproject.toml": PYPROJECT,
    ".gitignore": "*.so\n__pycache__\n.pagedbench\n",
    "toy/__init__.py": "",
    "toy/can.py": CAN,
    "toy/triton_kernel.py": TRITON_KERNEL,
    "toy/torch_kernel.py": TORCH_KERNEL,
    "toy/blocks.c": BLOCKS,
    "toy/pool.py": POOL,
}

# What each commit changes: a file, a text of it, and what becomes of that; and on top of whom.
ON_TOP_OF = {"lost-mask": "wrong-numbers"}
CHANGES = {
    "unchanged": ("toy/__init__.py", "", "# Nothing that anybody would notice.\n"),
    "wrong-numbers": ("toy/torch_kernel.py", "* batch.scale", "* batch.scale * 1.01"),
    "lost-mask": (
        "toy/triton_kernel.py",
        "k = tl.load(at + dim[None, :], mask=own[:, None], other=0.0)",
        "k = tl.load(at + dim[None, :])",
    ),
    # A row of keys more than the hundred that each program loads.
    "more-bytes": (
        "toy/triton_kernel.py",
        '    best, total = float("-inf"), 0.0\n',
        '    best, total = float("-inf"), 0.0\n'
        "    first = tl.load(table + row * columns, mask=length > 0, other=0).to(tl.int64)\n"
        "    again = keys + first * k_block + head // GROUP * k_head + dim\n"
        "    q += 0.0 * tl.load(again, mask=dim < length * DIM, other=0.0)\n",
    ),
    # No call more, no operation more.
    "slower": (
        "toy/pool.py",
        "        need = blocks(",
        "        for _ in (0,) * 40:\n            pass\n        need = blocks(",
    ),
    "leak": (
        "toy/pool.py",
        "self.unused += self.tables.pop(sequence)",
        "self.unused += self.tables.pop(sequence)[1:]",
    ),
    "no-import": ("toy/pool.py", "class Pool:", "class Pool(:"),
    "no-build": ("toy/blocks.c", "{ return", "{ return return"),
}

IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.org")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *IDENTITY, *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def make(folder: Path) -> Path:
    """The repository, with `main` checked out."""
    root = folder / "repository"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.lstrip("\n"))
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "first")
    for name, (file, old, new) in CHANGES.items():
        git(root, "checkout", "--quiet", "-b", name, ON_TOP_OF.get(name, "main"))
        text = (root / file).read_text()
        assert text.count(old) == 1 or not old, (name, text.count(old))
        (root / file).write_text(text.replace(old, new) if old else new)
        commit(root, name)
    git(root, "checkout", "--quiet", "main")
    return root


def commit(root: Path, message: str) -> None:
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", message)
