"""What a command line says is the source that it means, and a slip is answered with the remedy."""

import pickle

import pytest

from bench.workloads.arrivals import arriving
from bench.workloads.builtin import STREAM_LAWS, QuantileSource
from bench.workloads.conversations import ConversationFit
from bench.workloads.fits import FITS, LengthFit, fitted
from bench.workloads.mix import mix
from bench.workloads.source import fitting, generating, head, read_all, repeat, saturated
from bench.workloads.spec import KEYS, parse_source, source_names
from bench.workloads.system_prompt import with_system_prompt
from bench.workloads.traces import TraceSource


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "turns.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n9,3\n12,2\n5,0\n6,1\n3,3\n")
    return path


SHAREGPT = fitted("sharegpt-fit")
AZURE = fitted("azure-fit")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("sharegpt-fit", SHAREGPT),
        ("sharegpt-fit:requests=50,seed=3", fitted("sharegpt-fit", num_requests=50, seed=3)),
        ("sharegpt-fit:rate=2", arriving(SHAREGPT, rate_per_s=2)),
        ("sharegpt-fit:rate=2,cv=3,seed=1", fitted("sharegpt-fit", rate_per_s=2, cv=3, seed=1)),
        ("azure-fit", AZURE),
        ("azure-fit:saturated", saturated(AZURE)),
        ("azure-fit:saturated=yes", saturated(AZURE)),
        ("azure-fit:saturated=no", AZURE),
        ("azure-fit:rate=8", fitted("azure-fit", rate_per_s=8)),
        ("azure-fit:cv=8", fitted("azure-fit", cv=8)),
        ("azure-code-fit:rate=8", fitted("azure-code-fit", rate_per_s=8)),
        ("azure-fit:max_len=2048,head=10", head(fitting(AZURE, 2048), 10)),
        ("azure-fit:head=10,max_len=2048", head(fitting(AZURE, 2048), 10)),
        ("azure-fit:max_len=99,rate=4", arriving(fitting(AZURE, 99), rate_per_s=4, cv=1.09)),
        ("azure-fit:repeat=2", repeat(AZURE, 2)),
        ("sharegpt-fit:system=64", with_system_prompt(SHAREGPT, 64)),
        (
            "sharegpt-fit:system=64,prompts=4,max_len=200,seed=2",
            fitting(with_system_prompt(fitted("sharegpt-fit", seed=2), 64, prompts=4, seed=2), 200),
        ),
        ("mooncake-fit", ConversationFit()),
        ("mooncake-fit:rate=9,seed=2", ConversationFit(rate_per_s=9, seed=2)),
        ("azure-conv", QuantileSource(name="azure-conv", num_requests=20_000)),
        (
            "azure-conv:cv=3,requests=9",
            arriving(QuantileSource(name="azure-conv", num_requests=9), rate_per_s=5.530, cv=3),
        ),
        (
            "sharegpt-fit+azure-code-fit:share=0.2",
            mix([SHAREGPT, fitted("azure-code-fit", seed=1)], shares=[0.8, 0.2]),
        ),
        (
            "alpaca-fit:share=0.5+sharegpt-fit+sharegpt-fit:seed=9+:seed=4,rate=3,head=7",
            arriving(
                head(
                    mix(
                        [
                            LengthFit(name="alpaca-fit"),
                            fitted("sharegpt-fit", seed=1),
                            fitted("sharegpt-fit", seed=9),
                        ],
                        shares=[0.5, 0.25, 0.25],
                        names=["alpaca-fit", "sharegpt-fit", "sharegpt-fit#2"],
                        seed=4,
                    ),
                    7,
                ),
                rate_per_s=3,
                seed=4,
            ),
        ),
        ("azure-fit+mooncake-fit", mix([AZURE, ConversationFit(seed=1)])),
        (
            "sharegpt-fit+alpaca-fit",
            mix([SHAREGPT, fitted("alpaca-fit", seed=1)], shares=[0.5, 0.5]),
        ),
    ],
)
def test_a_text_is_the_source_it_means(text, meant):
    made = parse_source(text)
    assert made == meant
    assert pickle.loads(pickle.dumps(made)) == meant


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        ("alpaca-fit", "alpaca-fit:seed=5,requests=9"),
        ("alpaca-fit:requests=4", "alpaca-fit:requests=4,seed=5"),
        ("alpaca-fit:seed=1,requests=4", "alpaca-fit:seed=1,requests=4"),
        (
            "sharegpt-fit:share=0.2+alpaca-fit+:rate=4",
            "sharegpt-fit:share=0.2,seed=5,requests=9+alpaca-fit:seed=6,requests=9+:rate=4,seed=5",
        ),
        # The draw of the shares has a seed of its own.
        (
            "sharegpt-fit+alpaca-fit",
            "sharegpt-fit:seed=5,requests=9+alpaca-fit:seed=6,requests=9+:seed=0",
        ),
        ("azure-fit:saturated", "azure-fit:saturated,seed=5,requests=9"),
        ("mooncake-fit:system=512", "mooncake-fit:system=512,seed=5,requests=9"),
    ],
)
def test_requests_and_seed_hold_where_the_text_does_not_say(text, completed):
    assert parse_source(text, requests=9, seed=5) == parse_source(completed)


