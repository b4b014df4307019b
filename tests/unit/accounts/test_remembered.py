"""Checks that need not be made again."""

from __future__ import annotations

from twisted.internet.task import Clock

from mailgate.accounts.remembered import Remembered


def kept(clock: Clock, maximum_entries: int = 100) -> Remembered:
    return Remembered(clock.seconds, maximum_age_seconds=300, maximum_entries=maximum_entries)


def test_an_outcome_is_forgotten_in_time() -> None:
    clock = Clock()
    remembered = kept(clock)
    key = remembered.key("192.0.2.7/32", "alice", b"secret")
    remembered.keep(key, "alice", remembered.generation)
    clock.advance(299)
    assert remembered.outcome(key) == ("alice",)
    clock.advance(1)
    assert remembered.outcome(key) is None


def test_an_outcome_is_that_of_one_network_account_and_password() -> None:
    """And the parts can't run into each other; another process has other keys."""
    remembered = kept(Clock())
    parts = [("n", "a", b"p"), ("na", "", b"p"), ("n", "ap", b""), ("", "na", b"p"), ("n", "a", b"q"), ("n", "b", b"p")]
    assert len({remembered.key(*each) for each in parts}) == len(parts)
    assert kept(Clock()).key(*parts[0]) != remembered.key(*parts[0])


def test_what_began_before_a_change_is_not_kept_after_it() -> None:
    """A check that was under way has seen the old password."""
    remembered = kept(Clock())
    key, generation = remembered.key("n", "a", b"p"), remembered.generation
    remembered.forget()
    remembered.keep(key, "a", generation)
    assert remembered.outcome(key) is None


def test_nothing_counts_while_changes_are_not_heard_of() -> None:
    clock, hears = Clock(), [True]
    remembered = Remembered(clock.seconds, hears_changes=lambda: hears[0])
    key = remembered.key("n", "a", b"p")
    remembered.keep(key, "a", 0)
    hears[0] = False
    assert remembered.outcome(key) is None
    other = remembered.key("n", "b", b"p")
    remembered.keep(other, "b", 0)
    hears[0] = True
    assert remembered.outcome(other) is None


def test_only_so_many_are_kept() -> None:
    """The oldest goes."""
    remembered = kept(Clock(), maximum_entries=2)
    keys = [remembered.key("n", name, b"p") for name in "abc"]
    for key in keys:
        remembered.keep(key, None, 0)
    assert [remembered.outcome(key) for key in keys] == [None, (None,), (None,)]
