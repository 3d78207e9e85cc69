"""Traces as engines, gateways and benchmarks write them: read without a converter in between."""

import json
from pathlib import Path

import pytest

from bench.workloads.source import generating, read_all
from bench.workloads.stream import CHUNK_REQUESTS, RequestStream
from bench.workloads.trace_lines import TraceError
from bench.workloads.traces import TraceSource, read_trace


def lines(*records: object) -> str:
    return "".join(f"{json.dumps(each)}\n" for each in records)


RESULT = {"input_lens": [7, 9], "output_lens": [2, 3], "ttfts": [0.1, 0.2], "errors": ["", ""]}
ANSWERS = [
    {"created": 5.5, "model": "m", "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
    {"created": 6.5, "model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 3}},
]
NESTED = [
    {"time": f"2025-01-01T00:00:0{n}Z", "prompt": "Hi", "response": a}
    for n, a in enumerate(
        {"usage": {"input_tokens": p, "output_tokens": o}} for p, o in ((7, 2), (9, 3))
    )
]
MOMENTS = [
    {"timestamp": 0, "requests": [{"prompt": "Hi", "prompt_length": 7, "output_length": 2}]},
    {"timestamp": 1000, "requests": [{"prompt": "Ho", "prompt_length": 9, "output_length": 3}]},
]
SPLITWISE = (
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    "0,2,0,3.5,1,7,2\n1,2,0,4.5,1,9,3\n"
)


@pytest.mark.parametrize(
    ("content", "times"),
    [
        (json.dumps(RESULT | {"start_times": [100.5, 101.5]}), [0, 1]),  # vLLM's benchmark
        (lines(RESULT), None),  # SGLang's, which saves no starts
        (lines(*ANSWERS), [0, 1]),
        (json.dumps(ANSWERS), [0, 1]),
        (json.dumps(ANSWERS, indent=2), [0, 1]),
        (lines(*NESTED), [0, 1]),
        (lines(*MOMENTS), [0, 1]),  # AIBrix
        (SPLITWISE, [0, 1]),
        ("time_ms;prompt;output\n500;7;2\n1500;9;3\n", [0, 1]),
        ('time\tmodel\tprompt\toutput\n0\t"a, b"\t7\t2\n1\t\t9\t3\n', [0, 1]),
        ('time,model,prompt,output\n0,"a, b",7,2\n1,"c ""d""",9,3\n', [0, 1]),
        (lines({"timestamp": 1700000000500, "input_len": 7, "output_len": 2},
               {"timestamp": 1700000001500, "input_len": 9, "output_len": 3}), [0, 1]),
        # Mooncake's own names without its blocks: its clock, milliseconds.
        (lines({"timestamp": 500, "input_length": 7, "output_length": 2},
               {"timestamp": 1500, "input_length": 9, "output_length": 3}), [0, 1]),
    ],
)  # fmt: skip
def test_a_form_that_is_known_is_read(
    content: str, times: list[float] | None, tmp_path: Path
) -> None:
    stream = _read(content, tmp_path)
    assert stream.prompt_tokens.tolist() == [7, 9]
    assert stream.output_tokens.tolist() == [2, 3]
    assert stream.timed == (times is not None)
    if stream.arrival_s is not None:
        assert stream.arrival_s.tolist() == pytest.approx(times)


def _read(content: str, folder: Path, **options: str) -> RequestStream:
    path = folder / "trace"
    path.write_text(content)
    return read_all(TraceSource(path, columns=tuple(options.items())))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(RESULT | {"output_lens": [1]}), "another number of output_lens"),
        (json.dumps([{"id": 1, "conversations": [{"from": "human", "value": "Hi"}]}]), "as text"),
        (lines({"ts": 1, "events": [["AllBlocksCleared"]]}), "that store nothing"),
        ('{"a": ' * 3000, "too early"),
        ('time,prompt,output\n0,"7,2\n', "quotes in pairs"),
        (lines({"prompt": "Hi", "output": "Ho"}), "--columns prompt=..,output=.. tells"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_would_do(
    content: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(TraceError, match=said):
        _read(content, tmp_path)


def test_calls_without_lengths_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(lines(ANSWERS[0], {"created": 6.0, "usage": None}, ANSWERS[1]))
    kept = generating(TraceSource(path))
    assert (len(read_all(kept)), kept.dropped()) == (2, 1)
    path.write_text(lines(ANSWERS[0], {"created": 6.0, "usage": {"prompt_tokens": 7}}))
    with pytest.raises(TraceError, match="completion_tokens = None"):
        read_trace(path)


def test_a_log_is_sorted_as_far_as_requests_that_run_at_once_have_it_out_of_order(
    tmp_path: Path,
) -> None:
    times = list(range(CHUNK_REQUESTS + 9))
    times[3], times[500], times[-2] = times[500], times[3], times[CHUNK_REQUESTS - 5]
    rows = "".join(f"{time},{at},1\n" for at, time in enumerate(times))
    stream = _read(f"time,prompt,output\n{rows}", tmp_path)
    assert stream.arrival_s is not None
    assert stream.arrival_s.tolist() == sorted(times)
    assert [times[at] for at in stream.prompt_tokens.tolist()] == sorted(times)
    late = "".join(f"{time},1,1\n" for time in (*range(5, 2 * CHUNK_REQUESTS + 5), 2))
    with pytest.raises(TraceError, match="s before that of a row far above it") as caught:
        _read(f"time,prompt,output\n{late}", tmp_path)
    assert caught.value.line == 2 * CHUNK_REQUESTS + 2


def test_sessions_say_which_prompts_begin_alike(tmp_path: Path) -> None:
    rows = ("a,40,8", "b,40,8", "a,60,8", "a,50,8", ",40,8", ",48,8")
    content = "chat,prompt,output\n" + "\n".join(rows)
    stream = _read(content, tmp_path, session="chat")
    assert stream.prefix is not None
    a, b, longer, shorter, alone, another = (
        set(stream.prefix.of(row).tolist()) for row in range(6)
    )
    assert (len(a), len(longer), a & longer) == (3, 4, a)
    for others in (b, shorter, alone, another):
        assert not others & longer
    assert not alone & another
    assert _read(content, tmp_path).prefix is None


@pytest.mark.parametrize(
    ("size", "prompts"),
    [
        (16, (9, 100, 131)),
        (48, (9, 100, 139)),
        (784, (3000, 2350, 5)),
        (512, (9, 100)),
        (4096, (9, 8000)),
    ],
)
def test_a_first_prompt_that_any_block_would_hold_does_not_choose_the_size(
    size: int, prompts: tuple[int, ...], tmp_path: Path
) -> None:
    stream = _read(
        lines(
            *(
                {"timestamp": at, "input_length": p, "output_length": 1,
                 "hash_ids": list(range(-(-p // size)))}
                for at, p in enumerate(prompts)
            )
        ),
        tmp_path,
    )  # fmt: skip
    assert stream.prefix is not None
    assert stream.prefix.tokens_per_block == size


def stored(moment: float, hashes: list[int], parent: int | None, **fields: object) -> object:
    event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent}
    return {"ts": moment, "events": [event | {"block_size": 16} | fields]}


def test_block_events_are_a_trace_of_the_prompts_that_stored_them(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        lines(
            [5.0, [["BlockRemoved", [99], "GPU"]]],
            stored(10.0, [1, 2], None),
            stored(10.1, [3, 4], 2),  # the same prompt's next chunk
            stored(10.9, [5], 4),  # its output
            stored(11.0, [6, 7], 2),  # another prompt with its first two blocks
            stored(11.5, [50], 7, medium="CPU"),
            stored(40.0, [8, 9], 5),  # the first one's next turn
            stored(40.5, [10], 9),
            {"ts": 41, "events": [["AllBlocksCleared"]]},
            [42.0, [["BlockStored", [1], None, [7] * 16, 16, None, "GPU"]]],
        )
    )
    stream = read_trace(path)
    assert stream.prefix is not None
    assert stream.arrival_s is not None
    assert stream.arrival_s.tolist() == [0, 1, 30, 32]
    assert stream.prompt_tokens.tolist() == [64, 64, 112, 16]
    assert stream.output_tokens.tolist() == [16, 1, 16, 1]
    first, second, turn, again = (set(stream.prefix.of(row).tolist()) for row in range(4))
    assert (len(first & second), len(first & turn), len(first & again)) == (2, 4, 1)
    assert stream.prefix.tokens_per_block == 16
