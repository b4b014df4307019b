"""A message is stored once: whatever is lost on the way to us, between us and the database, or with us."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from mailgate.storage.mailbox import draw_instance
from mailgate.storage.records import Stored
from tests.support import postgres
from tests.support.messages import content_of, incoming, session
from tests.support.unreliable import UnreliableWay
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase

if TYPE_CHECKING:
    from mailgate.storage.mailbox import MailboxWriter
    from mailgate.storage.records import IncomingMessage


def identifier_of(message: IncomingMessage) -> int:
    return message.transaction.id


class ConfirmationTests(WritingTestCase):
    """What clients let us know of our 250s."""

    async def test_until_its_client_goes_on_a_message_is_unconfirmed(self) -> None:
        writer = await self.writer(instance=5)
        message = incoming(self.alice)
        await writer.store(message)
        rows = self.query("SELECT transaction_id, instance, is_lost FROM unconfirmed")
        assert rows == [(identifier_of(message), 5, False)]

    async def test_a_confirmation_is_written_soon_when_no_batch_carries_it(self) -> None:
        writer = await self.writer()
        message = incoming(self.alice)
        await writer.store(message)
        writer.confirm([identifier_of(message)])
        await until(reactor, lambda: self.count("unconfirmed") == 0, timeout_seconds=5)

    async def test_a_confirmation_is_carried_by_the_next_batch(self) -> None:
        writer = await self.writer()
        first, second = incoming(self.alice), incoming(self.bob)
        await writer.store(first)
        writer.confirm([identifier_of(first)])
        await writer.store(second)
        assert self.query("SELECT transaction_id FROM unconfirmed") == [(identifier_of(second),)]

    async def test_a_lost_connection_is_noted(self) -> None:
        writer = await self.writer()
        message = incoming(self.alice)
        await writer.store(message)
        writer.connection_lost([identifier_of(message)])
        await until(reactor, lambda: self.query("SELECT is_lost FROM unconfirmed") == [(True,)], timeout_seconds=5)

    async def test_what_clients_let_us_know_is_written_at_the_end(self) -> None:
        writer = await self.writer()
        first, second = incoming(self.alice), incoming(self.bob)
        await gatherResults([writer.store(first), writer.store(second)])
        writer.confirm([identifier_of(first)])
        writer.connection_lost([identifier_of(second)])
        await writer.stop()
        rows = self.query("SELECT transaction_id, is_lost FROM unconfirmed")
        assert rows == [(identifier_of(second), True)]


class ResendTests(WritingTestCase):
    """A client that can't know of our 250 sends the message again; one that knows sends a new message."""

    async def test_a_resend_after_a_lost_connection_is_the_first_message(self) -> None:
        writer = await self.writer()
        first, again = incoming(self.alice, self.bob), incoming(self.alice, self.bob)
        await writer.store(first)
        writer.connection_lost([identifier_of(first)])
        assert await writer.store(again) == Stored(identifier_of(first), is_resend=True)
        assert (self.count("message"), self.count("delivery"), self.count("transaction")) == (1, 2, 1)

    async def test_a_resend_is_known_whatever_the_order_of_its_recipients(self) -> None:
        writer = await self.writer()
        first, again = incoming(self.alice, self.bob), incoming(self.bob, self.alice)
        await writer.store(first)
        writer.connection_lost([identifier_of(first)])
        assert (await writer.store(again)).is_resend

    async def test_a_resend_that_is_lost_too_may_be_sent_again(self) -> None:
        writer = await self.writer()
        messages = [incoming(self.alice) for _ in range(4)]
        for message in messages:
            assert (await writer.store(message)).transaction_id == identifier_of(messages[0])
            writer.connection_lost([identifier_of(message)])
        assert self.count("message") == 1

    async def test_a_resend_uses_up_the_first_message(self) -> None:
        """While the resend's own 250 is on its way, the same from another session is a new message."""
        writer = await self.writer()
        first, again, other = (incoming(self.alice) for _ in range(3))
        await writer.store(first)
        writer.connection_lost([identifier_of(first)])
        await writer.store(again)
        assert await writer.store(other) == Stored(identifier_of(other))

    async def test_after_the_confirmation_of_a_resend_the_same_is_a_new_message(self) -> None:
        for by_own_id in (True, False):
            writer = await self.writer()
            first, again, new = (incoming(self.alice, octets=b"%d" % by_own_id) for _ in range(3))
            await writer.store(first)
            writer.connection_lost([identifier_of(first)])
            stored = await writer.store(again)
            writer.confirm([identifier_of(again) if by_own_id else stored.transaction_id])
            assert await writer.store(new) == Stored(identifier_of(new))
            assert self.query("SELECT 1 FROM unconfirmed WHERE transaction_id = %s", (identifier_of(first),)) == []

    async def test_the_same_after_a_confirmed_250_is_a_new_message(self) -> None:
        writer = await self.writer()
        first, second = incoming(self.alice), incoming(self.alice)
        await writer.store(first)
        writer.confirm([identifier_of(first)])
        assert await writer.store(second) == Stored(identifier_of(second))
        assert self.count("message") == 2

    async def test_the_same_from_two_sessions_at_once_is_two_messages(self) -> None:
        """In one batch, in two batches, and by two nodes that live."""
        await self.living(1)
        await self.living(2)
        one, two = await self.writer(instance=1), await self.writer(instance=2)
        messages = [incoming(self.alice) for _ in range(5)]
        stored = await gatherResults([one.store(messages[0]), one.store(messages[1]), two.store(messages[2])])
        stored += [await one.store(messages[3]), await two.store(messages[4])]
        assert stored == [Stored(identifier_of(message)) for message in messages]
        assert self.count("message") == 5

    async def test_a_resend_may_come_before_the_first_is_committed(self) -> None:
        """The client hung up behind the final dot and is back at once, twice: all three wait at the same time."""
        for large_octets in (1000, 1):  # in batches, and each by itself
            writer = await self.writer(large_octets=large_octets)
            messages = [incoming(self.alice, octets=b"%d octets" % large_octets) for _ in range(3)]
            waiting = []
            for message in messages[:-1]:
                waiting.append(writer.store(message).addCallback(self._is_unheard, writer))
                writer.connection_lost([identifier_of(message)])
            waiting.append(writer.store(messages[-1]))
            first = identifier_of(messages[0])
            again = Stored(first, is_resend=True)
            assert await gatherResults(waiting) == [Stored(first), again, again]
        assert self.count("message") == 2

    def _is_unheard(self, stored: Stored, writer: MailboxWriter) -> Stored:
        writer.connection_lost([stored.transaction_id])
        return stored

    async def test_each_lost_message_is_good_for_one_resend(self) -> None:
        """Three in one batch, two of them lost before: one is new."""
        writer = await self.writer()
        first = [incoming(self.alice) for _ in range(2)]
        again = [incoming(self.alice) for _ in range(3)]
        await gatherResults([writer.store(message) for message in first])
        writer.connection_lost([identifier_of(message) for message in first])
        stored = await gatherResults([writer.store(message) for message in again])
        assert stored == [
            Stored(identifier_of(first[0]), is_resend=True),
            Stored(identifier_of(first[1]), is_resend=True),
            Stored(identifier_of(again[2])),
        ]

    async def test_a_resend_after_our_death_is_the_first_message(self) -> None:
        """kill -9 after COMMIT, before the 250 was heard: another process answers the client's next attempt."""
        life = await self.living(1)
        one, two = await self.writer(instance=1), await self.writer(instance=2)
        first, again = incoming(self.alice), incoming(self.alice)
        await one.store(first)
        await life.stop()
        await until(reactor, lambda: self.query("SELECT instance_is_alive(1)") == [(False,)])
        assert await two.store(again) == Stored(identifier_of(first), is_resend=True)
        assert self.query("SELECT instance, is_lost FROM unconfirmed") == [(2, False)]

    async def test_an_instance_that_connects_again_lives_on(self) -> None:
        """The lock is shared: the server may still hold it for the connection before."""
        await self.living(1)
        second = await self.living(1)
        assert self.query("SELECT instance_is_alive(1), instance_is_alive(2)") == [(True, False)]
        await second.stop()
        assert self.query("SELECT instance_is_alive(1)") == [(True,)]

    async def test_a_250_that_is_unconfirmed_for_long_counts_as_unheard(self) -> None:
        await self.living(1)
        one, two = await self.writer(instance=1), await self.writer(instance=2)
        first, soon, later = (incoming(self.alice) for _ in range(3))
        await one.store(first)
        assert not (await two.store(soon)).is_resend
        self.query("DELETE FROM unconfirmed WHERE transaction_id = %s", (identifier_of(soon),))
        self.query("UPDATE unconfirmed SET accepted_at = now() - interval '31 seconds'")
        assert await two.store(later) == Stored(identifier_of(first), is_resend=True)

    async def test_after_an_hour_the_same_is_a_new_message(self) -> None:
        writer = await self.writer()
        first, again = incoming(self.alice), incoming(self.alice)
        await writer.store(first)
        self.query("UPDATE unconfirmed SET is_lost = true, accepted_at = now() - interval '61 minutes'")
        assert await writer.store(again) == Stored(identifier_of(again))

    async def test_only_the_same_network_envelope_and_content_make_a_resend(self) -> None:
        writer = await self.writer()
        first = incoming(self.alice)
        await writer.store(first)
        writer.connection_lost([identifier_of(first)])
        others = [
            incoming(self.bob),
            incoming(self.alice, self.bob),
            incoming(self.alice, octets=b"other\r\n"),
            incoming(self.alice, reverse_path=""),
            incoming(self.alice, seen_in=session(client_network="192.0.2.8/32")),
        ]
        for other in others:
            assert await writer.store(other) == Stored(identifier_of(other))
        assert (await writer.store(incoming(self.alice))).is_resend

    async def test_a_large_resend_leaves_no_pieces(self) -> None:
        writer = await self.writer(large_octets=1000)
        first, again = (incoming(self.alice, content=content_of(b"x" * 600_000)) for _ in range(2))
        await writer.store(first)
        writer.connection_lost([identifier_of(first)])
        assert await writer.store(again) == Stored(identifier_of(first), is_resend=True)
        assert self.query("SELECT DISTINCT message_id FROM message_piece") == [(identifier_of(first),)]


