"""The writer: what a committed message leaves in the database, and how messages share a transaction."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import closing
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import psutil
import psycopg2
from twisted.internet.defer import gatherResults
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from mailgate.envelope import MailParameters, RcptParameters
from mailgate.ids import encode_id
from mailgate.policy.stage import TlsState
from mailgate.policy.verdict import Fate, Quarantine
from mailgate.smtp.reply import reply
from mailgate.storage.mailbox import MAX_BATCH_MESSAGES, pieces_of
from mailgate.storage.records import Disposition, Stored
from tests.support import messages
from tests.support.messages import CONTENT, TRACE, incoming, recipient
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase


class StoreTests(WritingTestCase):
    async def test_a_stored_message_is_there_with_its_delivery(self) -> None:
        """RFC 5321 section 4.2.5: with the 250 the message is our responsibility."""
        writer = await self.writer()
        message = incoming(self.alice)
        assert await writer.store(message) == Stored(message.transaction.id)
        identifier = message.transaction.id
        ((octets, size, sha256),) = self.query("SELECT message_octets(id), size_octets, sha256 FROM message")
        assert octets.tobytes() == TRACE + CONTENT
        assert (size, sha256.tobytes()) == (len(CONTENT), message.content.sha256)
        rows = self.query("SELECT mailbox_id, uid, message_id, folder, flags, detail FROM delivery")
        assert rows == [(self.alice, 1, identifier, "INBOX", [], None)]

    async def test_octets_of_any_kind_are_stored_as_they_came(self) -> None:
        writer = await self.writer()
        contents = [
            bytes(range(256)) * 20,
            "Grüße\r\n".encode("iso-8859-1") * 3000,
            "'\\x41' Zażółć\r\n".encode() * 500,
            b"",
            b"\xff\xfe'" * 1000,
        ]
        await gatherResults([writer.store(incoming(self.alice, octets=octets)) for octets in contents])
        rows = self.query("SELECT content FROM message ORDER BY id")
        assert [row[0].tobytes() for row in rows] == contents

    async def test_the_transaction_and_all_its_recipients_are_kept_with_the_message(self) -> None:
        writer = await self.writer()
        unknown = reply(550, "5.1.1", "No such mailbox here")
        message = incoming(
            recipient(
                "alice+lists@example.test",
                self.alice,
                detail="lists",
                parameters=RcptParameters(frozenset({"SUCCESS", "FAILURE"}), "rfc822;alice@elsewhere.test"),
            ),
            recipient("nobody@example.test", answer=unknown),
            seen_in=messages.session(tls=TlsState("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)),
            parameters=MailParameters(body="8BITMIME", ret="HDRS", envid="it's me"),
        )
        await writer.store(message)
        transaction = self.query(
            "SELECT id, session_id, node, listener, host(client_address), helo, protocol, reverse_path, body,"
            " is_smtputf8, ret, envid, disposition, stage, policy, reply, size_octets FROM transaction"
        )
        assert transaction == [
            (
                *(message.transaction.id, message.session.id, "mx1", "mx", "192.0.2.7", "client.example.org", "ESMTPS"),
                *("carol@example.org", "8BITMIME", False, "HDRS", "it's me", "accepted", "end_of_data", None),
                *("250 2.0.0 Ours", len(CONTENT)),
            )
        ]
        recipients = self.query("SELECT position, forward_path, is_accepted, notify, orcpt FROM recipient ORDER BY 1")
        assert recipients == [
            (0, "alice+lists@example.test", True, ["FAILURE", "SUCCESS"], "rfc822;alice@elsewhere.test"),
            (1, "nobody@example.test", False, None, None),
        ]
        assert self.query("SELECT detail FROM delivery") == [("lists",)]

    async def test_a_message_for_many_is_kept_once_and_delivered_once_to_each(self) -> None:
        writer = await self.writer()
        message = incoming(self.alice, self.bob, self.alice, "dave@elsewhere.test", "dave@elsewhere.test")
        await writer.store(message)
        assert self.count("message") == 1
        assert self.query("SELECT mailbox_id FROM delivery ORDER BY 1") == [(self.alice,), (self.bob,)]
        rows = self.query("SELECT message_id, recipient, recipient_position FROM queue")
        assert rows == [(message.transaction.id, "dave@elsewhere.test", 3)]

    async def test_a_refused_recipient_gets_nothing(self) -> None:
        writer = await self.writer()
        refused = recipient("bob@example.test", self.bob, answer=reply(452, "4.2.2", "Full"))
        await writer.store(incoming(self.alice, refused))
        assert self.query("SELECT mailbox_id FROM delivery") == [(self.alice,)]

    async def test_a_quarantined_message_is_in_junk(self) -> None:
        writer = await self.writer()
        await writer.store(incoming(self.alice, disposition=Disposition.QUARANTINED))
        assert self.query("SELECT folder, disposition FROM delivery, transaction") == [("Junk", "quarantined")]

    async def test_junk_is_not_forwarded(self) -> None:
        """Who forwards it is taken for its source: neither all of a message nor one recipient's copy of it."""
        writer = await self.writer()
        for message in (
            incoming(self.alice, "dave@elsewhere.test", disposition=Disposition.QUARANTINED),
            incoming(
                self.alice,
                replace(recipient("list@example.test", "dave@elsewhere.test"), fate=Fate(Quarantine("odd"), "taste")),
            ),
        ):
            await writer.store(message)
        assert self.query("SELECT mailbox_id FROM delivery") == [(self.alice,), (self.alice,)]
        assert self.count("queue") == 0

    async def test_header_fields_are_shown_as_people_read_them(self) -> None:
        writer = await self.writer()
        header = b"From: =?utf-8?q?Gr=C3=BC=C3=9Fe?= <g@example.org>\r\nSubject: x\0y\r\n\xff\xfe\r\n\r\n"
        await writer.store(incoming(self.alice, octets=header))
        await writer.store(incoming(self.alice, octets=b"no header at all"))
        rows = self.query("SELECT header_from, subject, header_message_id FROM message ORDER BY id")
        assert rows[0][0] == "Grüße <g@example.org>"
        assert rows[1] == (None, None, None)

    async def test_uids_grow_in_each_mailbox_by_itself(self) -> None:
        """RFC 9051 section 2.3.1.1."""
        writer = await self.writer()
        stored = [incoming(self.alice, self.bob), incoming(self.alice), incoming(self.bob), incoming(self.alice)]
        await writer.store(stored[0])  # in a batch of its own
        await gatherResults([writer.store(message) for message in stored[1:]])
        ids = [message.transaction.id for message in stored]
        rows = self.query("SELECT uid, message_id FROM delivery WHERE mailbox_id = %s ORDER BY 1", (self.alice,))
        assert rows == [(1, ids[0]), (2, ids[1]), (3, ids[3])]
        rows = self.query("SELECT uid, message_id FROM delivery WHERE mailbox_id = %s ORDER BY 1", (self.bob,))
        assert rows == [(1, ids[0]), (2, ids[2])]

    async def test_usage_is_counted_and_told(self) -> None:
        writer = await self.writer()
        await gatherResults([writer.store(incoming(self.alice)), writer.store(incoming(self.alice, self.bob))])
        size = len(CONTENT)
        rows = self.query(
            "SELECT mailbox_id, messages, octets, uid_next FROM mailbox_usage WHERE messages > 0 ORDER BY 1"
        )
        assert rows == [(self.alice, 2, 2 * size, 3), (self.bob, 1, size, 2)]
        assert self.used == {self.alice: 2 * size, self.bob: size}

    async def test_whoever_hears_of_usage_can_not_keep_the_250_from_the_client(self) -> None:
        writer = await self.writer()
        writer._usage = mock.Mock(side_effect=RuntimeError("a defect"))
        await gatherResults([writer.store(incoming(self.alice)), writer.store(incoming(self.bob))])
        assert len(self.flushLoggedErrors(RuntimeError)) == 2  # type: ignore[no-untyped-call]  # Twisted has no type

    async def test_new_mail_is_announced_after_commit(self) -> None:
        listener = await self.settled()
        heard: list[dict[str, int]] = []
        listener.listen("newmail", lambda payload: heard.append(json.loads(payload)))
        await listener.execute("SELECT 1")
        writer = await self.writer()
        await writer.store(incoming(self.alice, self.bob))
        await until(reactor, lambda: len(heard) == 2)
        assert sorted(heard, key=lambda each: each["mailbox"]) == [
            {"mailbox": self.alice, "uid": 1},
            {"mailbox": self.bob, "uid": 1},
        ]

    async def test_a_message_that_leads_nowhere_is_not_answered_with_250(self) -> None:
        writer = await self.writer()
        await self.unavailable(writer.store(incoming(recipient("alice@example.test"))))
        assert self.count("message") == 0


