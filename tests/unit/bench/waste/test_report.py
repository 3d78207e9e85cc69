"""The tables: what they say is what the record holds, in 80 columns."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from bench.machine.environment import WasteEnvironment
from bench.waste.figures.figure import Component, Figure
from bench.waste.policies import parse_policy
from bench.waste.record import PoolRecord, WasteRecord, waste_row
from bench.waste.report import policy_name, policy_words, show, show_figure
from bench.waste.simulate import simulate
from bench.waste.whatif import variations
from bench.workloads.record import served_stream
from bench.workloads.spec import parse_source

SOURCE = parse_source("alpaca-fit:requests=200,system=64,prompts=2")


def recorded(*policies: str, base: str | None = None, slots: int = 2500) -> WasteRecord:
    parsed = [parse_policy(policy, max_model_len=1024) for policy in policies]
    return WasteRecord(
        started_at="",
        elapsed_s=0.25,
        command=[],
        complete=True,
        asked=len(parsed),
        machine=WasteEnvironment.here(),
        pool=PoolRecord(slots=slots, bytes_per_token=2**20),
        warmup=None,
        clients=None,
        step_ns=30_000_000,
        prefill_ns_per_token=50_000,
        base=base,
        streams=[served_stream(SOURCE, label="alpaca")],
        rows=[
            waste_row("alpaca", policy, simulate(SOURCE, policy, slots=slots), seconds=0.1)
            for policy in parsed
        ],
    )


def printed(show_it, subject, *, width: int = 80) -> str:
    output = StringIO()
    show_it(subject, Console(file=output, width=width))
    assert max(map(len, output.getvalue().splitlines())) <= width
    return output.getvalue()


def test_the_table_shows_what_the_record_holds():
    record = recorded("max/buddy", "oracle/first-fit", "paged", "paged:prefix=lru,watermark=0.05")
    text = printed(show, record)
    lines = text.splitlines()
    for row in record.rows[:3]:
        name = policy_name(row.policy)
        memory, service = (line.split() for line in lines if line.split()[:1] == [name])
        assert memory[1] == f"{100 * row.shares['token']:.1f}"
        assert memory[-2:] == [f"{row.mean_batch:.2f}", str(row.peak_requests)]
        assert service[1] == f"{row.completed_per_1000_steps:,.1f}"
    assert f"{record.rows[3].hit_rate:.1%}" in text
    assert "cached" in text
    held = [row.shares["token"] for row in record.rows]
    ratio = max(held) / held[0]
    words = " ".join(text.split())
    assert f"holds {ratio:.1f}x the tokens that max reservation, buddy, holds" in words
    assert "4 of 4 simulations in 0.2 s" in text


def test_classes_that_nobody_has_get_no_column():
    text = printed(show, recorded("paged"))
    for absent in ("reserve", "round", "frag", "cached"):
        assert absent not in text
    assert "intern" in text


def test_refused_requests_are_said():
    record = recorded("max/buddy:max-model-len=100", "paged")
    refused = record.rows[0].total.refused
    assert refused > 0
    assert f"max reservation, buddy: {refused} of 200 requests were refused" in " ".join(
        printed(show, record).split()
    )


def test_an_incomplete_record_says_so():
    record = recorded("paged").model_copy(update={"complete": False, "asked": 5})
    assert "incomplete: 1 of 5 simulations" in printed(show, record)
    empty = record.model_copy(update={"rows": []})
    assert "nothing was run" in printed(show, empty)


def test_a_run_that_was_never_loaded_is_said_to_be_judged_as_a_whole():
    record = recorded("paged", slots=10**6)
    row = record.rows[0]
    never = row.model_copy(update={"loaded": replace(row.total - row.total)})
    text = printed(show, record.model_copy(update={"rows": [never]}))
    assert "judged by the whole run" in " ".join(text.split())


def test_a_pool_that_the_load_does_not_fill_is_compared_by_what_is_allocated():
    record = recorded("max/buddy", "paged")
    rows = []
    for row in record.rows:
        total = row.total
        rest = total.free_frag + total.free_short
        idle = {"free_frag": 0, "free_short": 0, "free_idle": total.free_idle + rest}
        longer = replace(
            total,
            steps=2 * total.steps,
            **idle | {"free_idle": idle["free_idle"] + total.slot_steps},
        )
        rows.append(row.model_copy(update={"total": longer, "loaded": longer}))
    text = " ".join(printed(show, record.model_copy(update={"rows": rows})).split())
    assert "The load does not fill the pool:" in text
    filled = rows[1].total.token / rows[1].total.allocated
    assert f"Of the slots that it allocates, paged, block 16, fills {filled:.1%}" in text
    assert "holds in the same pool" not in text


def test_what_if_names_the_change_that_gives_back_most():
    base = parse_policy("paged:block=64")
    specs = ["paged:block=64", *(_spec(v.policy) for v in variations(base, prefixes=True))]
    text = " ".join(printed(show, recorded(*specs, base="paged:block=64")).split())
    assert "base: paged, block 64" in text
    assert "gives back most: +" in text
    assert "ranked by requests completed in 1,000 loaded steps, then by tokens held" in text
    for option in ("block size 1 ", "watermark 5%", "prefix caching lru", "preemption swap"):
        assert option in text


def test_what_if_recommends_nothing_where_nothing_helps():
    record = recorded("paged:block=1", "paged:block=256", base="paged:block=1")
    text = " ".join(printed(show, record).split())
    assert "Nothing that was tried gives back more than 0.5%: keep the policy as it is" in text


def _spec(policy) -> str:
    from bench.waste.policies import format_policy

    return format_policy(policy)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("max/buddy:max-model-len=9", "max reservation, buddy"),
        ("paged:block=8,watermark=0.1", "paged, block 8, watermark=0.1"),
    ],
)
def test_a_policy_in_words(spec, words):
    assert policy_words(spec) == words


COMPONENT = Component(
    bar="Orca", name="token", unit="%", published=20.4, measured=21.0, lowest=17.9, highest=22.9
)


def figure(*components: Component) -> Figure:
    return Figure(
        name="made", title="A figure", source="Nobody", setup="None.", components=components,
        notes=("To be believed.",),
    )  # fmt: skip


def test_a_figure_stands_beside_what_was_measured():
    shown = replace(COMPONENT, name="batch", unit="requests", lowest=None, highest=None)
    exact = replace(COMPONENT, bar="vLLM", measured=7.0, published=None, lowest=7.0, highest=7.0)
    above = replace(exact, highest=None)
    below = replace(exact, lowest=None)
    text = printed(show_figure, figure(COMPONENT, shown, exact, above, below))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines.index("Orca") + 1 == lines.index("token, % 20.40 21.00 +0.60 17.90 to 22.90 met")
    for bar in ("exactly", "at least", "at most"):
        assert f"token, % - 7.00 {bar} 7.00 met" in lines
    assert "shown" in text
    assert "- To be believed." in text
    assert "met: 4 of 4 judged components" in text


def test_a_missed_component_is_missed():
    text = printed(show_figure, figure(COMPONENT, replace(COMPONENT, measured=17.8)))
    assert "missed: 1 of 2 judged components" in text
    assert "-2.60" in text


def test_what_if_says_when_the_load_is_what_is_small():
    # A backlog waits for memory in every step; the same requests, a second apart, in none.
    busy = recorded("paged:block=16", "paged:block=32,watermark=0.3", base="paged:block=16")
    assert "at this load the pool is large enough" not in printed(show, busy)
    idle = recorded("paged:block=16", base="paged:block=16", slots=400_000)
    row = idle.rows[0]
    calm = replace_counters(row)
    text = printed(show, idle.model_copy(update={"rows": [calm]}))
    assert "Somebody waited for memory in 0.0% of the steps" in text
    assert ":saturated" in text


def replace_counters(row):
    """The same row, with nobody waiting: what a stream below saturation gives."""
    counters = row.judged
    idle = counters.free_idle + counters.free_short
    still = replace(counters, free_short=0, free_idle=idle, waiting_short=0, waiting_watermark=0)
    return row.model_copy(update={"total": still, "loaded": still})