class LostAnswerTests(WritingTestCase):
    """The connection to the database ends between a query and its answer."""

    def setUp(self) -> None:
        super().setUp()
        self.way = UnreliableWay(reactor, self.dsn)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.way.close()))

    def count_waiting(self) -> int:
        """How many backends wait for a lock."""
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return len(self.query(waiting))

    async def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_doubled(self) -> None:
        writer = await self.writer(dsn=self.way.dsn)
        messages = [incoming(self.alice, octets=b"%d\r\n" % number) for number in range(10)]
        self.way.cut_at(b"accept_messages")
        stored = await gatherResults([writer.store(message) for message in messages])
        assert self.way.cuts == 1
        assert stored == [Stored(identifier_of(message)) for message in messages]
        assert (self.count("message"), self.count("delivery"), self.count("unconfirmed")) == (10, 10, 10)
        assert self.query("SELECT messages, uid_next FROM mailbox_usage WHERE mailbox_id = %s", (self.alice,)) == [
            (10, 11)
        ]

    async def test_a_second_attempt_waits_for_the_end_of_the_first(self) -> None:
        """The server may still be at the first when the connection is cut."""
        writer = await self.writer(dsn=self.way.dsn)
        message = incoming(self.alice)
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM mailgate.mailbox_usage FOR UPDATE")
            self.way.cut_at(b"accept_messages", before_answer_is_known=True)
            stored = writer.store(message)
            await until(reactor, lambda: self.count_waiting() == 2)
        assert await stored == Stored(identifier_of(message))
        assert (self.count("message"), self.count("delivery")) == (1, 1)

    async def test_a_lost_answer_to_a_resend_stays_a_resend(self) -> None:
        writer = await self.writer(dsn=self.way.dsn)
        first, again = incoming(self.alice), incoming(self.alice)
        await writer.store(first)
        writer.connection_lost([identifier_of(first)])
        await until(reactor, lambda: self.query("SELECT is_lost FROM unconfirmed") == [(True,)])
        self.way.cut_at(b"accept_messages")
        assert await writer.store(again) == Stored(identifier_of(first), is_resend=True)
        assert (self.way.cuts, self.count("message")) == (1, 1)

    async def test_a_large_commit_whose_answer_is_lost_is_neither_lost_nor_doubled(self) -> None:
        writer = await self.writer(dsn=self.way.dsn, large_octets=1000)
        message = incoming(self.alice, content=content_of(b"x" * 600_000))
        self.way.cut_at(b"COMMIT")
        assert await writer.store(message) == Stored(identifier_of(message))
        assert (self.way.cuts, self.count("message"), self.count("message_piece"), self.count("delivery")) == (
            1,
            1,
            3,
            1,
        )

    async def test_a_large_message_is_begun_anew_when_the_connection_is_lost_in_its_middle(self) -> None:
        writer = await self.writer(dsn=self.way.dsn, large_octets=1000)
        message = incoming(self.alice, content=content_of(b"x" * 600_000))
        self.way.cut_at(b"'UTF8')) ON CONFLICT")
        assert await writer.store(message) == Stored(identifier_of(message))
        assert (self.way.cuts, self.count("message"), self.count("message_piece")) == (1, 1, 3)

    async def test_a_message_that_heard_451_and_was_stored_is_recognised_when_it_comes_again(self) -> None:
        """Doubt must not bounce mail, and must not double it either."""
        writer = await self.writer(dsn=self.way.dsn, wait_seconds=0.5)
        first, again, new = (incoming(self.alice) for _ in range(3))
        self.way.cut_at(b"accept_messages", stay_closed=True)
        await self.unavailable(writer.store(first))
        assert self.count("message") == 1
        self.way.is_open = True
        await writer._connection.connected(10)
        assert await writer.store(again) == Stored(identifier_of(first), is_resend=True)
        writer.confirm([identifier_of(again)])
        assert await writer.store(new) == Stored(identifier_of(new))

    async def test_a_resend_that_heard_451_is_a_resend_when_it_comes_again(self) -> None:
        """What was decided of it is in the database; only its answer was lost."""
        writer = await self.writer(dsn=self.way.dsn, wait_seconds=0.5)
        first, again, once_more = (incoming(self.alice) for _ in range(3))
        await writer.store(first)
        writer.connection_lost([identifier_of(first)])
        await until(reactor, lambda: self.query("SELECT is_lost FROM unconfirmed") == [(True,)])
        self.way.cut_at(b"accept_messages", stay_closed=True)
        await self.unavailable(writer.store(again))
        self.way.is_open = True
        await writer._connection.connected(10)
        assert await writer.store(once_more) == Stored(identifier_of(first), is_resend=True)
        assert self.count("message") == 1

    async def test_a_message_that_is_stored_after_its_451_is_recognised_too(self) -> None:
        """The server comes to the end of the query long after we have given it up."""
        writer = await self.writer(wait_seconds=0.5)
        await writer._connection.execute("SET client_connection_check_interval = 0")
        first, again = incoming(self.alice), incoming(self.alice)
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM mailgate.mailbox_usage FOR UPDATE")
            await self.unavailable(writer.store(first))
            await until(reactor, lambda: not writer._notes and not writer._is_writing)
            assert self.count("message") == 0
        await until(reactor, lambda: self.count("message") == 1)
        assert await writer.store(again) == Stored(identifier_of(first), is_resend=True)

    async def test_confirmations_that_a_failed_batch_carried_are_written_later(self) -> None:
        writer = await self.writer(dsn=self.way.dsn, wait_seconds=0.5)
        first, second = incoming(self.alice), incoming(self.bob)
        await writer.store(first)
        self.way.is_open = False
        self.way.cut_at(b"accept_messages", before_answer_is_known=True, stay_closed=True)
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM mailgate.mailbox_usage FOR UPDATE")
            writer.confirm([identifier_of(first)])
            await self.unavailable(writer.store(second))
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        assert self.query("SELECT transaction_id FROM unconfirmed") == [(identifier_of(first),)]
        self.way.is_open = True
        await until(reactor, lambda: self.count("unconfirmed") == 0)

    async def test_a_message_that_heard_451_and_was_not_stored_is_new_when_it_comes_again(self) -> None:
        writer = await self.writer(dsn=self.way.dsn, wait_seconds=0.5)
        first, again = incoming(self.alice), incoming(self.alice)
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM mailgate.mailbox_usage FOR UPDATE")
            await self.unavailable(writer.store(first))
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        await writer._connection.connected(10)
        assert await writer.store(again) == Stored(identifier_of(again))


