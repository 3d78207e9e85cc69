"""What nobody should hand us: each is refused with exit code 2, the value and the remedy.

Memory is bounded and so is time: an input that is not judged before it is taken in fails its row
and nothing else.
"""

from __future__ import annotations

import ast
import gzip
import json
import resource
import shlex
import signal
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from bench import cli
from bench.fuzz.pytest_file import pytest_file
from bench.fuzz.record import Subject, Trace, read_trace
from bench.gate.verdict import judge
from bench.machine.environment import FuzzEnvironment
from helpers.gate_records import gate_record
from reference.allocator.contract import AllocatorCapabilities
from reference.allocator.programs import Pool, Program, Step

MEMORY = 3 << 30
"""Bytes beyond what the process has: more than any row needs, less than the machine has."""

LIMIT_S = 60
"""For a row on a machine that is busy with other things."""

HEADER = b"num_prefill_tokens,num_decode_tokens\n"

BRAND = """
from pathlib import Path
Path("ran").touch()
def make(num_blocks, block_size, *, prefix_caching, window): ...
"""


def a_trace(**changes: Any) -> Trace:
    usual = {
        "allocator": Subject(name="brand.py:make"),
        "check": "content",
        "message": "x",
        "at_the_end": False,
        "repeats": True,
        "program": Program(Pool(num_blocks=3, block_size=2), (Step("admit", "a", tokens=(1,)),)),
        "examples": 1,
        "first_steps": 1,
        "attempts": 1,
        "seed": 5,
        "environment": FuzzEnvironment(
            pagedbench="0.1", commit=None, dirty=None, hypothesis="6", python="3.11", cpu="a"
        ),
    }
    return Trace(**(usual | changes))


