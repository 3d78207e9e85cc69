"""Sources are read anew each time, in chunks, in bounded memory; combinators keep to that."""

import dataclasses
import pickle
import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.arrivals import arriving
from bench.workloads.builtin import QuantileSource, builtin_stream
from bench.workloads.conversations import ConversationFit
from bench.workloads.fits import fitted
from bench.workloads.mix import mix
from bench.workloads.prefix import PrefixBlocks
from bench.workloads.source import (
    concatenated,
    fitting,
    generating,
    head,
    read_all,
    repeat,
    saturated,
)
from bench.workloads.stream import CHUNK_REQUESTS, RequestStream
from bench.workloads.system_prompt import with_system_prompt
from bench.workloads.traces import TraceSource
from helpers.profiles import examples
from helpers.streams import stream


def three(output=(1, 2, 3), **others):
    return stream((3, 4, 5), output, **others)


@dataclasses.dataclass(frozen=True)
class Chunked:
    """A stream, handed out in chunks of any size."""

    of: RequestStream
    size: int

    def __getattr__(self, attribute):
        if attribute in ("name", "source", "num_requests", "timed"):
            return getattr(self.of, attribute)
        raise AttributeError(attribute)

    def chunks(self):
        for start in range(0, len(self.of), self.size):
            yield self.of.between(start, start + self.size)


def columns(read):
    """All that a stream says, for comparing."""
    return [
        None if column is None else column.tolist()
        for column in (
            read.prompt_tokens,
            read.output_tokens,
            read.arrival_s,
            read.tenant,
            None if read.prefix is None else read.prefix.ids,
            None if read.prefix is None else read.prefix.offsets,
        )
    ]


SOURCES = {
    "stream": three(arrival_s=[0.0, 1.0, 1.0]),
    "long stream": stream([7] * 40_000, [3] * 40_000),
    "quantiles": QuantileSource(name="azure-conv", num_requests=20_000),
    "fit": fitted("sharegpt-fit", num_requests=20_000),
    "timed fit": fitted("azure-code-fit", num_requests=20_000),
    "conversations": ConversationFit(num_requests=17_000),
    "head": head(fitted("azure-fit"), 17_000),
    "fitting": fitting(fitted("azure-fit"), 2048),
    "generating": generating(three(output=(0, 1, 2))),
    "saturated": saturated(fitted("azure-fit")),
    "repeat": repeat(fitted("azure-fit", num_requests=9000), 3),
    "arriving": arriving(fitted("alpaca-fit"), rate_per_s=30, cv=2),
    "merge": mix([fitted("azure-fit"), fitted("azure-code-fit", num_requests=500)]),
    "shares": mix([fitted("sharegpt-fit"), ConversationFit()], shares=[0.7, 0.3]),
    "system": with_system_prompt(fitted("alpaca-fit"), 48, prompts=3),
}


@pytest.mark.parametrize("name", SOURCES)
def test_chunks_are_bounded_times_go_on_and_reading_starts_anew(name):
    source = SOURCES[name]
    next(source.chunks())
    chunks = list(source.chunks())
    assert 1 <= min(map(len, chunks)) <= max(map(len, chunks)) <= CHUNK_REQUESTS
    whole = read_all(source)  # refuses times that fall, and chunks that disagree
    assert columns(whole) == columns(concatenated(chunks, name=whole.name, source=whole.source))
    assert whole.timed == source.timed
    assert source.num_requests in (None, len(whole))


