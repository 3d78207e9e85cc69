"""What nobody should hand us: each is refused with exit code 2, the value and the remedy.

The lines and what is said of them are in `refused.txt`. Most need no torch, whose import takes
seconds, and are refused before it. For the others memory is bounded and so is time: an input that
is not judged before it is taken in fails its row and nothing else.
"""

from __future__ import annotations

import ast
import gzip
import importlib.metadata
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from bench import cli
from bench.fuzz.pytest_file import pytest_file
from bench.fuzz.record import Subject, read_trace
from bench.gate.verdict import judge
from helpers.gate_records import gate_record
from helpers.places import ROOT
from helpers.traces import a_trace
from reference.allocator.contract import AllocatorCapabilities
from reference.allocator.programs import Pool, Program, Step

MEMORY = 3 << 30
"""Bytes beyond what the process has: more than any row needs, less than the machine has."""

LIMIT_S = 60
"""For a row on a machine that is busy with other things."""

HEADER = b"num_prefill_tokens,num_decode_tokens\n"

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,1,"

LARGE = """
def make(*_, **__): ...
make.capabilities = dict(block_sizes=[16, 32], min_blocks=8, prefix_caching=False)
"""

BRAND = """
from pathlib import Path
Path("ran").touch()
def make(num_blocks, block_size, *, prefix_caching, window): ...
"""


SHORT = Program(Pool(num_blocks=3, block_size=2), (Step("admit", "a", tokens=(1,)),))
BRANDED = a_trace(SHORT, allocator=Subject(name="brand.py:make"))
PAGED = a_trace(SHORT, allocator=Subject(name="paged"))


def in_the_trace(**changes: Any) -> str:
    trace = json.loads(PAGED.to_json())
    trace["program"] = trace["program"] | changes
    return json.dumps(trace)


def a_record(*place: str | int, value: Any) -> str:
    """A record as the gate writes it, but for one value."""
    record = json.loads(judge(gate_record()).model_dump_json())
    node = record
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    return json.dumps(record)


def sample(name: str, value: Any) -> str:
    return a_record("benchmarks", 0, "samples", 0, name, value=value)


def files() -> dict[str, str | bytes]:
    """Everything that a row names."""
    definitions = {"version": 2, "b": {"params": [], "unit": "s", "version": "1"}}
    return {
        "brand.py": BRAND,
        "trace.json": BRANDED.to_json(),
        "python.json": a_trace(
            SHORT, allocator=Subject(name="paged", engine_python="./a python")
        ).to_json(),
        "pool.json": in_the_trace(pool={"num_blocks": 10**12, "block_size": 10**9}),
        "window.json": in_the_trace(pool={"num_blocks": 1, "block_size": 1, "window": -1}),
        "token.json": in_the_trace(steps=[{"call": "admit", "sequence": "a", "tokens": [10**30]}]),
        "call.json": in_the_trace(steps=[{"call": "__class__"}]),
        "empty": "",
        "binary": b"\0\xff\xfe" * 50,
        "deep": '{"a":' * 50_000,
        "digits": "1" * 5000,
        "null": "null",
        "mine.py": "def make(*_, **__): ...\n",
        "large.py": LARGE,
        "bad.csv": f"{AZURE}1\n2023-11-16 18:15:47.68,1,x\n",
        "silent.csv": f"{AZURE}0\n",
        "no-reason.toml": '[[expected]]\nkernel="torch"\ncheck="truth"\nreason="todo"\n',
        "list.toml": 'expected = [["a"]]\n',
        "number.toml": "expected = 3\n",
        "when.toml": '[[expected]]\nkernel="a"\ncheck="truth"\nreason="x"\nwhen=3\n',
        "deep.toml": "x=" + "[" * 5000 + "\n",
        "digits.toml": "x=" + "1" * 5000 + "\n",
        "margin.toml": "margin = 'x'\n",
        "limit.toml": "limits = {calls = nan}\n",
        "long.csv": HEADER + b"1" * (1 << 21),
        "bomb.gz": gzip.compress(b"\0" * (1 << 27)),
        "lines.gz": gzip.compress(HEADER + b"\n" * (1 << 21)),
        "wide.gz": gzip.compress(HEADER + (b" " * (1 << 19) + b"\n") * 150),
        "cut.gz": gzip.compress(HEADER + bytes(range(60)) * 99)[:60],
        "slash": a_record("base", "commit", value="../../etc/passwd"),
        "nul": a_record("base", "commit", value="a\0" * 20),
        "line": a_record("head", "name", value="a\nb"),
        "dots": a_record("base", "environment", "device", value="\x1b[2J"),
        "schema": a_record("schema_version", value=0).replace(
            '"schema_version": 0', f'"schema_version": {"1" * 5000}'
        ),
        "alpha": a_record("parameters", "alpha", value=-1),
        "margin": a_record("parameters", "margin", value=-1),
        "looks": a_record("parameters", "looks", value=[]),
        "large-look": a_record("parameters", "looks", value=[10**3000]),
        "small-look": a_record("parameters", "looks", value=[-5000, 1, 2]),
        "date": a_record("started_at", value=""),
        "nan": a_record("elapsed_s", value=float("nan")),
        "negative": a_record("exact_s", value=-1.0),
        "no-time": sample("base_s", 0),
        "infinite": sample("d_timer", float("inf")),
        "conf": "{",
        "conf-list": "[]",
        "conf-regex": '{"version": 1, "regressions_thresholds": {"(": 1}}',
        "conf-folder": '{"version": 1, "repo": ".", "results_dir": 3}',
        "half/benchmarks.json": "{",
        "lists/benchmarks.json": "[1]",
        "odd/benchmarks.json": json.dumps(definitions),
        "odd/m/machine.json": '{"version": 1, "machine": "m"}',
        "odd/m/x.json": '{"version": 2, "results": 3}',
        "huge/benchmarks.json": json.dumps(
            definitions | {"b": {"params": [["x"] * 1000] * 9, "unit": "s", "version": "1"}}
        ),
        "huge/m/machine.json": '{"version": 1, "machine": "m"}',
        "huge/m/x.json": json.dumps(
            {
                "version": 2,
                "params": {"machine": "m"},
                "requirements": {},
                "commit_hash": "a" * 40,
                "date": 1,
                "python": "3",
                "env_name": "e",
                "env_vars": {},
                "result_columns": ["result", "version"],
                "results": {"b": [[1.0], "1"]},
            }
        ),
        "engines/vllm/bin/python": "",
        "folder/.keep": "",
        # What the gate compares: it asks for no subject, and so for none that is imported.
        "pyproject.toml": '[tool.pagedbench]\nsuite = "bench.gate.suite"\n',
        "bench/.keep": "",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    for name, content in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "first"], check=True)
    return root


