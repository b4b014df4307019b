"""How the directory keeps answers: no server, a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mailgate.envelope import Address, MailboxDestination, Resolution
from mailgate.interfaces import IDirectory
from mailgate.storage.directory import Answer, Directory, Outcome
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.pool import Connection, Pool, Row

ALICE = Address("alice", "example.test")
ALICE_ROW: Row = ("mailbox", 1, "alice", "example.test", None, True, None, None)
ALICE_ANSWER = Answer(Outcome.DELIVERABLE, Resolution((MailboxDestination(1, "alice@example.test"),)))


def row_with_quota(mailbox_id: int, quota_octets: int, octets: int) -> Row:
    return ("mailbox", mailbox_id, f"m{mailbox_id}", "example.test", None, True, quota_octets, octets)


class AskedDatabase:
    """Notes what it is asked, and is answered by the test."""

    def __init__(self) -> None:
        self.asked: list[Sequence[object]] = []
        self.pending: list[Deferred[list[Row]]] = []

    async def execute(self, sql: str, parameters: Sequence[object], *, timeout_seconds: float) -> list[Row]:
        self.asked.append(parameters)
        pending: Deferred[list[Row]] = Deferred()
        self.pending.append(pending)
        return await pending

    def answer(self, *rows: Row) -> None:
        self.pending.pop(0).callback(list(rows))


class Listener:
    """A connection whose notifications and losses come from the test."""

    def __init__(self) -> None:
        self.notify: Callable[[str], None] = lambda _: None
        self.reconnect: Callable[[], None] = lambda: None
        self.lose: Callable[[], None] = lambda: None

    def listen(self, channel: str, observer: Callable[[str], None]) -> None:
        self.notify = observer

    def on_reconnect(self, observer: Callable[[], None]) -> None:
        self.reconnect = observer

    def on_lost(self, observer: Callable[[], None]) -> None:
        self.lose = observer


class DirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.database = AskedDatabase()
        self.listener = Listener()
        self.directory = self.make()

    def make(self, *, max_entries: int = 100) -> Directory:
        pool, listener = cast("Pool", self.database), cast("Connection", self.listener)
        return Directory(self.clock, pool, listener, postmaster="root@example.test", max_entries=max_entries)

    def later(self, address: Address = ALICE) -> Deferred[Answer]:
        waiting = self.directory.resolve(address)
        assert isinstance(waiting, Deferred)
        return waiting

    def learn(self, address: Address, *rows: Row) -> Answer:
        waiting = self.later(address)
        self.database.answer(*rows)
        return self.successResultOf(waiting)

    def is_known(self, address: Address = ALICE) -> bool:
        return isinstance(self.directory.resolve(address), Answer)

    def test_it_provides_the_interface(self) -> None:
        assert verifyObject(IDirectory, self.directory)

    def test_what_was_asked_once_is_known_without_waiting(self) -> None:
        assert self.learn(ALICE, ALICE_ROW) == ALICE_ANSWER
        assert self.directory.resolve(ALICE) == ALICE_ANSWER
        assert len(self.database.asked) == 1

    def test_the_database_is_asked_for_the_folded_address_and_told_what_was_sent(self) -> None:
        self.later(Address("ÄLICE+Detail", "BÜCHER.example."))
        assert self.database.asked == [("älice+detail", "xn--bcher-kva.example", "ÄLICE+Detail", "root@example.test")]

    def test_what_is_no_domain_is_not_ours_and_costs_no_query(self) -> None:
        assert self.directory.resolve(Address("alice", "-.-")) == Answer(Outcome.NOT_OURS)
        assert self.database.asked == []

    def test_equal_questions_under_way_are_one_query(self) -> None:
        first, second = self.later(), self.later()
        assert len(self.database.asked) == 1
        self.database.answer(ALICE_ROW)
        assert self.successResultOf(first) == self.successResultOf(second) == ALICE_ANSWER

    def test_who_cancels_leaves_the_others_waiting(self) -> None:
        first, second = self.later(), self.later()
        first.addErrback(lambda _: None)
        first.cancel()
        self.database.answer(ALICE_ROW)
        assert self.successResultOf(second) == ALICE_ANSWER

    def test_a_failure_reaches_all_who_wait_and_is_not_kept(self) -> None:
        waiting = [self.later(), self.later()]
        self.database.pending.pop().errback(StorageUnavailable("gone"))
        failures: list[Failure] = []
        for waiter in waiting:
            waiter.addErrback(failures.append)
        assert [failure.type for failure in failures] == [StorageUnavailable, StorageUnavailable]
        assert not self.is_known()

    def test_an_answer_is_forgotten_when_it_is_a_minute_old(self) -> None:
        """Even where the notification of a change was lost, nothing is staler than 60 seconds."""
        self.learn(ALICE, ALICE_ROW)
        self.clock.advance(59.9)
        assert self.is_known()
        self.clock.advance(0.1)
        assert not self.is_known()

    def test_the_age_of_an_answer_is_counted_from_the_question(self) -> None:
        """What changes while the database is slow to answer is not in the answer."""
        waiting = self.later()
        self.clock.advance(4)
        self.database.answer(ALICE_ROW)
        self.successResultOf(waiting)
        self.clock.advance(55.9)
        assert self.is_known()
        self.clock.advance(0.1)
        assert not self.is_known()

    def test_using_an_answer_does_not_make_it_last_longer(self) -> None:
        self.learn(ALICE, ALICE_ROW)
        for _ in range(59):
            self.clock.advance(1)
            assert self.is_known()
        self.clock.advance(1)
        assert not self.is_known()

    def test_everything_is_forgotten_when_the_directory_changes(self) -> None:
        self.learn(ALICE, ALICE_ROW)
        self.listener.notify("mailbox")
        assert not self.is_known()

    def test_everything_is_forgotten_when_the_listening_connection_is_lost_and_when_it_is_back(self) -> None:
        for event in (self.listener.lose, self.listener.reconnect):
            self.learn(ALICE, ALICE_ROW)
            event()
            assert not self.is_known()
            self.database.answer(ALICE_ROW)
            self.directory.forget()

    def test_an_answer_from_before_a_change_is_given_but_not_kept(self) -> None:
        waiting = self.later()
        self.listener.notify("mailbox")
        self.database.answer(ALICE_ROW)
        assert self.successResultOf(waiting) == ALICE_ANSWER
        assert not self.is_known()

    def test_who_asks_after_a_change_does_not_get_an_answer_from_before(self) -> None:
        before = self.later()
        self.listener.notify("mailbox")
        after = self.later()
        self.database.answer(ALICE_ROW)
        assert self.successResultOf(before).outcome is Outcome.DELIVERABLE
        assert not after.called
        self.database.answer(("unknown", None, None, None, None, None, None, None))
        assert self.successResultOf(after).outcome is Outcome.UNKNOWN
        assert self.directory.resolve(ALICE) == Answer(Outcome.UNKNOWN)

    def test_memory_is_bounded_and_what_is_used_stays(self) -> None:
        """A dictionary attack asks for names without end."""
        self.directory = self.make(max_entries=2)
        one, two, three = (Address(name, "example.test") for name in ("one", "two", "three"))
        self.learn(one, ALICE_ROW)
        self.learn(two, row_with_quota(2, 10, 0))
        assert self.is_known(one)
        self.learn(three, ALICE_ROW)
        assert self.is_known(one)
        assert self.is_known(three)
        assert not self.is_known(two)
        assert not self.directory._with_quota

    def test_usage_that_is_noted_counts_at_once(self) -> None:
        self.learn(ALICE, row_with_quota(7, 100, 40))
        assert self.directory.resolve(ALICE).quota_free_octets == 60  # type: ignore[union-attr]  # it is known
        self.directory.note_usage(7, 99)
        self.directory.note_usage(8, 1_000)
        answer = self.directory.resolve(ALICE)
        assert isinstance(answer, Answer)
        assert (answer.outcome, answer.quota_free_octets) == (Outcome.DELIVERABLE, 1)
        self.directory.note_usage(7, 100)
        answer = self.directory.resolve(ALICE)
        assert isinstance(answer, Answer)
        assert (answer.outcome, answer.quota_free_octets) == (Outcome.OVER_QUOTA, 0)
        self.directory.note_usage(7, 10)
        assert self.directory.resolve(ALICE).outcome is Outcome.DELIVERABLE  # type: ignore[union-attr]  # it is known

    def test_the_fullest_mailbox_of_an_alias_decides(self) -> None:
        """What is taken has to reach all of them: one full mailbox asks the client to wait."""
        answer = self.learn(ALICE, row_with_quota(1, 100, 10), row_with_quota(2, 50, 45), ALICE_ROW)
        assert (answer.outcome, answer.quota_free_octets) == (Outcome.DELIVERABLE, 5)
        self.directory.note_usage(2, 50)
        assert self.directory.resolve(ALICE).outcome is Outcome.OVER_QUOTA  # type: ignore[union-attr]  # it is known
        self.directory.note_usage(1, 0)
        assert self.directory.resolve(ALICE).outcome is Outcome.OVER_QUOTA  # type: ignore[union-attr]  # it is known
