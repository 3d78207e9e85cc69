"""Every trace format is read as written, and a broken file is refused where it breaks."""

import gzip
import json
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.source import read_all
from bench.workloads.stream import CHUNK_REQUESTS
from bench.workloads.trace_lines import TraceError
from bench.workloads.traces import TraceSource, first_turns, read_trace
from helpers.profiles import examples

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
    "2023-11-16 18:15:51.2224670,879,55"
)
SHAREGPT = (
    "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"
    "74,918,992,0.08\n"
    "1402,711,2113,1.97\n"
    "30,5,35,6.0\n"
    "35,5,40,7.0\n"
)
MOONCAKE = (
    '{"timestamp": 10, "input_length": 513, "output_length": 5, "hash_ids": [0, 1]}\n'
    '{"timestamp": 2510, "input_length": 512, "output_length": 6, "hash_ids": [0]}\n'
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n10.5,374,44\n14.814579,396,109\n"
BURSTGPT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log\n"
    "19440161.0,,2,ChatGPT,36,0,36,API log\n"
)
BURSTGPT_V1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
)
QWEN = (
    '{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 33, '
    '"output_length": 132, "type": "text", "turn": 1, "hash_ids": [1089, 1090, 6326]}\n'
    '{"chat_id": 160, "parent_chat_id": 159, "timestamp": 62, "input_length": 40, '
    '"output_length": 8, "type": "file", "turn": 2, "hash_ids": [1089, 1090]}\n'
)
lengths = st.integers(0, 2**30 - 1)


@pytest.fixture
def write(tmp_path):
    def write(content, *, name="trace", packed=False):
        path = tmp_path / name
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if packed else data)
        return path

    return write


OFFSETS = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.5+00:00,1,2\n2024-05-10 01:00:01+01:00,3,4\n"
)


@pytest.mark.parametrize(
    ("content", "prompts", "outputs", "times", "blocks"),
    [
        (AZURE, [374, 396, 879], [44, 109, 55], [0.0, 4.314579, 4.541877], None),
        (OFFSETS, [1, 3], [2, 4], [0.0, 0.5], None),
        (SHAREGPT, [74, 1402, 30, 35], [918, 711, 5, 5], None, None),
        (VIDUR, [374, 396], [44, 109], [0.0, 4.314579], None),
        (MOONCAKE, [513, 512], [5, 6], [0.0, 2.5], (512, [[0, 1], [0]])),
        # Both releases, failures included.
        (BURSTGPT, [906, 36], [446, 0], [0.0, 51.0], None),
        (BURSTGPT_V1, [472, 1087], [18, 230], [0.0, 40.0], None),
        # The last block of a prompt may have no id.
        (QWEN, [33, 40], [132, 8], [0.0, 0.886], (16, [[1089, 1090, 6326], [1089, 1090]])),
    ],
)
def test_rows_are_read_as_they_are_written(write, content, prompts, outputs, times, blocks):
    stream = read_trace(write(content))
    assert stream.prompt_tokens.tolist() == prompts
    assert stream.output_tokens.tolist() == outputs
    assert stream.timed == (times is not None)
    if times is not None:
        assert stream.arrival_s.tolist() == pytest.approx(times)
    assert (stream.prefix is None) == (blocks is None)
    if blocks is not None:
        ids = [stream.prefix.of(request).tolist() for request in range(len(stream))]
        assert (stream.prefix.tokens_per_block, ids) == blocks


LOWER = "timestamp,contexttokens,generatedtokens\n2023-11-16 18:15:46,374.0,44\n"
OPENAI = '{"created": 5, "prompt_tokens": 7, "completion_tokens": 2, "user": "a"}\n'
VLLM = '{"input_toks": 7, "output_toks": 2.0, "arrival_time": 1787267980.5}\n'
BARE = '{"timestamp": 10, "input_length": 513, "output_length": 5}\n'
STRINGS = MOONCAKE.replace("[0, 1]", '["a", "b"]').replace("[0]", '["a"]')
SMALL_BLOCKS = '{"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [7, 8, 9]}\n'