@pytest.mark.parametrize("name", SOURCES)
def test_sources_travel_to_other_processes(name):
    copy = pickle.loads(pickle.dumps(SOURCES[name]))
    assert columns(next(head(copy, 300).chunks())) == columns(
        next(head(SOURCES[name], 300).chunks())
    )
    if "stream" not in name and name != "generating":
        assert len(pickle.dumps(SOURCES[name])) < 2000


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("fit", partial(fitted, "sharegpt-fit")),
        ("timed fit", partial(fitted, "azure-code-fit")),
        ("quantiles", partial(QuantileSource, name="azure-conv")),
        ("conversations", ConversationFit),
    ],
)
def test_a_longer_draw_begins_with_the_shorter_one(name, draw):
    for n in (1, CHUNK_REQUESTS, CHUNK_REQUESTS + 1):
        assert columns(read_all(draw(num_requests=n))) == columns(read_all(head(SOURCES[name], n)))


def peak_bytes(source):
    tracemalloc.start()
    try:
        requests = sum(len(chunk) for chunk in source.chunks())
        return requests, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def sharing(requests):
    return mix(
        [
            fitted("sharegpt-fit", num_requests=requests),
            with_system_prompt(fitted("alpaca-fit", num_requests=requests), 32),
        ],
        shares=[1, 1],
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda n: fitting(fitted("azure-fit", num_requests=n), 4096), id="fit"),
        pytest.param(lambda n: QuantileSource(name="azure-conv", num_requests=n), id="quantiles"),
        pytest.param(sharing, id="mix"),
    ],
)
def test_ten_times_the_requests_take_no_more_memory(make):
    few, few_bytes = peak_bytes(make(50_000))
    many, many_bytes = peak_bytes(make(500_000))
    assert many > 9 * few
    assert many_bytes < 1.1 * few_bytes


def test_a_trace_is_read_in_bounded_memory(tmp_path):
    def written(rows):
        path = tmp_path / f"{rows}.csv"
        path.write_text("num_prefill_tokens,num_decode_tokens\n" + "7,3\n" * rows)
        return TraceSource(path)

    few, few_bytes = peak_bytes(written(17_000))
    many, many_bytes = peak_bytes(written(40_000))
    assert (few, many) == (17_000, 40_000)
    assert many_bytes < 1.1 * few_bytes


def test_head_reads_no_further_than_it_must():
    def broken():
        yield three()
        raise AssertionError("read on")

    class Source:
        name, source, num_requests, timed = "b", "b", None, False
        chunks = staticmethod(broken)

    assert len(read_all(head(Source(), 3))) == 3
    with pytest.raises(AssertionError, match="read on"):
        read_all(head(Source(), 4))


