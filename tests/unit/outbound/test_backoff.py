"""Destinations that are left alone."""

from __future__ import annotations

import math

from twisted.internet.task import Clock

from mailgate.outbound.backoff import BackOffs
from mailgate.storage.queue import DestinationState


def back_offs() -> tuple[Clock, BackOffs]:
    clock = Clock()
    return clock, BackOffs(clock.seconds, first_seconds=60.0, longest_seconds=3600.0)


def test_each_trouble_doubles_the_time_up_to_the_longest() -> None:
    _, known = back_offs()
    assert [known.fail("a.test", "421 No")[0] for _ in range(9)] == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_one_that_is_well_begins_anew_and_says_so_once() -> None:
    _, known = back_offs()
    known.fail("a.test", "421 No")
    assert (known.until("a.test"), known.reason("a.test")) == (60.0, "421 No")
    news = known.recover("a.test")
    assert news is not None
    assert (news.name, news.reason) == ("a.test", None)
    assert known.recover("a.test") is None
    assert (known.until("a.test"), known.left_alone()) == (None, set())
    assert known.fail("a.test", "421 No")[0] == 60.0


def test_what_is_delivered_ends_no_pause() -> None:
    """A message that was under way gets through; the operator has not said that others may."""
    _, known = back_offs()
    known.adopt([DestinationState("a.test", True, None, 2, "Maintenance")])
    known.recover("a.test")
    assert (known.until("a.test"), known.reason("a.test")) == (math.inf, "Maintenance")


def test_what_the_database_says_takes_the_place_of_what_was_known() -> None:
    _, known = back_offs()
    known.fail("a.test", "421 No")
    known.adopt([DestinationState("b.test", False, 100.0, 3, "Timed out")])
    assert known.left_alone() == {"b.test"}
    assert known.fail("b.test", "Timed out")[0] == 480.0


def test_what_is_over_is_kept_for_its_failures_and_then_forgotten() -> None:
    clock, known = back_offs()
    known.fail("a.test", "421 No")
    clock.advance(61.0)
    known.prune()
    assert (known.until("a.test"), known.reason("a.test")) == (None, "421 No")
    clock.advance(3600.0)
    known.prune()
    assert known.reason("a.test") is None
    assert known.fail("a.test", "421 No")[0] == 60.0