@pytest.mark.parametrize(
    ("content", "prompt", "output", "timed"),
    [
        (LOWER, 374, 44, True),
        (OPENAI, 7, 2, True),
        (VLLM, 7, 2, True),
        (BARE, 513, 5, True),
        ("Input Len;x,output_len\n", None, None, False),
        ("output_len,input_len\n3,4\n", 4, 3, False),
    ],
)
def test_other_names_of_the_same_columns_are_known(write, content, prompt, output, timed):
    """W7: what is there is read, whatever it is called."""
    if prompt is None:
        with pytest.raises(TraceError, match="the first line"):
            read_trace(write(content))
        return
    stream = read_trace(write(content))
    assert stream.prompt_tokens.tolist()[0] == prompt
    assert stream.output_tokens.tolist()[0] == output
    assert stream.timed == timed
    assert stream.prefix is None


def test_columns_are_mapped_by_hand(write):
    path = write("in,out,at_ms,who\n5,6,1000,a\n7,8,3500,b\n")
    columns = (("prompt", "in"), ("output", "out"), ("time_ms", "at_ms"))
    source = TraceSource(path, columns=columns)
    stream = read_all(source)
    assert (stream.prompt_tokens.tolist(), stream.output_tokens.tolist()) == ([5, 7], [6, 8])
    assert stream.arrival_s.tolist() == [0.0, 2.5]
    assert source.ignored() == ["who"]
    with pytest.raises(TraceError, match=r"in, out, missing among them"):
        read_all(TraceSource(path, columns=(*columns[:2], ("time", "missing"))))


def test_a_column_that_stands_twice_is_refused_and_one_that_is_not_read_is_named(write):
    """W6: nothing is dropped in silence."""
    with pytest.raises(TraceError, match="the column input_len twice"):
        read_trace(write("input_len,output_len,x,input_len\n1,2,3,4\n"), format="columns")
    extra = AZURE.replace("GeneratedTokens", "GeneratedTokens,NumImages").replace("\r\n", ",1\r\n")
    assert "NumImages" in TraceSource(write(extra)).ignored()[0]


def test_prefix_blocks_have_other_sizes_and_names(write):
    stream = read_trace(write(STRINGS))
    assert stream.prefix.tokens_per_block == 512
    first, second = stream.prefix.of(0).tolist(), stream.prefix.of(1).tolist()
    assert (len(set(first)), second) == (2, first[:1])
    assert read_trace(write(SMALL_BLOCKS)).prefix.tokens_per_block == 16


def test_a_prompt_with_a_block_twice_is_refused(write):
    """W11: the replay says so, and now the reader, too."""
    content = '{"timestamp": 0, "input_length": 1300, "output_length": 5, "hash_ids": [1, 1, 2]}\n'
    with pytest.raises(TraceError, match="a block twice; expected an id for each block"):
        read_trace(write(content))


TURNS = "num_prefill_tokens,num_decode_tokens\n10,5\n15,9\n23,1\n24,1\n"


@pytest.mark.parametrize(
    ("content", "options", "prompts"),
    [(SHAREGPT, {}, [74, 30]), (SHAREGPT, {"limit": 1}, [74]), (TURNS, {}, [10, 23])],
)
def test_first_turns_start_where_the_prompt_does_not_hold_the_turn_before(
    write, content, options, prompts
):
    assert first_turns(write(content), **options).prompt_tokens.tolist() == prompts
    with pytest.raises(TraceError, match="a header without num_prefill_tokens"):
        first_turns(write(AZURE))


@pytest.mark.parametrize(
    ("content", "format_name", "timed"),
    [
        (AZURE, "azure", True),
        (SHAREGPT, "sharegpt", False),
        (VIDUR, "sharegpt", True),
        (MOONCAKE, "mooncake", True),
        (BURSTGPT, "burstgpt", True),
        (QWEN, "qwen", True),
    ],
)
def test_a_source_knows_of_times_before_it_reads_requests(write, content, format_name, timed):
    path = write(content + "\nnonsense")
    for source in (TraceSource(path), TraceSource(path, format=format_name, limit=2)):
        assert (source.timed, source.num_requests) == (timed, None)
        assert next(iter(TraceSource(path, limit=2).chunks())).timed == timed


def test_rows_beyond_a_chunk_go_on_where_it_ends(write):
    rows = 2 * CHUNK_REQUESTS + 3
    text = "".join(f"{n / 8},{n % 700},{n % 11}\n" for n in range(rows))
    source = TraceSource(write(f"arrived_at,num_prefill_tokens,num_decode_tokens\n{text}"))
    assert [len(chunk) for chunk in source.chunks()] == [CHUNK_REQUESTS, CHUNK_REQUESTS, 3]
    whole = read_all(source)
    assert whole.prompt_tokens.tolist() == [n % 700 for n in range(rows)]
    assert whole.arrival_s.tolist() == [n / 8 for n in range(rows)]
    assert len(read_all(TraceSource(source.path, limit=CHUNK_REQUESTS + 1))) == CHUNK_REQUESTS + 1