@contextmanager
def bounded() -> Iterator[None]:
    """Take no more memory and time than a refusal may cost."""

    def late(*_: object) -> None:
        raise TimeoutError

    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, before[1]))
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def typed(line: str, folder: Path) -> Result:
    with chdir(folder):
        return CliRunner().invoke(cli.app, shlex.split(line), prog_name="pagedbench")


def rows(section: str) -> list[tuple[str, str]]:
    """The lines of a section of `refused.txt`, each with what is said of it."""
    _, text = Path(__file__).with_name("refused.txt").read_text().split(f"\n# {section}\n")
    lines = text.partition("\n# ")[0].split("\n")
    lines = [line for line in lines if line]
    return [(line, words.strip()) for line, words in zip(lines[::2], lines[1::2], strict=True)]


AT_ONCE = rows("Before torch is imported, which takes seconds")
BOUNDED = rows("Once torch may be there, within bounds of memory and time")

SAID = {
    "--help": "pagedbench check --kernel my_kernel.py:attention",
    "check --help": '--problem "(q1 k129) g4 d80 b16 bf16"',
    "--version": f"torch {importlib.metadata.version('torch')}",
}

PROBE = """
import functools, json, shlex, sys
sys.path.insert(0, sys.argv.pop(1))
import typer.testing
from bench.cli import app
typer.testing._get_command = functools.cache(typer.testing._get_command)
heavy = {"torch", "triton", "numpy", "hypothesis"}
said = {}
for line in json.loads(sys.argv.pop(1)):
    result = typer.testing.CliRunner().invoke(app, shlex.split(line))
    here = sorted(heavy & set(sys.modules))
    said[line] = [result.exit_code, result.stdout, result.stderr, here]
print(json.dumps(said))
"""


