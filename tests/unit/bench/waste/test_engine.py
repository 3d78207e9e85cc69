"""An engine's scheduler beside ours: how it is configured, summed up, compared and shown."""

import sys
from collections.abc import Iterator
from functools import partial
from io import StringIO
from random import Random
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import cli
from bench.machine.facts import version_of
from bench.waste.engine import BesideRecord, BesideRow, EngineSetting, Side, serve_on_engine
from bench.waste.engine_report import show_beside
from bench.waste.models import LayerGroup, Model
from bench.waste.policies import parse_policy
from bench.waste.tables import tables_of
from helpers import profiles
from paged.arrivals import Request
from paged.clock import StepTime
from paged.grouped import GroupedScheduler
from paged.policy import PagedPolicy
from paged.scheduler import serve
from reference.errors import BadInput
from subjects.loading import SubjectError
from subjects.servers import remote
from subjects.servers.remote import EngineServer, Served

ENGINE = """
import json, os, sys
answers = os.fdopen(int(os.environ["PAGEDBENCH_ANSWERS"]), "w", buffering=1)
answers.write('{}\\n{"version": "toy 1"}\\n')
for line in sys.stdin:
    asked = json.loads(line)
    requests = asked["serve"]["requests"]
    second = 10**12
    ends = [[n, n * second, (n + 1) * second, (n + 3) * second] for n in range(len(requests))]
    names = "steps running waiting used_blocks peak_running preemptions hit_tokens queried_tokens"
    sums = dict.fromkeys(names.split(), 4)
    answer = {"requests": ends, "series": [[10**9 * t, 1, 1, 2, t, 0, 0] for t in range(30)]}
    answer |= {"sums": sums, "question_number": asked["question_number"]}
    answers.write(json.dumps(answer) + "\\n")
"""


def typed(spec: str) -> list[str]:
    policy = parse_policy(spec)
    assert isinstance(policy, PagedPolicy)
    return EngineSetting(policy=policy, num_blocks=100).arguments()