class OutageTests(WritingTestCase):
    """The database server is away for a while."""

    def setUp(self) -> None:
        self.server = postgres.private_server()
        self.addCleanup(postgres.remove_server, self.server)
        self.dsn = self.server.start()
        self.make_mailboxes()

    def make_mailboxes(self) -> None:
        from mailgate.storage.migrate import migrate

        migrate(self.dsn)
        super().make_mailboxes()

    async def test_an_outage_is_451_in_time_and_ends_by_itself(self) -> None:
        writer = await self.writer(wait_seconds=1.0, large_octets=100_000)
        before = incoming(self.alice)
        await writer.store(before)
        postgres.crash(self.server)
        began = reactor.seconds()
        during = [incoming(self.alice, octets=b"%d\r\n" % number) for number in range(300)]
        during.append(incoming(self.bob, content=content_of(b"x" * 200_000)))
        refused = [writer.store(message) for message in during]
        for waiting in refused:
            await self.unavailable(waiting)
        assert reactor.seconds() - began < 6.0
        assert writer._messages == writer._octets == 0

        self.server.start()
        await writer._connection.connected(15)
        after = incoming(self.bob)
        assert await writer.store(after) == Stored(identifier_of(after))
        assert self.query("SELECT id FROM message ORDER BY id") == [(identifier_of(before),), (identifier_of(after),)]

    async def test_a_server_that_comes_back_in_time_is_not_noticed(self) -> None:
        writer = await self.writer(wait_seconds=20.0)
        await writer.store(incoming(self.alice))
        postgres.crash(self.server)
        message = incoming(self.bob)
        stored = writer.store(message)
        await deferLater(reactor, 0.2, lambda: None)
        self.server.start()
        assert await stored == Stored(identifier_of(message))

    async def test_confirmations_survive_an_outage(self) -> None:
        writer = await self.writer(wait_seconds=0.5)
        first, again = incoming(self.alice), incoming(self.alice)
        await writer.store(first)
        postgres.crash(self.server)
        await until(reactor, lambda: not writer._connection.is_connected)
        writer.confirm([identifier_of(first)])
        await deferLater(reactor, 1.0, lambda: None)
        self.server.start()
        await writer._connection.connected(15)
        assert await writer.store(again) == Stored(identifier_of(again))


class InstanceTests(WritingTestCase):
    """Ids are unique over all nodes because instances are."""

    async def test_a_number_is_drawn_that_no_living_process_has(self) -> None:
        connection = await self.settled()
        first = await draw_instance(connection.execute)
        await self.living(first)
        await self.living(first + 1)
        self.query("SELECT setval('instance', %s, false)", (first,))
        assert await draw_instance(connection.execute) == first + 2