def test_requests_of_a_file_are_rows_to_read(trace):
    read = generating(TraceSource(str(trace), limit=2))
    assert parse_source(str(trace), requests=2, seed=5) == read


def test_files_are_read_with_or_without_the_word_trace(trace):
    for text in (f"{trace}", f"trace:{trace}"):
        assert parse_source(text) == generating(TraceSource(str(trace)))
    keyed = parse_source(f"trace:{trace}:requests=4,turns=first")
    assert keyed == generating(TraceSource(str(trace), limit=4, turns="first"))
    assert read_all(parse_source(str(trace))).output_tokens.tolist() == [3, 2, 1, 3]


def test_a_path_may_hold_what_else_has_a_meaning(trace):
    mixed = read_all(parse_source(f"{trace}:share=0.5+alpaca-fit"))
    assert mixed.tenant_names == ("turns", "alpaca-fit")
    odd = trace.rename(trace.with_name("a+b:c=d,e.csv"))
    for text in (f"{odd}", f"trace:{odd}"):
        assert len(read_all(parse_source(text))) == 4


def test_a_name_goes_before_a_file_of_that_name(trace, monkeypatch):
    trace.rename(trace.with_name("alpaca-fit"))
    monkeypatch.chdir(trace.parent)
    assert parse_source("alpaca-fit:head=3") == head(fitted("alpaca-fit"), 3)
    assert parse_source("trace:alpaca-fit") == generating(TraceSource("alpaca-fit"))


def test_every_name_is_listed_described_and_can_be_read():
    names = source_names()
    assert set(names) == {*FITS, *STREAM_LAWS, "mooncake-fit"}
    for name, description in names.items():
        assert 10 < len(description) < 100
        assert "\n" not in description
        assert len(read_all(parse_source(f"{name}:requests=3"))) == 3


def test_every_key_is_understood_somewhere(trace):
    texts = {
        "turns": f"{trace}:turns=all",
        "share": "alpaca-fit:share=0.5+sharegpt-fit",
        "prompts": "alpaca-fit:system=16,prompts=2",
        "cv": "azure-fit:cv=2",
        "saturated": "alpaca-fit:saturated",
    }
    for key in KEYS:
        assert len(read_all(head(parse_source(texts.get(key, f"alpaca-fit:{key}=999")), 2))) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' names no source; use one of sharegpt-fit"),
        ("nope", "'nope' is neither a file nor a source; use the path of a trace, or one of"),
        ("trace:sharegpt-fit", "'sharegpt-fit' is neither a file"),
        ("missing.csv:head=3", "'missing.csv' is neither a file"),
        ("alpaca-fit:size=3", "key 'size' in 'alpaca-fit:size=3' is unknown; use one of requests"),
        ("alpaca-fit:head", "key 'head' in 'alpaca-fit:head' has no value; write head=VALUE"),
        ("alpaca-fit:head=", "has no value"),
        ("alpaca-fit:head=2,head=3", "key 'head' stands twice"),
        ("alpaca-fit:head=2,", "key '' in"),
        ("alpaca-fit:head=x", "head=x in 'alpaca-fit:head=x': head is a whole number"),
        ("alpaca-fit:requests=1.5", "requests is a whole number"),
        ("alpaca-fit:requests=0", "requests=0 in 'alpaca-fit:requests=0': use 1 or more"),
        ("alpaca-fit:seed=-1", "seed=-1 in 'alpaca-fit:seed=-1': use 0 or more"),
        ("alpaca-fit:rate=fast", "rate is a number"),
        ("alpaca-fit:rate=-1", "rate_per_s is -1.0"),
        ("alpaca-fit:cv=2", "cv=2 in 'alpaca-fit:cv=2': there is no rate to go with it"),
        ("alpaca-fit:saturated=2", "saturated=2 in 'alpaca-fit:saturated=2': use yes, no"),
        ("azure-fit:saturated,rate=3", "a saturated source has no arrivals; leave one out"),
        ("mooncake-fit:saturated,rate=3", "a saturated source has no arrivals; leave one out"),
        ("mooncake-fit:cv=3", "conversations have pauses of their own; give a rate alone"),
        ("alpaca-fit:prompts=3", "prompts=3 in .*: prompts of what length"),
        ("alpaca-fit:turns=first", "only a file has turns"),
        ("alpaca-fit:share=0.5", "is no mix; join two sources by"),
        ("alpaca-fit+", "a part without a name; only the last may be keys alone"),
        ("+alpaca-fit+azure-fit", "a part without a name"),
        ("alpaca-fit+azure-fit", "alpaca-fit cannot be merged by time, having none; give shares"),
        ("alpaca-fit:share=1.2+azure-fit", "shares 1.2: each lies between 0 and 1"),
        ("alpaca-fit:share=0.6+azure-fit:share=0.6", "shares 0.6, 0.6: .* leave one out"),
        ("alpaca-fit:share=0.6,rate=2+azure-fit", r"a mix by shares has one rate; write \+:rate"),
        ("alpaca-fit+sharegpt-fit+:requests=3", "the mix has no such key; give it to a part"),
    ],
)
def test_slips_are_answered_with_the_value_and_the_remedy(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_source(text)
