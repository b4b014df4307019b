"""From acceptance to the next host: rows on a real PostgreSQL, and hosts that do as they are told."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from mailgate.outbound.holding import Holding
from mailgate.outbound.runner import QueueRunner
from mailgate.storage.queue import Queue, queue_setup
from tests.support import messages
from tests.support.messages import CONTENT, TRACE, incoming
from tests.support.queueing import GREYLISTED, UNKNOWN, FakeNet, FakeTelling, runner_on
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase


class QueueTestCase(WritingTestCase):
    """A database with mailboxes, a writer, and hosts."""

    def setUp(self) -> None:
        super().setUp()
        self.net = FakeNet(time.time)
        self.telling = FakeTelling()

    async def queue(self, instance: int = 1) -> Queue:
        claiming = await self.connection(queue_setup)
        settling = await self.connection(queue_setup)
        return Queue(claiming, settling, instance=instance, node="mx1", time=time.time)

    async def runner(self, instance: int = 1, **more: Any) -> QueueRunner:
        """A runner; not started."""
        queue = await self.queue(instance)
        runner = runner_on(reactor, queue, self.net, time.time, **({"telling": self.telling} | more))
        self.addCleanup(lambda: Deferred.fromCoroutine(runner.stop(1.0)))
        return runner

    async def accept(self, *destinations: Any, **more: Any) -> int:
        """The id of a message that was accepted."""
        if not hasattr(self, "_writer"):
            self._writer = await self.writer()
        stored = await self._writer.store(incoming(*destinations, **more))
        return stored.transaction_id

    async def drained(self) -> None:
        await until(reactor, lambda: self.count("queue") == 0, what="an empty queue")


class DeliveryTests(QueueTestCase):
    async def test_an_accepted_message_reaches_the_next_host_and_is_gone(self) -> None:
        """RFC 5321 section 4.4: without Return-Path, which is for final delivery."""
        runner = await self.runner()
        runner.start()
        await self.accept("dora@elsewhere.test")
        runner.wake()
        await self.drained()
        host = self.net.host("mx.elsewhere.test")
        assert host.seen == [("carol@example.org", ("dora@elsewhere.test",))]
        assert host.contents == [TRACE.partition(b"\r\n")[2] + CONTENT]
        assert self.count("message") == 0
        rows = self.query("SELECT recipient, result, status, reply, host, port, node FROM attempt")
        assert rows == [
            ("dora@elsewhere.test", "delivered", "2.0.0", "250 2.0.0 Ok", "mx.elsewhere.test", 25, "mx1"),
        ]

    async def test_the_queue_starts_a_new_message_at_once(self) -> None:
        """By a notification in the transaction that accepts it, not by looking every few seconds."""
        runner = await self.runner()
        control = await self.connection(queue_setup)
        runner.start(control)
        await until(reactor, lambda: not runner._is_claiming)
        began = time.monotonic()
        await self.accept("dora@elsewhere.test")
        await self.drained()
        assert time.monotonic() - began < 2.0

    async def test_a_message_that_is_in_a_mailbox_too_stays_there(self) -> None:
        runner = await self.runner()
        runner.start()
        await self.accept(self.alice, "dora@elsewhere.test")
        runner.wake()
        await self.drained()
        assert (self.count("message"), self.count("delivery")) == (1, 1)

    async def test_recipients_of_a_domain_share_a_transaction(self) -> None:
        runner = await self.runner()
        await self.accept("dora@elsewhere.test", "emil@elsewhere.test", "fritz@other.test")
        runner.start()
        await self.drained()
        assert self.net.host("mx.elsewhere.test").seen == [
            ("carol@example.org", ("dora@elsewhere.test", "emil@elsewhere.test"))
        ]
        assert self.net.host("mx.other.test").served == ["fritz@other.test"]

    async def test_each_recipient_has_the_outcome_of_its_own(self) -> None:
        """One is taken, one refused for good, one for now: one row is left, and one sender is told."""
        host = self.net.host("mx.elsewhere.test")
        host.answers = {"emil@elsewhere.test": UNKNOWN, "fritz@elsewhere.test": GREYLISTED}
        runner = await self.runner()
        await self.accept("dora@elsewhere.test", "emil@elsewhere.test", "fritz@elsewhere.test")
        runner.start()
        await until(reactor, lambda: self.count("queue") == 1)
        rows = self.query(
            "SELECT recipient, attempts, last_status, last_reply, is_ready, leased_by, due_at > now() FROM queue"
        )
        assert rows == [("fritz@elsewhere.test", 1, "4.7.1", "451 4.7.1 Greylisted, try again", False, None, True)]
        results = self.query("SELECT recipient, result FROM attempt ORDER BY 1")
        assert results == [
            ("dora@elsewhere.test", "delivered"),
            ("emil@elsewhere.test", "failed"),
            ("fritz@elsewhere.test", "deferred"),
        ]
        ((whom, told),) = self.telling.told
        assert (whom, [(each.recipient, each.action.value) for each in told]) == (
            "carol@example.org",
            [("emil@elsewhere.test", "failed")],
        )

    async def test_many_messages_go_over_few_connections(self) -> None:
        runner = await self.runner()
        writer = await self.writer()
        await gatherResults([writer.store(incoming(f"d{number}@elsewhere.test")) for number in range(300)])
        runner.start()
        await self.drained()
        host = self.net.host("mx.elsewhere.test")
        assert sorted(host.served) == sorted(f"d{number}@elsewhere.test" for number in range(300))
        assert host.connects <= 10
        assert self.count("message") == 0

    async def test_a_large_message_is_read_in_pieces(self) -> None:
        octets = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * 4094 + b"\r\n"
        octets += b"x" * 3_000_000 + b"\r\n"
        await self.accept("dora@elsewhere.test", octets=octets)
        await self.accept("emil@elsewhere.test", octets=octets[:700_000])
        got: dict[int, bytes] = {}
        queue = await self.queue(2)
        rows = await queue.claim(7, at_most=10, per_destination=10)
        assert [row.content for row in rows] == [None, None]
        holding = Holding(queue.piece)
        holding.take(7, rows, is_in_turn=True)
        for row in rows:
            content = holding[row.id].content
            pieces: list[bytes] = []
            while True:
                piece = content.piece(len(pieces))
                pieces.append(await piece if isinstance(piece, Deferred) else piece)
                if not pieces[-1]:
                    break
            got[row.id] = b"".join(pieces)
            assert len(got[row.id]) == content.size_octets
            assert max(map(len, pieces)) <= 256 * 1024
        top = TRACE.partition(b"\r\n")[2]
        assert list(got.values()) == [top + octets, top + octets[:700_000]]


class AcceptanceTests(QueueTestCase):
    async def test_a_repeated_acceptance_of_what_was_sent_on_is_not_stored_again(self) -> None:
        """The answer to COMMIT was lost, and the runner was faster than the second attempt."""
        runner = await self.runner()
        runner.start()
        writer = await self.writer()
        message = incoming("dora@elsewhere.test")
        await writer.store(message)
        runner.wake()
        await self.drained()
        assert self.count("message") == 0
        await writer.store(message)
        assert (self.count("message"), self.count("queue")) == (0, 0)

    async def test_so_it_is_for_a_large_one(self) -> None:
        runner = await self.runner()
        runner.start()
        writer = await self.writer()
        message = incoming("dora@elsewhere.test", octets=b"x" * 1_500_000 + b"\r\n")
        await writer.store(message)
        runner.wake()
        await self.drained()
        await writer.store(message)
        assert (self.count("message"), self.count("message_piece"), self.count("queue")) == (0, 0, 0)
        assert messages.TRACE