def test_a_policy_is_typed_as_the_engine_wants_it() -> None:
    given = typed("paged:block=32,budget=512,max-running=8,watermark=0.05,prefix=lru")
    assert given == [
        *("--block-size", "32", "--num-gpu-blocks-override", "101", "--max-num-seqs", "8"),
        *("--max-num-batched-tokens", "512", "--max-model-len", "3200", "--watermark", "0.05"),
        "--enable-prefix-caching",
    ]
    assert typed("paged")[-1] == "--no-enable-prefix-caching"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("paged:look-ahead=2", "no look-ahead"),
        ("paged:preempt=swap", "no preempt=swap"),
        ("paged:prefix=lfu", "no prefix=lfu"),
        ("paged:samples=2", "no samples"),
        ("paged:budget=8,max-running=9", "lower max-running to 8"),
    ],
)
def test_what_the_engine_has_not_is_refused(spec: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        typed(spec)


ONE = [Request(10, 5, 0)]
SUMS = dict.fromkeys(
    (
        *("steps", "running", "waiting", "used_blocks", "peak_running"),
        *("preemptions", "hit_tokens", "queried_tokens"),
    ),
    1,
)


def side(rate: float) -> Side:
    ends, series = [(0, 0, 10**12, int(10**12 / rate))], [(1, 1, 0, 10, 0, 0, 1)]
    served = Served(requests=ends, series=series, sums=SUMS)
    return Side.of_engine(served, ONE, 100)


@pytest.mark.parametrize(
    ("ours", "tau"),
    [
        ((1.0, 2.0, 3.0), 1.0),
        ((3.0, 2.0, 1.0), -1.0),
        ((2.0, 1.0, 3.0), 1 / 3),
        ((2.009, 2.0, 3.0), 1.0),  # as good as equal: no order to get wrong
    ],
)
def test_ranking_is_compared_pair_by_pair(ours: tuple[float, ...], tau: float) -> None:
    rows = [
        BesideRow.model_construct(stream="s", engine=side(theirs), ours=side(mine))
        for theirs, mine in zip((1.0, 2.0, 3.0), ours, strict=True)
    ]
    record = BesideRecord.model_construct(rows=rows)
    assert record.tau("s") == pytest.approx(tau)
    assert BesideRecord.model_construct(rows=rows[:2]).tau("s") is None


def test_our_side_adds_up_to_the_run() -> None:
    serving = serve([Request(20, 10, 0), Request(20, 10, 0)], PagedPolicy(), slots=64)
    found = Side.of_ours(serving)
    assert found.running == serving.total.mean_batch
    last = found.parts[-1]
    assert last is not None
    assert last.until_s == serving.total.time_ns / 1e9
    assert found.preemptions == last.preemptions == serving.total.preemptions
    assert found.service.completed == 2


def test_tenths_stand_beside_each_other_though_nothing_ran_in_some() -> None:
    # Ours idles from the first second to the ninth, the engine in the second one.
    requests = [Request(1, 30, 0), Request(1, 30, 9 * 10**9)]
    ours = Side.of_ours(serve(requests, PagedPolicy(), slots=64))
    series = [(second * 10**9, 1, 0, 10, 0, second, 0) for second in range(1, 11) if second != 2]
    served = Served(requests=[(0, 0, 1, 1)], series=series, sums=SUMS)
    engine = Side.of_engine(served, ONE, 100)
    there = [[part is not None for part in each.parts] for each in (engine, ours)]
    assert there == [[True, False, *[True] * 8], [True, *[False] * 8, True]]
    row = BesideRow.model_construct(
        stream="s", policy=PagedPolicy(), refused=0, engine=engine, ours=ours
    )
    record = BesideRecord.model_construct(
        streams=[SimpleNamespace(label="s", requests=2)],
        engine="e",
        slots=64,
        complete=True,
        clock="c",
        rows=[row],
    )
    shown = StringIO()
    show_beside(record, Console(file=shown, width=100))
    rows = [line.split() for line in shown.getvalue().splitlines() if " / " in line][:9]
    assert rows[0][2:5] == ["1.0", "/", "1.0"]
    assert all(row[2:5] == ["1.0", "/", "-"] for row in rows[1:8])
    assert rows[8][-3:] == ["10", "/", "0"]


def run(*arguments: str):
    command = ["waste", "--server", "toy", "--engine-python", sys.executable, "-q", *arguments]
    return CliRunner().invoke(cli.app, command, env={"COLUMNS": "90"})


def test_both_are_shown_side_by_side(monkeypatch, tmp_path) -> None:
    (tmp_path / "toy.py").write_text(ENGINE)
    monkeypatch.setitem(remote.ENGINES, "toy", str(tmp_path / "toy.py"))
    stream = ("--stream", "alpaca-fit:rate=1", "--requests", "12", "--slots", "2500")
    shown = run(*stream, "--json", str(tmp_path / "beside.json"))
    assert shown.exit_code == 0, shown.output
    assert "toy 1" in shown.output
    assert "TTFT p99" in shown.output
    record = BesideRecord.model_validate_json((tmp_path / "beside.json").read_text())
    assert record.pagedbench == version_of("pagedbench")
    (row,) = record.rows
    assert row.engine.service.ttft is not None
    assert row.engine.service.ttft.p50_ns == pytest.approx(1e9, rel=0.002)
    assert row.engine.requests_per_s == pytest.approx(12 / 14)
    assert row.ours.service.completed == 12
    assert row.engine.parts[-1] is not None
    assert row.engine.parts[-1].preemptions == 29
    hybrid = run(*stream[:4], "--model", "gpt-oss-20b", "--pool", "1GB", "--policy", "paged")
    assert "paged:block=16 + groups" in hybrid.output
    ranked = run(*stream, *(f"--policy=paged:block={size}" for size in (8, 16, 32)))
    assert "Kendall's tau" in ranked.output
    assert run(*stream, "--policy", "max/buddy").exit_code == 2
    assert run("--stream", "alpaca-fit:rate=1", "--slots", "8").exit_code == 2


def kept(layers: int, window: int | None = None, state_bytes: int = 0) -> LayerGroup:
    elements = 0 if state_bytes else 64
    return LayerGroup(
        layers=layers, kv_heads=1, elements=elements, window=window, state_bytes=state_bytes
    )


@pytest.mark.parametrize(
    "groups",
    [
        (kept(2), kept(6, 33)),
        (kept(1), kept(4, 100), kept(1, state_bytes=500)),
        (kept(5, 16),),
        (kept(2), kept(5, state_bytes=3000)),
    ],
)
def test_groups_take_the_blocks_that_vllm_gives_them_step_by_step(
    groups: tuple[LayerGroup, ...], vllm: EngineServer
) -> None:
    model = Model(name="m", groups=groups)
    policy = PagedPolicy(token_budget=64, watermark=0.02, max_running=16)
    drawn = Random(len(groups))
    requests = [
        Request(drawn.randint(1, 300), drawn.randint(1, 150), at * 2 * 10**7) for at in range(60)
    ]
    layout = tables_of(model, block_size=16).layout()
    assert layout is not None
    slots = layout.block_bytes * (2 * layout.most(450, 64))
    time = StepTime(step_ns=10**7)
    theirs = serve_on_engine(vllm, requests, policy, slots=slots, time=time, model=model)
    used: list[int] = []
    ours = serve(
        requests,
        policy,
        slots=slots,
        time=time,
        kind=partial(GroupedScheduler, layout=layout),
        observe=lambda server: used.append(server.allocator.num_used),
    )
    assert len(theirs.series) in (len(used), len(used) // 2)
    stride = len(used) // len(theirs.series)
    assert [row[3] for row in theirs.series] == used[stride - 1 :: stride]
    assert theirs.sums["used_blocks"] == sum(used)
    assert theirs.sums["preemptions"] == ours.total.preemptions


@pytest.fixture(scope="module")
def vllm() -> Iterator[EngineServer]:
    """The engine, where it is and there is the time to import it."""
    if profiles.scale() <= 1:
        pytest.skip("importing vLLM takes ten seconds: make test-long does it")
    try:
        engine = EngineServer("vllm")
    except SubjectError as missing:
        pytest.skip(str(missing))
    with engine:
        yield engine