def in_the_trace(**changes: Any) -> str:
    trace = json.loads(a_trace(allocator=Subject(name="paged")).to_json())
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
        "trace.json": a_trace().to_json(),
        "python.json": a_trace(
            allocator=Subject(name="paged", engine_python="./a python")
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
        "list.toml": 'expected = [["a"]]\n',
        "number.toml": "expected = 3\n",
        "when.toml": '[[expected]]\nkernel="a"\ncheck="truth"\nreason="x"\nwhen=3\n',
        "deep.toml": "x=" + "[" * 5000 + "\n",
        "digits.toml": "x=" + "1" * 5000 + "\n",
        "margin.toml": "margin = 'x'\n",
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
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    for name, content in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
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


ONE = "check --kernel torch --problem '(q1 k16) d64 b16 bf16'"

HOSTILE = [
    ("check --problem '(q1 k99999999999) d64 b16 bf16'", "k up to 2,147,483,647"),
    ("check --problem '(q1 k2000000000) h8 d128 b16 bf16'", "shorten the lengths or the batch"),
    ("check --problem '60000x(q1 k900000) d64 b16 bf16'", "shorten the lengths or the batch"),
    ("check --problem '(q200000 k200000) d64 b16 bf16'", "shorten the lengths or the batch"),
    ("check --problem '(q1 k1) h999999999999 d64 b16 bf16'", "shorten the lengths or the batch"),
    (f"check --problem '(q1 k1) d64 b16 bf16 window={10**30}'", "a window is 1 to"),
    (f"check --problem '(q1 k1) d64 b16 bf16 shared={10**30}'", "a prefix has 0 to"),
    (f"{ONE} --engine-python /bin/sh", "/bin/sh: it is no Python interpreter"),
    (f"{ONE} --engine-python /bin/true", "/bin/true: it is no Python interpreter"),
    (f"{ONE} --engine-python folder", "it is no program that starts"),
    (f"{ONE} --expected number.toml", "expected: Input should be a valid list"),
    (f"{ONE} --expected list.toml", "entry 1 of [[expected]]"),
    (f"{ONE} --expected when.toml", "entry 1 of [[expected]], when"),
    (f"{ONE} --expected deep.toml", "deep.toml is no TOML"),
    (f"{ONE} --expected digits.toml", "digits.toml is no TOML"),
    (f"{ONE} --expected binary", "not UTF-8 text"),
    (f"{ONE} --expected /dev/zero", "over 64 MiB"),
    (f"{ONE} --expected folder", "Is a directory"),
    ("check --trace /dev/zero", "without an end of line"),
    ("check --trace bomb.gz", "without an end of line"),
    ("check --trace lines.gz", "over 1,000,000 blank lines"),
    ("waste --trace long.csv", "line 2: read more than 1,048,576 bytes"),
    ("waste --trace bomb.gz", "line 1: read more than 1,048,576 bytes"),
    ("waste --trace lines.gz", "expected a request on each line of a trace"),
    ("waste --trace wide.gz", "unpacks to over 200 times its size"),
    ("waste --trace cut.gz", "a complete gzip file"),
    ("waste --trace deep", "line 1: read"),
    ("waste --requests 1e15", "Invalid value for '--requests'"),
    ("waste --requests 1000000000000000", "draw 1 to 100,000,000"),
    ("waste --stream azure-fit:requests=1000000000000", "draw 1 to 100,000,000"),
    ("waste --stream azure-fit:requests=9,repeat=1000000000000", "use 1 or more, for 100,000,000"),
    ("waste --stream sharegpt-fit:system=1000000000000000", "use 1 to 1,048,576"),
    ("waste --slots 1000000000000 --requests 9 --policy paged:prefix=lru", "1 to 2147483647"),
    ("fuzz --num-blocks 1000000000000 --in-process", "a pool has 1 to 4,194,304 tokens"),
    ("fuzz --num-blocks 1000000000000 --block-size 1000000000 --in-process", "a pool has 1 to"),
    ("fuzz --block-size 1000000000000 --in-process", "give fewer blocks, or smaller ones"),
    ("fuzz --steps 1000000000", "Invalid value for '--steps'"),
    ("fuzz --time-limit inf", "give up to 1,000,000 s"),
    ("fuzz --engine-python /bin/sh", "/bin/sh: it is no Python interpreter"),
    ("fuzz --allocator vllm", "the build of engines/vllm did not end; build it again with"),
    ("fuzz --replay trace.json", "--replay trace.json --allocator brand.py:make"),
    ("fuzz --replay python.json", "--allocator paged --engine-python './a python'"),
    ("fuzz --replay pool.json", "a pool has 1 to"),
    ("fuzz --replay window.json", "a window has 1 token or more"),
    ("fuzz --replay token.json", "program.steps.0"),
    ("fuzz --replay call.json", "step '__class__' is unknown"),
    ("fuzz --replay binary", "binary is no trace of a finding"),
    ("fuzz --replay deep", "deep is no trace of a finding"),
    ("fuzz --replay digits", "digits is no trace of a finding"),
    ("fuzz --replay folder", "Is a directory"),
    ("fuzz --replay /dev/zero", "over 64 MiB"),
    ("fuzz --known trace.json", "a finding of brand.py:make, not of paged"),
    ("fuzz --known pool.json", "a pool has 1 to"),
    ("race --num-blocks 1000000000000", "give 16,777,216 at most"),
    ("race --requests 1000000000000000", "give 250,000 at most"),
    ("race --allocator vllm", "make engine-vllm"),
    ("compile --kernel triton --problem '(q1 k99999999999) d64 b16 bf16'", "k up to 2,147,483,647"),
    (
        "compile --kernel triton --problem '900x(q1 k2000000000) d256 b1 fp32'",
        "shorten the lengths",
    ),
    ("compile --baseline binary", "baseline binary: the file"),
    ("compile --baseline deep", "make it anew with --save deep"),
    ("compile --baseline /dev/zero", "over 64 MiB"),
    ("throughput --batch 1x99999999999", "give BATCHxCONTEXT"),
    ("throughput --batch 1x999999999", "shorten the lengths or the batch"),
    ("throughput --batch 9999999x1", "give 65,536 at most"),
    ("throughput --prefill 1x999999999", "shorten the lengths or the batch"),
    ("gate nothing", "neither a commit"),
    ("gate folder", "no room called bench"),
    ("gate torch==", "write it as in torch==2.12.0"),
    ("gate HEAD --benchmark nothing", "'pagedbench gate --list' has them all"),
    ("gate HEAD --python nothing", "no interpreter there"),
    ("gate HEAD --config binary", "not UTF-8 text"),
    ("gate HEAD --config digits.toml", "digits.toml is no TOML"),
    ("gate HEAD --config margin.toml", "margin.toml: margin"),
    ("compare nothing HEAD", "neither a commit"),
    ("compare HEAD folder", "no room called bench"),
    ("compare --env torch== --env torch==2.12.0", "write it as in torch==2.12.0"),
    ("compare --record binary", "no schema_version"),
    ("compare --record no-time", "took no time"),
    ("history --config conf", "--config conf: "),
    ("history --config conf-list", "--config conf-list: "),
    ("history --config conf-regex", "--config conf-regex: "),
    ("history --config conf-folder", "--config conf-folder: "),
    ("history --results half", "no list of asv's benchmarks"),
    ("history --results lists", "no list of asv's benchmarks"),
    ("history --results odd", "x.json: no result of asv"),
    ("history --results huge", "combinations of parameters"),
    ("import binary", "no schema_version"),
    ("import digits", "no schema_version"),
    ("import null", "no schema_version"),
    ("import deep", "no schema_version"),
    ("import folder", "Is a directory"),
    ("import /dev/zero", "over 64 MiB"),
    ("import schema", "no schema_version"),
    ("import slash", "commit is '../../etc/passwd', no hash of git"),
    ("import nul", "no hash of git"),
    ("import line", r"head.name is 'a\nb', with characters"),
    ("import dots", "base.environment.device is"),
    ("import alpha", "an error rate of -1.0"),
    ("import margin", "margin -1.0"),
    ("import looks", "numbers of launches, increasing"),
    ("import large-look", "its launches do not give its verdict"),
    ("import small-look", "launches decide nothing even if all agree; begin with 9"),
    ("import date", "started_at is '', no date"),
    ("import nan", "elapsed_s is nan"),
    ("import negative", "exact_s is -1.0 seconds"),
    ("import no-time", "took no time"),
    ("import infinite", "samples.d_timer is inf"),
]


@pytest.mark.parametrize(("line", "words"), HOSTILE, ids=[line[:60] for line, _ in HOSTILE])
def test_what_is_hostile_is_refused(
    line: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("PAGEDBENCH_ENGINES", "engines")
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
    assert docstring.startswith(f"{trace.allocator.name} ({trace.allocator.version}): {text}.")
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