def test_what_is_refused_and_help_come_before_torch_is_imported(folder: Path) -> None:
    # Help first: it needs even less.
    lines = [*SAID, *dict(AT_ONCE)]
    run = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, str(ROOT), json.dumps(lines)],
        cwd=folder,
        env={**os.environ, "COLUMNS": "300", "PAGEDBENCH_ENGINES": "engines"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for line, (code, out, err, modules) in json.loads(run.stdout).items():
        heavy = {"torch", "triton"} | ({"numpy", "hypothesis"} if line in SAID else set())
        assert not heavy & set(modules), line
        assert "Traceback" not in err, line
        if line in SAID:
            assert (code, SAID[line] in out, err) == (0, True, ""), line
        else:
            assert (code, out) == (2, ""), line
            assert dict(AT_ONCE)[line] in err, (line, err)


@pytest.mark.parametrize(("line", "words"), BOUNDED, ids=[line[:60] for line, _ in BOUNDED])
def test_what_is_hostile_is_refused(
    line: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("PAGEDBENCH_ENGINES", "engines")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with bounded():
        result = typed(line, folder)
    assert "Traceback" not in result.output
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert not (folder / "ran").exists(), "it ran what a file names"


def test_a_good_record_after_a_bad_one_is_taken_in(folder: Path) -> None:
    (folder / "good").write_text(judge(gate_record()).model_dump_json())
    result = typed("import slash nan /dev/zero good --store store", folder)
    assert result.exit_code == 2
    assert len(list((folder / "store").iterdir())) == 1
    for option in ("--store binary", "--store store --asv binary"):
        refused = typed(f"import good {option}", folder)
        assert (refused.exit_code, "Traceback" in refused.output) == (2, False), refused.output
        assert "binary" in refused.output


def test_a_replay_runs_what_the_command_line_names(folder: Path) -> None:
    command = typed("fuzz --replay trace.json", folder).output.partition("type: pagedbench ")[2]
    with chdir(folder):
        Path("ran").unlink(missing_ok=True)
        # It has no allocator to speak of: that it was imported is what counts.
        typed(command, folder)
        assert Path("ran").is_file()
        Path("ran").unlink()


EVIL = [
    '"""\nimport os; os.abort()\n"""',
    "'''\nraise SystemExit\n'''",
    "\\",
    '\\"""',
    'x"',
    "a\rb\x0cc\u2028d\u2029e\x85f",
    "# coding: utf-7\n+AGEAYg-",
    "{__import__('os').abort()}",
    "\0\x1b[2J\ud800",
    "$(touch ran) `touch ran` ' \" &",
]


@pytest.mark.parametrize("text", EVIL)
def test_hostile_text_in_a_generated_test_stays_text(text: str, tmp_path: Path) -> None:
    step = Step("admit", text, parent=text, tokens=(1,), salt=text)
    trace = a_trace(
        allocator=Subject(name=f"{text}:f", engine_python=text, version=text),
        check=text,
        message=f"{text}\n{text}",
        program=Program(Pool(num_blocks=1, block_size=1), (step,)),
    )
    (tmp_path / "test_it.py").write_text(pytest_file(trace))
    source = (tmp_path / "test_it.py").read_bytes()
    tree = ast.parse(source)
    (opened,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open_allocator"
    ]
    assert ast.literal_eval(opened.args[0]) == trace.allocator.name
    assert ast.literal_eval(opened.keywords[0].value) == text
    space: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, "test_it.py", "exec"), space)
    assert space["PROGRAM"] == trace.program
    docstring = ast.get_docstring(tree, clean=False)
    assert docstring is not None
    whole = text.encode(errors="backslashreplace").decode()
    assert docstring.startswith(f"{whole}:f ({whole}): {whole}.")
    assert [type(node) for node in tree.body[1:]] == [
        *[ast.ImportFrom] * (len(tree.body) - 3),
        ast.Assign,
        ast.FunctionDef,
    ]


def test_a_finding_with_half_a_character_is_saved(tmp_path: Path) -> None:
    trace = a_trace(message="\ud800", allocator=Subject(name="paged", version="\udfff"))
    (tmp_path / "trace.json").write_text(trace.to_json())
    assert read_trace(tmp_path / "trace.json") == trace


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"block_sizes": ["16"]}, "block_sizes: '16'; give a list of whole numbers"),
        ({"block_sizes": [0, -3]}, r"block_sizes: \[-3, 0\]; name sizes of 1 token or more"),
        ({"block_sizes": []}, "block_sizes: .*name sizes"),
        ({"block_sizes": 16}, "block_sizes: 16; give a list"),
        ({"block_sizes": [[16]]}, r"block_sizes: \[16\]; give a list"),
        ({"prefix_caching": "yes"}, "prefix_caching: 'yes'; give True or False"),
        ({"prefix_caching": 1}, "prefix_caching: 1; give True or False"),
        ({"min_blocks": "3"}, "min_blocks: '3'; give a whole number"),
        ({"min_blocks": 2.0}, "min_blocks: 2.0; give a whole number"),
        ({"min_blocks": True}, "min_blocks: True; give a whole number"),
        ({"hostile": "free_twice"}, "hostile: 'free_twice'; give a list of names"),
        ({"hostile": [3]}, "hostile: 3; give a list of names"),
        ({"eviction": ["lru"]}, r"eviction: \['lru'\]; use lru"),
        ({3: True}, "capability 3 is unknown"),
    ],
)
def test_a_declaration_of_another_type_is_refused_by_name(
    declared: dict[Any, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"^capability {words}" if 3 not in declared else words):
        AllocatorCapabilities.from_mapping(declared)