def test_a_broken_row_is_met_when_reading_reaches_it(write):
    text = "1,2\n" * (CHUNK_REQUESTS + 5) + "1,x\n"
    chunks = TraceSource(write(f"num_prefill_tokens,num_decode_tokens\n{text}")).chunks()
    assert len(next(chunks)) == CHUNK_REQUESTS
    with pytest.raises(TraceError, match="num_decode_tokens = 'x'") as caught:
        next(chunks)
    assert caught.value.line == CHUNK_REQUESTS + 7


def test_first_turns_are_told_across_chunks(write):
    # Each conversation: a turn of 10 + 5 tokens, then one whose prompt holds it.
    text = "10,5\n15,5\n" * CHUNK_REQUESTS
    source = TraceSource(write(f"num_prefill_tokens,num_decode_tokens\n{text}"), turns="first")
    whole = read_all(source)
    assert len(whole) == CHUNK_REQUESTS
    assert set(whole.prompt_tokens.tolist()) == {10}
    assert source.source.endswith("; first turns")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"turns": "last"}, "turns are 'last'; use all or first"),
        ({"turns": "first", "format": "azure"}, "only sharegpt has turns"),
        ({"limit": 0}, "limit is 0"),
        ({"format": "csv"}, "'csv' is unknown; use one of azure"),
    ],
)
def test_bad_trace_sources_are_refused_before_the_file_is_opened(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        TraceSource("nowhere.csv", **arguments)


@pytest.mark.parametrize("content", [AZURE, MOONCAKE])
def test_gzip_is_told_by_its_bytes_whatever_the_name_which_is_the_streams(write, content):
    plain = read_trace(write(content, name="plain.csv.gz"))
    path = write(content, name="packed.txt", packed=True)
    packed = read_trace(path)
    assert plain.prompt_tokens.tolist() == packed.prompt_tokens.tolist()
    assert plain.output_tokens.tolist() == packed.output_tokens.tolist()
    assert (plain.name, packed.source) == ("plain", str(path))


def test_columns_are_found_by_name_in_any_order_after_a_byte_order_mark(write):
    content = "\ufeffGeneratedTokens, extra ,TIMESTAMP,ContextTokens\n4, x ,2023-11-16 18:15:46,3\n"
    stream = read_trace(write(content))
    assert (stream.prompt_tokens.tolist(), stream.output_tokens.tolist()) == ([3], [4])


@examples(60)
@given(
    rows=st.lists(st.tuples(lengths, lengths, st.integers(0, 10**9)), min_size=1, max_size=8),
    packed=st.booleans(),
)
def test_azure_rows_survive_writing_and_reading(tmp_path_factory, rows, packed):
    start = datetime(2023, 11, 16, tzinfo=UTC)
    gaps_us = [gap for *_, gap in rows]
    elapsed_us = [sum(gaps_us[1 : index + 1]) for index in range(len(rows))]
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"{start + timedelta(microseconds=us)},{prompt},{output}\n"
        for us, (prompt, output, _) in zip(elapsed_us, rows, strict=True)
    )
    path = tmp_path_factory.mktemp("azure") / "trace"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    stream = read_trace(path)
    assert stream.prompt_tokens.tolist() == [prompt for prompt, *_ in rows]
    assert stream.output_tokens.tolist() == [output for _, output, _ in rows]
    assert stream.arrival_s.tolist() == [us / 10**6 for us in elapsed_us]