@pytest.mark.parametrize(
    ("source", "kept", "said"),
    [
        (generating(three(output=(0, 2, 0))), [[4], [2]], "1 output token or more"),
        (fitting(three(), 6), [[3, 4], [1, 2]], "at most 6 tokens"),
    ],
)
def test_requests_that_do_not_fit_are_dropped_and_counted(source, kept, said):
    assert columns(read_all(source))[:2] == kept
    assert source.dropped() == 3 - len(kept[0])
    assert source.source == f"a test; {said}"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (generating(three(output=(0, 0, 0))), "no request of 's' is left with 1 output token"),
        (fitting(three(), 3), "no request of 's' is left with at most 3 tokens"),
    ],
)
def test_nothing_left_is_an_error(source, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_all(source)


def test_saturated_drops_times_and_leaves_what_has_none():
    assert read_all(saturated(three(arrival_s=[0, 1, 2]))).arrival_s is None
    untimed = three()
    assert saturated(untimed) is untimed


def test_repeated_rounds_keep_the_rate_and_the_prefixes():
    blocks = PrefixBlocks(ids=[5, 6, 7], offsets=[0, 1, 2, 3], tokens_per_block=16)
    once = three(arrival_s=[1.0, 2.0, 5.0], prefix=blocks)
    twice = read_all(repeat(Chunked(once, 2), 2))
    # The mean gap is 2 s.
    assert twice.arrival_s.tolist() == [1.0, 2.0, 5.0, 7.0, 8.0, 11.0]
    assert twice.prefix.ids.tolist() == [5, 6, 7, 5, 6, 7]
    assert repeat(once, 2).num_requests == 6
    assert read_all(repeat(three(arrival_s=[0, 0, 0]), 2)).arrival_s.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: head(three(), 0), "head of 0"),
        (lambda: fitting(three(), 0), "max_model_len is 0"),
        (lambda: repeat(three(), 0), "repeat 0 times"),
        (lambda: arriving(three(), rate_per_s=0), "rate_per_s is 0"),
        (lambda: arriving(three(), rate_per_s=float("nan")), "rate_per_s is nan"),
        (lambda: arriving(three(), rate_per_s=1, cv=-1), "cv is -1"),
        (lambda: arriving(three(), rate_per_s=1, cv=1e9), r"cv is 1e\+09|cv is 1000000000"),
        (lambda: arriving(three(), rate_per_s=1, seed=-1), "seed is -1"),
        (lambda: ConversationFit(num_requests=0), "num_requests is 0"),
        (lambda: ConversationFit(seed=-1), "seed is -1"),
        (lambda: ConversationFit(rate_per_s=float("inf")), "rate_per_s is inf"),
        (lambda: builtin_stream("alpaca"), "'alpaca' is unknown; use one of azure-conv"),
        (lambda: builtin_stream(num_requests=0), "num_requests is 0"),
        (lambda: builtin_stream(seed=-1), "seed is -1"),
        (lambda: builtin_stream(rate_per_s=0.0), "rate_per_s is 0.0"),
    ],
)
def test_bad_combinators_are_refused_with_the_value(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_chunks_that_disagree_cannot_be_joined():
    with pytest.raises(ValueError, match="chunks of 'x' disagree"):
        concatenated([three(), three(arrival_s=[0, 1, 2])], name="x", source="x")
    blocks = [
        stream([20] * 3, prefix=PrefixBlocks(ids=[1], offsets=[0, 1, 1, 1], tokens_per_block=size))
        for size in (16, 512)
    ]
    with pytest.raises(ValueError, match=r"blocks of \[16, 512\] tokens cannot be joined"):
        concatenated(blocks, name="x", source="x")


@examples(40)
@given(
    requests=st.integers(1, 40),
    size=st.integers(1, 41),
    cv=st.sampled_from([0.0, 0.5, 1.0, 13.0]),
    seed=st.integers(0, 5),
)
def test_arrivals_do_not_depend_on_how_the_source_is_chunked(requests, size, cv, seed):
    whole = stream([1] * requests, [1] * requests)
    plain = read_all(arriving(whole, rate_per_s=2.0, cv=cv, seed=seed)).arrival_s
    chunked = read_all(arriving(Chunked(whole, size), rate_per_s=2.0, cv=cv, seed=seed)).arrival_s
    assert plain.tolist() == chunked.tolist()
    assert plain[0] == 0.0


@pytest.mark.parametrize(("cv", "slack"), [(0.0, 1e-9), (0.5, 0.01), (1.0, 0.01), (3.0, 0.05)])
def test_arrivals_have_the_rate_and_the_cv(cv, slack):
    requests = 100_000
    source = arriving(stream([1] * requests, [1] * requests), rate_per_s=4.0, cv=cv)
    gaps = np.diff(read_all(source).arrival_s)
    assert gaps.mean() == pytest.approx(0.25, rel=max(slack, 1e-9))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=max(slack, 1e-6))
    if cv == 1.0:  # a Poisson process has this share of its gaps below the mean
        assert np.mean(gaps < gaps.mean()) == pytest.approx(1 - np.exp(-1), abs=0.005)


def test_new_arrivals_take_the_place_of_old_ones():
    timed = three(arrival_s=[0, 100, 200])
    assert read_all(arriving(timed, rate_per_s=1.0, cv=0)).arrival_s.tolist() == [0, 1, 2]
    twice = arriving(arriving(timed, rate_per_s=5.0), rate_per_s=1.0, cv=0)
    assert twice == arriving(timed, rate_per_s=1.0, cv=0)
