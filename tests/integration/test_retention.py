"""Retention: what is older than it is kept goes, and nothing else."""

from __future__ import annotations

import time
from contextlib import closing
from unittest import mock

import psycopg2
from twisted.internet.defer import gatherResults

from mailgate.ids import first_id_at
from mailgate.storage import retention
from mailgate.storage.retention import Retention
from tests.support import stored_mail
from tests.support.messages import incoming
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase

DAY = 86400.0


class RetentionTests(WritingTestCase):
    async def retention(self, *, now: float | None = None, record_days: int = 90, junk_days: int = 30) -> Retention:
        moment = time.time() if now is None else now
        return Retention(
            reactor,
            await self.settled(),
            record_days=record_days,
            folder_days={"Junk": junk_days, "It's old": 1},
            time=lambda: moment,
        )

    def age(self, message_id: int, days: int) -> None:
        self.query(
            "UPDATE delivery SET delivered_at = now() - %s * interval '1 day' WHERE message_id = %s", (days, message_id)
        )

    def usage_of(self, mailbox_id: int) -> tuple[int, int]:
        rows = self.query("SELECT messages, octets FROM mailbox_usage WHERE mailbox_id = %s", (mailbox_id,))
        return rows[0][0], rows[0][1]

    def replace(self, name: str, value: float) -> None:
        patched = mock.patch.object(retention, name, value)
        patched.start()
        self.addCleanup(patched.stop)

    async def test_old_junk_goes_and_all_else_stays(self) -> None:
        old, young, kept = (
            stored_mail.deliver(self.dsn, self.alice, b"x" * 100, folder=folder, piece_octets=30)
            for folder in ("Junk", "Junk", "INBOX")
        )
        self.age(old, 31)
        self.age(young, 29)
        self.age(kept, 4000)
        await (await self.retention()).prune()
        assert self.query("SELECT message_id FROM delivery ORDER BY 1") == [(young,), (kept,)]
        assert self.query("SELECT id FROM message ORDER BY 1") == [(young,), (kept,)]
        assert self.query("SELECT DISTINCT message_id FROM message_piece ORDER BY 1") == [(young,), (kept,)]
        assert self.query("SELECT messages, octets FROM mailbox_usage WHERE mailbox_id = %s", (self.alice,)) == [
            (2, 200)
        ]

    async def test_a_message_stays_while_someone_has_it_or_it_waits_to_be_sent(self) -> None:
        shared, queued = (stored_mail.deliver(self.dsn, self.alice, b"x", folder="Junk") for _ in range(2))
        self.query(
            "INSERT INTO delivery (mailbox_id, uid, message_id, delivered_at) VALUES (%s, 1, %s, now())",
            (self.bob, shared),
        )
        self.query(
            "INSERT INTO queue (message_id, recipient, recipient_position, domain, reverse_path, sender,"
            " size_octets, created_at, starts_at, due_at, is_ready)"
            " VALUES (%s, 'd@elsewhere.test', 0, 'elsewhere.test', '', 'a@x.test', 1, now(), now(), now(), true)",
            (queued,),
        )
        self.age(queued, 40)
        self.query("UPDATE delivery SET delivered_at = now() - interval '40 days' WHERE folder = 'Junk'")
        await (await self.retention()).prune()
        assert self.query("SELECT mailbox_id, message_id FROM delivery") == [(self.bob, shared)]
        assert self.query("SELECT id FROM message ORDER BY 1") == [(shared,), (queued,)]

    async def test_more_than_one_step_holds_goes_in_several(self) -> None:
        self.replace("_AT_MOST_DELIVERIES", 3)
        for _ in range(10):
            self.age(stored_mail.deliver(self.dsn, self.alice, b"x", folder="It's old"), 2)
        await (await self.retention()).prune()
        assert (self.count("delivery"), self.count("message")) == (0, 0)
        assert self.usage_of(self.alice) == (0, 0)

    async def test_messages_that_nobody_has_go_after_an_hour(self) -> None:
        """As they are left when a mailbox is emptied."""
        self.replace("_AT_MOST_MESSAGES", 2)
        stored = [stored_mail.deliver(self.dsn, self.alice, b"x") for _ in range(5)]
        self.query("DELETE FROM delivery WHERE message_id <> %s", (stored[3],))
        await (await self.retention()).prune()
        assert self.count("message") == 5
        await (await self.retention(now=time.time() + 3700)).prune()
        assert self.query("SELECT id FROM message") == [(stored[3],)]

    async def test_the_record_is_dropped_by_months_and_made_ahead(self) -> None:
        now = time.time()
        old = stored_mail.record_transaction(
            self.dsn, first_id_at(now), disposition="refused", stage="mail", reply="550 5.7.1 No"
        )
        await (await self.retention(now=now + 40 * DAY)).prune()
        assert self.query("SELECT id FROM transaction") == [(old,)]
        await (await self.retention(now=now + 130 * DAY)).prune()
        assert self.count("transaction") == 0
        later = now + 130 * DAY + 31 * DAY
        stored_mail.record_transaction(
            self.dsn, first_id_at(later), disposition="refused", stage="mail", reply="550 No"
        )
        assert self.query("SELECT count(*) FROM transaction_default") == [(0,)]

    async def test_what_is_too_old_for_a_resend_is_forgotten(self) -> None:
        self.query(
            "INSERT INTO unconfirmed (transaction_id, resend_key, instance, accepted_at)"
            " SELECT n, gen_random_uuid(), 1, now() - n * interval '25 minutes' FROM generate_series(1, 4) AS n"
        )
        await (await self.retention()).prune()
        assert self.query("SELECT transaction_id FROM unconfirmed ORDER BY 1") == [(1,), (2,)]

    async def test_of_several_nodes_one_is_at_it(self) -> None:
        self.age(stored_mail.deliver(self.dsn, self.alice, b"x", folder="Junk"), 40)
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT mailgate.retention_is_ours()")
            assert cursor.fetchone() == (True,)
            await (await self.retention(now=time.time() + 300 * DAY)).prune()
            assert self.count("delivery") == 1
        await (await self.retention()).prune()
        assert self.count("delivery") == 0

    async def test_a_reader_of_the_record_makes_it_wait_for_the_next_time(self) -> None:
        """Writers would queue up behind it."""
        partitions = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'transaction'::regclass"
        before = set(self.query(partitions))
        with closing(psycopg2.connect(self.dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM mailgate.transaction")
            await (await self.retention(now=time.time() + 300 * DAY)).prune()
            assert set(self.query(partitions)) == before
        await (await self.retention(now=time.time() + 300 * DAY)).prune()
        assert not set(self.query(partitions)) & (before - {("transaction_default",)})

    async def test_it_begins_at_once_and_ends_when_it_is_told(self) -> None:
        self.age(stored_mail.deliver(self.dsn, self.alice, b"x", folder="Junk"), 40)
        pruning = await self.retention()
        pruning.start()
        await until(reactor, lambda: self.count("delivery") == 0, timeout_seconds=5)
        await pruning.stop()

    async def test_pruning_and_accepting_do_not_deadlock(self) -> None:
        self.replace("_AT_MOST_DELIVERIES", 5)
        self.replace("_BREATH_SECONDS", 0)
        boxes = (self.alice, self.bob, self.carol)
        for _ in range(30):
            for box in boxes:
                self.age(stored_mail.deliver(self.dsn, box, b"x", folder="Junk"), 40)
        writer = await self.writer()
        pruning = await self.retention()
        pruning.start()
        for _ in range(10):
            await gatherResults([writer.store(incoming(*boxes)) for _ in range(5)])
        await until(reactor, lambda: self.count("delivery") == 150, timeout_seconds=10)
        await pruning.stop()
        assert self.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
        assert self.query("SELECT DISTINCT messages FROM mailbox_usage") == [(50,)]