@examples(60)
@given(
    rows=st.lists(
        st.tuples(st.lists(st.integers(0, 2**63 - 1), max_size=4, unique=True), lengths),
        min_size=1,
        max_size=8,
    )
)
def test_mooncake_rows_survive_writing_and_reading(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("mooncake") / "trace"
    fields = ("timestamp", "input_length", "output_length", "hash_ids")
    lines = (
        json.dumps(dict(zip(fields, (1000 * index, 512 * len(ids), output, ids), strict=True)))
        for index, (ids, output) in enumerate(rows)
    )
    path.write_text("\n".join(lines))
    stream = read_trace(path)
    assert stream.output_tokens.tolist() == [output for _, output in rows]
    assert stream.arrival_s.tolist() == list(range(len(rows)))
    assert [stream.prefix.of(r).tolist() for r in range(len(rows))] == [ids for ids, _ in rows]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("content", [AZURE + "\n", SHAREGPT, MOONCAKE])
def test_nothing_behind_the_limit_is_looked_at(write, content, packed):
    path = write(f"{content}nonsense", packed=packed)
    assert len(read_trace(path, limit=2)) == 2
    with pytest.raises(TraceError, match="nonsense"):
        read_trace(path)


AZURE_HEADER = AZURE.partition("\r\n")[0]
SHAREGPT_HEADER, MOONCAKE_ROW = (text.partition("\n")[0] for text in (SHAREGPT, MOONCAKE))


TOKENS = "a whole number of tokens from 0 to 1073741823"
HEADED = f"{AZURE_HEADER}\n2023-11-16 18:15:46,1,2\n"


def qwen(old: str, new: str) -> str:
    return QWEN.replace(old, new)


def mooncake(field: str, value: str) -> str:
    """A third row with one field that is wrong."""
    good = {"timestamp": "3000", "input_length": "513", "output_length": "5", "hash_ids": "[0, 1]"}
    row = ", ".join(f'"{key}": {text}' for key, text in (good | {field: value}).items())
    return f"{MOONCAKE}{{{row}}}"


BROKEN = [
    ("", 1, "an empty file", "(azure)"),
    ("\n \n", 1, "an empty file", "(mooncake)"),
    (AZURE_HEADER, 1, "nothing after it", "one request"),
    ("time,in,out\n1,2,3\n", 1, "time,in,out", "(azure)"),
    ("TIMESTAMP,ContextTokens\n", 1, "without GeneratedTokens", "ContextTokens, GeneratedTokens"),
    (f"{AZURE_HEADER}\n2023-11-16 18:15:46,1\n", 2, "2 columns", "3"),
    (f"{AZURE_HEADER}\n2023-11-16 18:15:46,1,2,3\n", 2, "4 columns", "3"),
    (f"{HEADED}2023-11-16 18:15:45.5,3,4\n", 3, "0.5 s before the line above", "sorted by time"),
    (HEADED.encode() + b"\xff\xfe,1,2\n", 3, "not UTF-8", "a text file"),
    *(
        (f"{AZURE_HEADER}\n{stamp},1,2\n", 2, repr(stamp), "ISO 8601")
        for stamp in ("", "nan", "NaT", "yesterday", "20231116", "2023-13-01 00:00:00", "18:15")
    ),
    *(
        (f"{SHAREGPT_HEADER}\n1,2,3,0\n1,{value},3,0\n", 3, f"decode_tokens = {value!r}", TOKENS)
        for value in ("", "nan", "-2", "2.5", "1e3", "2_0", "٢", "1073741824", "9" * 40)
    ),
    (SHAREGPT.replace("1402", "\n1402").replace("35,5,", "\n35,x,"), 7, "= 'x'", TOKENS),
    (f"{SHAREGPT_HEADER}\n1,2,4,0.5\n", 2, "num_total_tokens = 4", "3, the prefill's 1 and the"),
    (f"{MOONCAKE_ROW}\n{{oops\n", 2, "{oops", "JSON object"),
    (f"{MOONCAKE_ROW}\n[1]\n", 2, "[1]", "JSON object"),
    ('{"timestamp": 1, "input_length": 2}', 1, "input_length", "object with timestamp, input_"),
    *(
        (mooncake("timestamp", value), 3, f"timestamp = {found}", "a whole number of milliseconds")
        for value, found in (("-1", "-1"), ("1.5", "1.5"), ("NaN", "nan"), ("1" + 30 * "0", "100"))
    ),
    (mooncake("input_length", "-3"), 3, "input_length = -3", TOKENS),
    (mooncake("input_length", "513.0"), 3, "input_length = 513.0", TOKENS),
    (mooncake("output_length", "true"), 3, "output_length = True", TOKENS),
    (mooncake("output_length", '"5"'), 3, "output_length = '5'", TOKENS),
    (mooncake("output_length", "1073741824"), 3, "= 1073741824", TOKENS),
    (mooncake("output_length", 5000 * "9"), 3, "integer string conversion", "one JSON object"),
    (mooncake("hash_ids", "7"), 3, "hash_ids = 7", "a list of integers"),
    (mooncake("hash_ids", "[0, 1.5]"), 3, "hash_ids = [0, 1.5]", "a list of integers"),
    (mooncake("hash_ids", "[-4, 1]"), 3, "hash_ids from -4 to 1", "ids from 0 that fit int64"),
    (mooncake("hash_ids", f"[1, {2**63}]"), 3, f"from 1 to {2**63}", "ids from 0 that fit int64"),
    (mooncake("hash_ids", "[0]"), 3, "1 hash_ids", "2, one for each 512 tokens of the 513"),
    (f"{BURSTGPT}19440160.5,,2,ChatGPT,36,1,37,API log\n", 4, "0.5 s before", "sorted by time"),
    *(
        (f"{BURSTGPT_V1}{stamp},GPT-4,1,1,2,API log\n", 4, f"Timestamp = {stamp!r}", "seconds")
        for stamp in ("", "nan", "inf", "-5", "1_0", "1e999", "٤٦", "0x20", str(2**33 + 1))
    ),
    (f"{VIDUR}15,1,two\n", 4, "num_decode_tokens = 'two'", TOKENS),
    (f"{VIDUR}x,1,2\n", 4, "arrived_at = 'x'", "seconds from 0"),
    (qwen("62", '"62"'), 2, "timestamp = '62'", "seconds from 0"),
    (qwen("62", "true"), 2, "timestamp = True", "seconds from 0"),
    (qwen("62", "NaN"), 2, "timestamp = nan", "seconds from 0"),
    (qwen("62", "1" + 400 * "0"), 2, "timestamp = 1000", "seconds from 0"),
    (qwen("62", "61"), 2, "the time 61", "sorted by time"),
    (qwen('"input_length": 40', '"input_length": 16'), 2, "2 hash_ids", "1 at most"),
]


@pytest.mark.parametrize(("content", "line", "found", "expected"), BROKEN)
def test_a_broken_trace_is_refused_with_line_reading_and_expectation(
    write, content, line, found, expected
):
    path = write(content)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    error = caught.value
    assert (error.path, error.line) == (str(path), line)
    assert found in error.found
    assert expected in error.expected
    assert str(error) == f"{path}, line {line}: read {error.found}; expected {error.expected}"


def test_an_unknown_header_is_answered_with_all_that_are_known(write):
    with pytest.raises(TraceError) as caught:
        read_trace(write("a,b\n"))
    for format_name in ("azure", "sharegpt", "mooncake", "burstgpt", "qwen"):
        assert f"({format_name})" in caught.value.expected


@pytest.mark.parametrize("keep", [1, 9, 12, 30, 60, -9, -1])
def test_truncated_or_damaged_gzip_is_refused(write, keep):
    whole = gzip.compress(SHAREGPT.encode())
    assert len(whole) > 80
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for broken in (whole[:keep], bytes(damaged)):
        with pytest.raises(TraceError):
            read_trace(write(broken))


def test_truncated_gzip_is_named_as_such_after_the_last_whole_line(write):
    rows = "".join(f"{n},{n % 7},{n + n % 7},0\n" for n in range(50_000))
    whole = gzip.compress(f"{SHAREGPT_HEADER}\n{rows}".encode())
    path = write(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match="broken gzip data") as caught:
        read_trace(path)
    assert caught.value.expected == "a complete gzip file"
    assert 10_000 < caught.value.line < 40_000
    assert len(read_trace(path, limit=1000)) == 1000


def test_a_stated_format_is_held_to(write):
    path = write(AZURE)
    assert len(read_trace(path, format="azure")) == 3
    with pytest.raises(TraceError, match="a header without num_prefill_tokens"):
        read_trace(path, format="sharegpt")
    with pytest.raises(TraceError, match="one JSON object on the line"):
        read_trace(path, format="mooncake")
    with pytest.raises(FileNotFoundError):
        read_trace(path.with_name("none.csv"))


def test_trace_errors_travel_between_processes():
    error = TraceError("file", 3, "this", "that")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "file, line 3: read this; expected that"


def test_a_tenant_column_is_whose_the_requests_are(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    rows = ["prompt_tokens,output_tokens,tenant", *(f"9,1,{name}" for name in "baab")]
    file.write_text("\n".join(rows))
    stream = read_trace(file)
    assert stream.tenant_names == ("b", "a")
    assert stream.tenant is not None
    assert stream.tenant.tolist() == [0, 1, 1, 0]
    file.write_text("\n".join(rows).replace("tenant", "whose"))
    named = (("prompt", "prompt_tokens"), ("output", "output_tokens"), ("tenant", "whose"))
    assert TraceSource(file, columns=named).ignored() == []
    (part,) = TraceSource(file, columns=named).chunks()
    assert part.tenant_names == ("b", "a")