class BatchTests(WritingTestCase):
    async def test_messages_that_wait_share_a_transaction(self) -> None:
        writer = await self.writer()
        await gatherResults([writer.store(incoming(self.alice)) for _ in range(30)])
        assert self.query("SELECT count(DISTINCT xmin::text), count(*) FROM message") == [(1, 30)]

    async def test_messages_that_come_during_a_commit_share_the_next(self) -> None:
        writer = await self.writer()
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM mailgate.mailbox_usage FOR UPDATE")
            first = writer.store(incoming(self.alice))
            await until(reactor, lambda: self.query("SELECT 1 FROM pg_locks WHERE NOT granted"))
            rest = [writer.store(incoming(self.alice)) for _ in range(10)]
        await gatherResults([first, *rest])
        assert self.query("SELECT count(DISTINCT xmin::text), count(*) FROM message") == [(2, 11)]

    async def test_a_batch_is_bounded_in_messages_and_in_octets(self) -> None:
        writer = await self.writer()
        await gatherResults([writer.store(incoming(self.alice)) for _ in range(MAX_BATCH_MESSAGES + 1)])
        assert self.query("SELECT count(*) FROM message GROUP BY xmin::text ORDER BY 1") == [
            (1,),
            (MAX_BATCH_MESSAGES,),
        ]
        self.query("TRUNCATE message CASCADE")
        contents = [b"%d" % number + b"x" * 1_000_000 for number in range(6)]
        await gatherResults([writer.store(incoming(self.alice, octets=octets)) for octets in contents])
        assert self.query("SELECT count(*) FROM message GROUP BY xmin::text ORDER BY 1") == [(2,), (4,)]

    async def test_one_that_can_not_be_written_does_not_keep_the_others_from_it(self) -> None:
        """A mailbox may be removed between RCPT and the end of data; the client of that message alone hears 451."""
        writer = await self.writer()
        self.query("DELETE FROM mailbox WHERE id = %s", (self.carol,))
        good = [incoming(self.alice, self.bob) for _ in range(10)]
        stored = [writer.store(message) for message in good]
        stored.insert(4, writer.store(incoming(self.carol)))
        await self.unavailable(stored.pop(4))
        await gatherResults(stored)
        assert self.count("message") == 10
        assert self.query("SELECT messages FROM mailbox_usage ORDER BY mailbox_id") == [(10,), (10,)]

    async def test_what_the_database_refused_is_one_line_of_the_log(self) -> None:
        """It says which message and why; the statement and its context would be kilobytes, with text from strangers."""
        writer = await self.writer()
        self.query("DELETE FROM mailbox WHERE id = %s", (self.carol,))
        events: list[LogEvent] = []
        observer = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        message = incoming(recipient("carol@example.test", self.carol))
        await self.unavailable(writer.store(message))
        (line,) = [formatEvent(event) for event in events if event["log_namespace"] == "mailgate.storage.mailbox"]
        assert line == (
            f"message {encode_id(message.transaction.id)} for carol@example.test can't be written: null value in"
            ' column "uid" of relation "delivery" violates not-null constraint (SQLSTATE 23502)'
        )

    async def test_an_id_that_another_message_has_is_refused(self) -> None:
        writer = await self.writer()
        first = incoming(self.alice)
        await writer.store(first)
        self.query("UPDATE message SET sha256 = sha256('other')")
        await self.unavailable(writer.store(first))

    async def test_what_waits_is_bounded(self) -> None:
        """Beyond the bound the client hears 451 at once; memory is not the place to keep mail."""
        writer = await self.writer(max_waiting_messages=3, max_waiting_octets=10_000)
        stored = [writer.store(incoming(self.alice)) for _ in range(3)]
        await self.unavailable(writer.store(incoming(self.alice)))
        await gatherResults(stored)
        await self.unavailable(writer.store(incoming(self.alice, octets=b"x" * 10_001)))
        await writer.store(incoming(self.alice, octets=b"x" * 9_000))

    async def test_a_canceled_wait_does_not_harm_the_others(self) -> None:
        """A client that has gone can't take its message back once it is on its way."""
        writer = await self.writer()
        gone, other = writer.store(incoming(self.alice)), writer.store(incoming(self.alice))
        gone.addErrback(lambda failure: None)
        gone.cancel()
        await other
        assert self.count("message") == 2

    async def test_writers_that_lock_the_same_mailboxes_do_not_deadlock(self) -> None:
        await self.living(1)
        await self.living(2)
        one, two = await self.writer(instance=1), await self.writer(instance=2)
        boxes = (self.alice, self.bob, self.carol)
        for _ in range(10):
            await gatherResults(
                [one.store(incoming(*boxes)) for _ in range(5)]
                + [two.store(incoming(*reversed(boxes))) for _ in range(5)]
            )
        assert self.query("SELECT messages, uid_next FROM mailbox_usage") == [(100, 101)] * 3
        rows = self.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert rows == [(0,)]

    async def test_after_stop_nothing_is_taken_and_what_waited_is_stored(self) -> None:
        writer = await self.writer()
        stored = writer.store(incoming(self.alice))
        await writer.stop()
        assert stored.called
        await stored
        await self.unavailable(writer.store(incoming(self.alice)))


