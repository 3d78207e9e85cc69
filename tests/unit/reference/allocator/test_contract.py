"""What an allocator declares: there and back as JSON, and refused with a reason."""

import dataclasses
import json
from types import MappingProxyType
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.profiles import examples
from reference.allocator.contract import (
    HOSTILE_CALLS,
    AllocatorCapabilities,
    AllocatorDied,
    EvictionOrder,
    capabilities_of_factory,
    declares_allocator,
)

FLAGS = [field.name for field in dataclasses.fields(AllocatorCapabilities) if field.type == "bool"]

CAPABILITIES = st.builds(
    AllocatorCapabilities,
    **dict.fromkeys(FLAGS, st.booleans()),
    eviction=st.sampled_from([None, *get_args(EvictionOrder)]),
    hostile=st.frozensets(st.sampled_from(HOSTILE_CALLS)),
    block_sizes=st.none() | st.frozensets(st.integers(1, 64), min_size=1),
    min_blocks=st.integers(1, 9),
    spare_blocks=st.integers(0, 9),
    window_slack=st.integers(0, 9),
)


def pool(num_blocks: int, block_size: int, *, prefix_caching: bool, window: int | None) -> None:
    """A factory, as far as a declaration is concerned."""


def test_there_is_a_flag_for_each_thing_that_can_be_declared() -> None:
    assert len(FLAGS) >= 15
    others = {field.name for field in dataclasses.fields(AllocatorCapabilities)} - set(FLAGS)
    assert others == {
        *("eviction", "hostile", "block_sizes", "min_blocks", "spare_blocks", "window_slack")
    }


@given(can=CAPABILITIES)
@examples(100)
def test_capabilities_survive_json(can: AllocatorCapabilities) -> None:
    assert AllocatorCapabilities.from_mapping(json.loads(json.dumps(can.as_json()))) == can


def test_as_json_says_every_field_and_sorts_the_sets() -> None:
    said = AllocatorCapabilities(
        hostile=frozenset({"free_unknown", "admit_live"}), block_sizes=frozenset({16, 2})
    ).as_json()
    assert said.keys() == {field.name for field in dataclasses.fields(AllocatorCapabilities)}
    assert said["hostile"] == ["admit_live", "free_unknown"]
    assert said["block_sizes"] == [2, 16]
    assert AllocatorCapabilities().as_json()["block_sizes"] is None


def test_fields_that_are_not_given_have_their_defaults() -> None:
    assert AllocatorCapabilities.from_mapping({}) == AllocatorCapabilities()
    assert AllocatorCapabilities.from_mapping({"fork": True}) == AllocatorCapabilities(fork=True)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_any_collection_does_for_a_set(kind: type) -> None:
    can = AllocatorCapabilities.from_mapping({"hostile": kind(["free_twice"])})
    assert can == AllocatorCapabilities(hostile=frozenset({"free_twice"}))
    hash(can)  # tables of moves are cached by it


def test_by_default_the_least_is_asked_and_every_call_that_makes_no_sense() -> None:
    can = AllocatorCapabilities()
    declared = {name for name in FLAGS if getattr(can, name)}
    assert declared == {"prefix_caching", "reset_while_running", "empty_calls"}
    assert can.hostile == set(HOSTILE_CALLS)
    assert can.eviction is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"forks": True}, r"capability 'forks' is unknown; use .*block_sizes, .*fork, "),
        ({"hostile": ["be_nice"]}, r"hostile: 'be_nice' is unknown; use free_twice, "),
        ({"eviction": "mru"}, r"eviction: 'mru'; use lru, leaf, all or None"),
        ({"min_blocks": 0}, r"min_blocks: 0 is too small"),
        ({"spare_blocks": -1}, r"spare_blocks: -1 is too small"),
        ({"window_slack": -2}, r"window_slack: -2 is too small"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(
    fields: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        AllocatorCapabilities.from_mapping(fields)


def test_a_factory_is_decorated_and_stays_what_it_was() -> None:
    can = AllocatorCapabilities(fork=True, eviction="leaf")
    assert declares_allocator(can)(pool) is pool
    try:
        assert capabilities_of_factory(pool) is can
    finally:
        del pool.capabilities  # type: ignore[attr-defined]


def test_a_factory_without_a_declaration_has_the_defaults() -> None:
    assert capabilities_of_factory(lambda *_: None) == AllocatorCapabilities()


@pytest.mark.parametrize("mapping", [dict, MappingProxyType])
def test_an_engine_declares_with_a_plain_mapping(mapping: type) -> None:
    class Engine:
        capabilities = mapping({"preempt": True, "block_sizes": [16]})

    assert capabilities_of_factory(Engine) == AllocatorCapabilities(
        preempt=True, block_sizes=frozenset({16})
    )


@pytest.mark.parametrize(
    ("declared", "error", "words"),
    [
        ("fork", TypeError, r"capabilities is 'fork'; it must be a mapping or an Allocator"),
        ({"forks": True}, ValueError, "'forks' is unknown"),
        ({"eviction": "fifo"}, ValueError, "eviction: 'fifo'"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_an_error(
    declared: object, error: type[Exception], words: str
) -> None:
    class Engine:
        capabilities = declared

    with pytest.raises(error, match=words):
        capabilities_of_factory(Engine)


def test_a_death_says_how_and_whether_it_was_a_hang() -> None:
    death = AllocatorDied("gave no answer", timed_out=True)
    assert str(death) == "gave no answer"
    assert death.timed_out
