"""Ids: unique, in order, readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.ids import EPOCH_SECONDS, INSTANCES, IdGenerator, decode_id, encode_id, first_id_at, time_of

IDS = st.integers(min_value=0, max_value=2**63 - 1)


def test_an_id_tells_when_it_was_made() -> None:
    identifier = IdGenerator(7, lambda: EPOCH_SECONDS + 1000.25).next()
    assert time_of(identifier) == EPOCH_SECONDS + 1000.25


def test_ids_of_one_millisecond_differ_and_ascend() -> None:
    """Ten bits are a counter; when they are used up, the next millisecond is borrowed."""
    generator = IdGenerator(7, lambda: EPOCH_SECONDS + 5.0)
    ids = [generator.next() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert {identifier >> 10 & 0xFFF for identifier in ids} == {7}


@given(st.lists(st.floats(min_value=0, max_value=10**9), min_size=1, max_size=50), st.integers(0, INSTANCES - 1))
def test_ids_ascend_whatever_the_clock_does(offsets: list[float], instance: int) -> None:
    """A clock that is set back must not make an id twice, nor one that sorts before an older one."""
    times = iter(offsets)
    generator = IdGenerator(instance, lambda: EPOCH_SECONDS + next(times))
    ids = [generator.next() for _ in offsets]
    assert ids == sorted(set(ids))
    assert {identifier >> 10 & 0xFFF for identifier in ids} == {instance}


def test_a_clock_set_back_goes_on_from_the_last_id() -> None:
    times = iter([EPOCH_SECONDS + 100.0, EPOCH_SECONDS + 1.0, EPOCH_SECONDS + 100.5])
    generator = IdGenerator(0, lambda: next(times))
    first, second, third = (generator.next() for _ in range(3))
    assert second == first + 1
    assert third == (100_500 << 22)


@given(st.floats(min_value=0, max_value=10**9), st.integers(0, INSTANCES - 2))
def test_instances_never_make_the_same_id(offset: float, instance: int) -> None:
    one, other = (IdGenerator(number, lambda: EPOCH_SECONDS + offset) for number in (instance, instance + 1))
    assert not {one.next() for _ in range(1500)} & {other.next() for _ in range(1500)}


@pytest.mark.parametrize("instance", [-1, INSTANCES])
def test_an_instance_out_of_range_is_refused(instance: int) -> None:
    """It would flow over into the time."""
    with pytest.raises(ValueError, match="0 to 4095"):
        IdGenerator(instance, lambda: 0.0)


def test_a_partition_begins_at_the_first_id_of_its_time() -> None:
    generator = IdGenerator(0, lambda: EPOCH_SECONDS + 86400.0)
    assert generator.next() == first_id_at(EPOCH_SECONDS + 86400.0)
    assert IdGenerator(4095, lambda: EPOCH_SECONDS + 86399.999).next() < first_id_at(EPOCH_SECONDS + 86400.0)


@given(IDS)
def test_an_id_round_trips_through_its_text(identifier: int) -> None:
    text = encode_id(identifier)
    assert len(text) == 13
    assert decode_id(text) == identifier


@given(IDS, IDS)
def test_texts_sort_as_ids_do(one: int, other: int) -> None:
    """So a list of ids in a log or a directory is in order of time."""
    assert (encode_id(one) < encode_id(other)) == (one < other)


@given(IDS)
def test_capitals_brackets_and_look_alikes_are_understood(identifier: int) -> None:
    """Crockford: people confuse 1 with i and l, and 0 with o."""
    text = encode_id(identifier)
    assert decode_id(f" [{text.upper().replace('1', 'I').replace('0', 'O')}] ") == identifier
    assert decode_id(text.replace("1", "l")) == identifier


@pytest.mark.parametrize(
    "text", ["", "1m9x2k7q0vb3", "1m9x2k7q0vb3dd", "1m9x2k7q0vb3u", "zzzzzzzzzzzzz", "1m9x2k7q0vb3é"]
)
def test_what_is_no_id_is_refused_with_an_explanation(text: str) -> None:
    with pytest.raises(ValueError, match="is not an id"):
        decode_id(text)