class LargeTests(WritingTestCase):
    """Messages too large to be handled in one piece."""

    def octets(self, size: int) -> bytes:
        return (CONTENT + "Ein großer Brief, it's large\r\n".encode("iso-8859-1") * (size // 30))[:size]

    async def test_a_large_message_is_stored_in_pieces_and_comes_back_whole(self) -> None:
        writer = await self.writer(large_octets=100_000)
        octets = self.octets(1_000_000)
        message = incoming(self.alice, "dave@elsewhere.test", content=messages.content_of(octets, piece_octets=70_001))
        assert await writer.store(message) == Stored(message.transaction.id)
        assert self.query("SELECT content, size_octets FROM message") == [(None, len(octets))]
        assert self.query("SELECT count(*), max(length(octets)) FROM message_piece") == [(4, 262_144)]
        ((whole,),) = self.query("SELECT message_octets(id) FROM message")
        assert whole.tobytes() == TRACE + octets
        assert self.query("SELECT header_from FROM message") == [("Carol <carol@example.org>",)]
        assert (self.count("delivery"), self.count("queue")) == (1, 1)

    async def test_a_large_message_that_can_not_be_written_leaves_nothing(self) -> None:
        writer = await self.writer(large_octets=1000)
        self.query("DELETE FROM mailbox WHERE id = %s", (self.carol,))
        await self.unavailable(writer.store(incoming(self.carol, octets=self.octets(300_000))))
        assert (self.count("message_piece"), self.count("message")) == (0, 0)
        for _ in range(4):  # on the same connections
            await writer.store(incoming(self.alice, octets=self.octets(300_000)))

    async def test_a_message_without_all_of_its_pieces_is_not_accepted(self) -> None:
        """As when the connection is replaced half-way, and the rest runs outside of the transaction."""
        writer = await self.writer(large_octets=1000)
        connection = writer._idle_big[0]
        pieces: list[bytes] = []
        execute = connection.execute

        async def replace_after_last_piece(statement: bytes, **keywords: Any) -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = await execute(statement, **keywords)
            if b"INSERT INTO mailgate.message_piece" in statement:
                pieces.append(statement)
                if len(pieces) == 3:
                    await execute("ROLLBACK")
            return rows

        octets = self.octets(600_000)
        with mock.patch.object(connection, "execute", replace_after_last_piece):
            await writer.store(incoming(self.alice, octets=octets))
        ((whole,),) = self.query("SELECT message_octets(id) FROM message")
        assert len(pieces) == 6
        assert whole.tobytes() == TRACE + octets

    async def test_the_largest_message_is_never_held_a_second_time(self) -> None:
        """Whatever its recipients: at most twice its size in all, and the content itself is once."""
        writer = await self.writer()
        size = 25 * 1024 * 1024
        content = messages.content_of(CONTENT + b"it's \xe9 \\ x\r\n" * (size // 11), piece_octets=65_536)
        recipients = [recipient(f"alice+{number}@example.test", self.alice) for number in range(1000)]
        message = incoming(*recipients, content=content)
        process = psutil.Process()
        before = process.memory_info().rss
        resident: list[int] = []
        executes = [(connection, connection.execute) for connection in writer._idle_big]
        for connection, execute in executes:

            async def measured(
                statement: bytes, *, execute: Any = execute, **keywords: Any
            ) -> list[tuple[Any, ...]]:  # Any: passed on
                rows: list[tuple[Any, ...]] = await execute(statement, **keywords)
                resident.append(process.memory_info().rss)
                return rows

            self.enterContext(mock.patch.object(connection, "execute", measured))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        stored = writer.store(message)
        await stored
        _, peak = tracemalloc.get_traced_memory()
        assert len(resident) > 100
        assert peak < 6 * 1024 * 1024
        assert max(resident) - before < size
        assert self.query("SELECT size_octets FROM message") == [(content.size_octets,)]

    async def test_more_large_messages_than_connections_are_all_stored(self) -> None:
        writer = await self.writer(large_octets=1000)
        octets = [b"%d\r\n" % number + self.octets(300_000) for number in range(6)]
        await gatherResults([writer.store(incoming(self.alice, octets=each)) for each in octets])
        assert self.count("message") == 6


def test_pieces_have_the_wanted_size_and_the_same_octets() -> None:
    """Whatever the pieces in which the message came."""
    for cuts in ([b""], [b"abc"], [b"ab", b"", b"cdefg", b"h"], [b"a"] * 10, [b"abcdefghijkl"], []):
        for octets in (1, 2, 3, 5, 100):
            made = list(pieces_of(cuts, octets))
            assert b"".join(made) == b"".join(cuts)
            assert all(len(piece) == octets for piece in made[:-1])
            assert all(0 < len(piece) <= octets for piece in made)
