"""Claims, leases and settlements on a real PostgreSQL."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
from twisted.internet.defer import Deferred, gatherResults

from mailgate.envelope import ForwardDestination, MailboxDestination, MailParameters, RcptParameters, Resolution
from mailgate.storage.queue import Queue, queue_setup
from mailgate.storage.queued import QueueEntry
from mailgate.storage.settlement import Attempt, DestinationNews, Ended, Kept, Lease, Notice, Settlement
from tests.support.messages import CONTENT, TRACE, incoming, recipient, session
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase


class ClaimTestCase(WritingTestCase):
    """A database with rows that SQL has made, and queues on it whose time can be moved."""

    def setUp(self) -> None:
        super().setUp()
        self.ahead = 0.0  # of the clock

    def time(self) -> float:
        return time.time() + self.ahead

    async def queue(self, instance: int = 1) -> Queue:
        claiming = await self.connection(queue_setup)
        settling = await self.connection(queue_setup)
        return Queue(
            claiming, settling, instance=instance, node=f"mx{instance}", time=self.time, server_grace_seconds=0.0
        )

    def fill(self, sender: str, domain: str, count: int) -> None:
        """So many messages for one recipient each."""
        self.query(
            "WITH new AS (INSERT INTO message (id, received_at, reverse_path, trace, content, size_octets, sha256)"
            " SELECT coalesce((SELECT max(id) FROM message), id_at(now())) + n, now(), 'carol@example.org', %(trace)s,"
            " %(content)s, %(size)s, sha256(%(content)s) FROM generate_series(1, %(count)s) AS n RETURNING id)"
            " INSERT INTO queue (message_id, recipient, domain, reverse_path, sender, size_octets, created_at,"
            " starts_at, due_at, is_ready)"
            " SELECT id, 'd' || id || '@' || %(domain)s, %(domain)s, 'carol@example.org', %(sender)s, %(size)s,"
            " now(), now(), now(), true FROM new",
            {
                "trace": TRACE,
                "content": CONTENT,
                "size": len(CONTENT) + len(TRACE),
                "count": count,
                "domain": domain,
                "sender": sender,
            },
        )

    async def claim(self, queue: Queue, number: int, **more: Any) -> Any:
        return await queue.claim(number, **({"at_most": 100, "per_destination": 100} | more))


class ClaimTests(ClaimTestCase):
    async def test_a_claim_brings_all_that_a_delivery_needs(self) -> None:
        writer = await self.writer()
        given = MailParameters(body="8BITMIME", ret="FULL", envid="it's me", requires_tls=True)
        asked = RcptParameters(frozenset({"SUCCESS", "FAILURE"}), "rfc822;d@elsewhere.test")
        to = recipient("lists@example.test", "dora@Elsewhere.TEST", parameters=asked)
        await writer.store(incoming(to, parameters=given, octets="Subject: Grüße\r\n\r\nx\r\n".encode()))
        (row,) = await self.claim(await self.queue(), 1)
        assert (row.recipient, row.domain) == ("dora@Elsewhere.TEST", "elsewhere.test")
        assert (row.reverse_path, row.original_path, row.sender) == (
            *("carol@example.org", "carol@example.org"),
            "alias:lists@example.test",
        )
        assert (row.notify, row.orcpt, row.ret, row.envid) == (
            *("FAILURE SUCCESS", "rfc822;d@elsewhere.test", "FULL", "it's me"),
        )
        assert (row.is_eight_bit, row.is_smtputf8, row.requires_tls, row.tls_is_optional) == (True, False, True, False)
        assert bytes(row.trace) == TRACE
        assert bytes(row.content) == "Subject: Grüße\r\n\r\nx\r\n".encode()

    async def test_no_row_is_claimed_twice(self) -> None:
        self.fill("carol", "elsewhere.test", 500)
        queues = [await self.queue(number) for number in (1, 2, 3)]
        claimed = await gatherResults(
            [self.as_deferred(self.claim(queue, 1, at_most=200, per_destination=200)) for queue in queues]
        )
        ids = [row.id for rows in claimed for row in rows]
        assert len(ids) == len(set(ids)) <= 500
        assert len(ids) >= 400

    def as_deferred(self, coroutine: Any) -> Any:
        return Deferred.fromCoroutine(coroutine)

    async def test_senders_share_a_claim_fairly(self) -> None:
        """A newsletter of a hundred thousand does not keep a letter waiting."""
        self.fill("newsletter", "elsewhere.test", 60_000)
        for number in range(40):
            self.fill("newsletter", f"d{number}.test", 1000)
        self.fill("zoe", "elsewhere.test", 3)
        self.fill("anna", "other.test", 1)
        self.query("ANALYZE queue")
        queue = await self.queue()
        rows = await self.claim(queue, 1)
        by_sender = {row.sender for row in rows}
        assert by_sender == {"newsletter", "zoe", "anna"}
        assert sum(row.sender == "zoe" for row in rows) == 3
        assert len(rows) >= 50

    async def test_the_work_of_a_claim_goes_by_what_it_takes_and_not_by_what_waits(self) -> None:
        """100,000 rows wait for destinations that are paused, backed off or full: they are passed over unseen."""
        for name in ("backed-off.test", "full.test", "paused.test"):
            self.fill("newsletter", name, 33_000)
        self.fill("newsletter", "elsewhere.test", 1000)
        self.query(
            "INSERT INTO destination (name, is_paused, backed_off_until, failures) VALUES"
            " ('paused.test', true, NULL, 0), ('backed-off.test', false, now() + interval '1 hour', 1)"
        )
        self.query("VACUUM ANALYZE queue")
        with closing(psycopg2.connect(self.dsn)) as database, database.cursor() as cursor:
            cursor.execute("SET search_path = mailgate")
            cursor.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT claim_queue(1, 1, extract(epoch FROM now())::float8,"
                " 300, 100, 1000000, 1000, 100, '{full.test}', '{}', '', '{}', '{}')"
            )
            ((((plan,),)),) = [cursor.fetchall()[0]]
            cursor.execute("SELECT DISTINCT domain, count(*) FROM queue WHERE leased_by = 1 GROUP BY 1")
            assert cursor.fetchall() == [("elsewhere.test", 100)]
        blocks = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        # A hundred rows are found, locked, and written with an entry in each of five indexes.
        assert blocks < 100 * 40
        assert plan["Execution Time"] < 200.0

    async def test_destinations_of_a_sender_take_turns(self) -> None:
        for name in ("a.test", "b.test", "c.test"):
            self.fill("newsletter", name, 50)
        queue = await self.queue()
        first = await self.claim(queue, 1, at_most=60)
        assert [row.domain for row in first] == ["a.test"] * 50 + ["b.test"] * 10
        after = {"newsletter": "b.test"}
        second = await self.claim(queue, 2, at_most=60, after_sender="newsletter", after_domains=after)
        assert sorted({row.domain for row in second}) == ["b.test", "c.test"]
        assert sum(row.domain == "c.test" for row in second) == 50

    async def test_no_more_is_taken_of_a_destination_than_is_asked_for(self) -> None:
        self.fill("newsletter", "a.test", 50)
        self.fill("newsletter", "b.test", 50)
        rows = await self.claim(await self.queue(), 1, per_destination=20)
        assert [row.domain for row in rows] == ["a.test"] * 20 + ["b.test"] * 20

    async def test_a_destination_that_was_in_trouble_gets_a_few_messages_first(self) -> None:
        self.fill("newsletter", "a.test", 50)
        self.query(
            "INSERT INTO destination (name, backed_off_until, failures) VALUES ('a.test', now() - interval '1 s', 3)"
        )
        assert len(await self.claim(await self.queue(), 1)) == 5

    def fill_domains(self, sender: str, count: int) -> None:
        """A message to each of so many domains that are backed off."""
        self.fill(sender, "a.test", count)
        self.query("UPDATE queue SET domain = 'a' || id || '.test' WHERE domain = 'a.test'")
        self.query(
            "INSERT INTO destination (name, backed_off_until, failures)"
            " SELECT DISTINCT domain, now() + interval '1 hour', 1 FROM queue ON CONFLICT DO NOTHING"
        )

    async def test_very_many_destinations_in_trouble_keep_no_others_from_their_turn(self) -> None:
        """Neither those of the same sender nor those of the next."""
        self.fill_domains("newsletter", 8_000)
        self.fill("newsletter", "well.test", 1)
        self.fill("zoe", "well.test", 1)
        self.query("VACUUM ANALYZE queue")
        queue = await self.queue()
        began = time.monotonic()
        rows = await self.claim(queue, 1)
        seconds = time.monotonic() - began
        assert sorted(row.sender for row in rows) == ["newsletter", "zoe"]
        assert seconds < 2.0  # 0.1 as a rule: the names of what is away are looked up, not gone through

    async def test_more_destinations_in_trouble_than_a_claim_passes_over_delay_others_only(self) -> None:
        self.fill_domains("newsletter", 25_000)
        self.fill("newsletter", "well.test", 1)
        self.fill("zoe", "well.test", 1)
        self.query("VACUUM ANALYZE queue")
        queue = await self.queue()
        senders = set()
        for number in range(1, 40):
            senders |= {row.sender for row in await self.claim(queue, number)}
            if len(senders) == 2:
                break
            if number == 1:
                assert "zoe" in senders
        assert senders == {"newsletter", "zoe"}

    async def test_senders_that_have_mail_for_a_paused_destination_alone_keep_no_others_from_their_turn(self) -> None:
        self.fill("carol", "paused.test", 120)
        self.query("UPDATE queue SET sender = 'carol' || id")
        self.query("INSERT INTO destination (name, is_paused) VALUES ('paused.test', true)")
        self.fill("zoe", "well.test", 1)
        assert [row.sender for row in await self.claim(await self.queue(), 1)] == ["zoe"]

    async def test_held_rows_and_rows_that_are_not_due_are_let_alone(self) -> None:
        self.fill("carol", "a.test", 3)
        self.query("UPDATE queue SET is_held = true WHERE id = (SELECT min(id) FROM queue)")
        self.query(
            "UPDATE queue SET is_ready = false, due_at = now() + interval '1 hour'"
            " WHERE id = (SELECT max(id) FROM queue)"
        )
        queue = await self.queue()
        assert len(await self.claim(queue, 1)) == 1
        self.ahead = 3700.0
        assert len(await self.claim(queue, 2)) == 1

    async def test_mail_that_is_to_be_held_waits_for_its_time(self) -> None:
        """RFC 4865 section 4: FUTURERELEASE."""
        writer = await self.writer()
        given = MailParameters(hold_until=time.time() + 3600)
        await writer.store(incoming("dora@elsewhere.test", parameters=given))
        queue = await self.queue()
        assert await self.claim(queue, 1) == []
        self.ahead = 3700.0
        assert len(await self.claim(queue, 2)) == 1

    async def test_contents_of_a_claim_are_bounded(self) -> None:
        self.fill("carol", "a.test", 60)
        self.query(
            "UPDATE message SET content = convert_to(repeat('x', 250000), 'UTF8'), size_octets = 250000;"
            "UPDATE queue SET size_octets = 250100"
        )
        rows = await self.claim(await self.queue(), 1)
        assert len(rows) == 34  # eight mebibytes, and the last one may exceed it

    async def test_what_is_overdue_is_claimed_whatever_its_destination(self) -> None:
        self.fill("carol", "paused.test", 2)
        self.query("INSERT INTO destination (name, is_paused) VALUES ('paused.test', true)")
        queue = await self.queue()
        limits: dict[str, Any] = {"delay_seconds": 14_400.0, "give_up_seconds": 432_000.0, "at_most": 10}
        assert await queue.claim_overdue(1, **limits) == []
        self.ahead = 14_500.0
        rows = await queue.claim_overdue(2, **limits)
        assert [row.is_delayed for row in rows] == [False, False]
        await queue.settle(Settlement(kept=[Kept(Lease(row.id, 2), is_delayed=True) for row in rows]))
        assert await queue.claim_overdue(3, **limits) == []
        self.ahead = 432_100.0
        rows = await queue.claim_overdue(4, **limits)
        assert [row.is_delayed for row in rows] == [True, True]


class LeaseTests(ClaimTestCase):
    def let_leases_age(self, seconds: float) -> None:
        """They go by the server's clock."""
        self.query("UPDATE queue SET leased_until = leased_until - make_interval(secs => %(by)s)", {"by": seconds})

    async def test_a_lease_that_is_not_renewed_ends(self) -> None:
        self.fill("carol", "a.test", 1)
        first, second = await self.queue(1), await self.queue(2)
        control = await self.living(1)
        assert control.is_connected
        await self.claim(first, 1)
        await second.renew([], [], is_steady=True)
        assert await self.claim(second, 1) == []
        self.let_leases_age(400.0)
        await second.renew([], [], is_steady=False)
        assert await self.claim(second, 2) == []
        await second.renew([], [], is_steady=True)
        assert len(await self.claim(second, 3)) == 1

    async def test_a_renewed_lease_holds(self) -> None:
        self.fill("carol", "a.test", 1)
        first, second = await self.queue(1), await self.queue(2)
        await self.claim(first, 1)
        self.let_leases_age(250.0)
        await first.renew([1], [], is_steady=True)
        self.let_leases_age(150.0)
        await second.renew([], [], is_steady=True)
        assert await self.claim(second, 1) == []

    async def test_a_clock_that_is_ahead_ends_nobodys_lease(self) -> None:
        """Or whatever the other nodes have under way would be sent twice."""
        self.fill("carol", "a.test", 1)
        first, second = await self.queue(1), await self.queue(2)
        control = await self.living(1)
        assert control.is_connected
        await self.claim(first, 1)
        self.ahead = 3600.0
        await second.renew([], [], is_steady=True)
        assert await self.claim(second, 1) == []

    async def test_what_a_dead_instance_had_is_taken_over_when_it_seems_dead_twice(self) -> None:
        self.fill("carol", "a.test", 1)
        first, second = await self.queue(1), await self.queue(2)
        control = await self.living(1)
        await self.claim(first, 1)
        assert await second.renew([], [], is_steady=True) == []
        await control.stop()
        await until(reactor, lambda: not self.query("SELECT instance_is_alive(1)")[0][0])
        dead = await second.renew([], [], is_steady=True)
        assert dead == [1]
        assert await self.claim(second, 1) == []
        await second.renew([], dead, is_steady=True)
        assert len(await self.claim(second, 2)) == 1

    async def test_a_claim_whose_answer_was_lost_is_let_go_of(self) -> None:
        self.fill("carol", "a.test", 2)
        queue = await self.queue()
        await self.claim(queue, 1, at_most=1)
        await self.claim(queue, 2, at_most=1)
        await queue.renew([2], [], is_steady=True)
        assert len(await self.claim(queue, 3)) == 1

    async def test_a_word_that_comes_late_changes_nothing(self) -> None:
        """The row was taken over; the first claimer's failure does not count, and nobody is told of it."""
        self.fill("carol", "a.test", 1)
        first, second = await self.queue(1), await self.queue(2)
        (row,) = await self.claim(first, 1)
        await first.renew([], [], is_steady=True)
        assert len(await self.claim(second, 1)) == 1
        await first.settle(Settlement(kept=[Kept(Lease(row.id, 1), due_at=time.time() + 999, is_attempt=True)]))
        late = Lease(row.id, 1)
        notice = Notice(77, b"", CONTENT, (late,), False, (MailboxDestination(self.alice, "alice@example.test"),))
        settled = await first.settle(Settlement(ended=[Ended(late, is_delivered=False)], notices=[notice]))
        assert settled.disowned == (77,)
        assert self.query("SELECT leased_by, attempts FROM queue") == [(2, 0)]
        assert self.count("delivery") == 0

    async def test_what_was_delivered_goes_whoever_has_it(self) -> None:
        self.fill("carol", "a.test", 1)
        first, second = await self.queue(1), await self.queue(2)
        (row,) = await self.claim(first, 1)
        await first.renew([], [], is_steady=True)
        await self.claim(second, 1)
        await first.settle(Settlement(ended=[Ended(Lease(row.id, 1), is_delivered=True)]))
        assert (self.count("queue"), self.count("message")) == (0, 0)


class SettlementTests(ClaimTestCase):
    async def test_a_notice_to_a_mailbox_comes_with_what_it_tells_of_and_once(self) -> None:
        self.fill("carol", "a.test", 1)
        queue = await self.queue()
        (row,) = await self.claim(queue, 1)
        lease = Lease(row.id, 1)
        settlement = Settlement(
            ended=[Ended(lease, is_delivered=False)],
            attempts=[Attempt(row.message_id, row.id, row.recipient, 1.0e9, 0.5, "failed", "5.1.1", "550 5.1.1 No")],
            notices=[
                Notice(
                    *(row.message_id + 1000, b"Return-Path: <>\r\n", CONTENT, (lease,), False),
                    (MailboxDestination(self.alice, "alice@example.test"),),
                )
            ],
        )
        settled = await queue.settle(settlement)
        assert settled.usage == ((self.alice, len(CONTENT)),)
        await queue.settle(settlement)
        counts = [self.count(table) for table in ("queue", "delivery", "attempt", "message")]
        assert counts == [0, 1, 1, 1]
        assert self.query("SELECT subject, reverse_path FROM message") == [("Hello", "")]

    async def test_a_notice_to_elsewhere_is_queued(self) -> None:
        self.fill("carol", "a.test", 1)
        queue = await self.queue()
        (row,) = await self.claim(queue, 1)
        lease = Lease(row.id, 1)
        identifier = row.message_id + 1000
        entry = QueueEntry(
            message_id=identifier,
            recipient="carol@example.org",
            reverse_path="",
            sender="mailgate",
            size_octets=len(CONTENT),
            created_at=time.time(),
        )
        notice = Notice(identifier, b"", CONTENT, (lease,), False, entries=(entry,))
        await queue.settle(Settlement(ended=[Ended(lease, is_delivered=False)], notices=[notice]))
        (found,) = await self.claim(queue, 2)
        assert (found.recipient, found.reverse_path, found.sender) == ("carol@example.org", "", "mailgate")

    async def test_trouble_doubles_the_time_and_success_ends_it(self) -> None:
        queue = await self.queue()
        waits = []
        for _ in range(9):
            await queue.settle(Settlement(destinations={"a.test": DestinationNews("a.test", "Connection refused")}))
            # Another node has the same trouble at the same time: it counts once.
            await queue.settle(Settlement(destinations={"a.test": DestinationNews("a.test", "Connection refused")}))
            (state,) = await queue.destinations()
            assert state.backed_off_until is not None
            waits.append(round(state.backed_off_until - self.time()))
            self.ahead += waits[-1] + 1
        assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
        await queue.settle(Settlement(destinations={"a.test": DestinationNews("a.test", None)}))
        assert await queue.destinations() == []

    async def test_a_paused_destination_stays_paused(self) -> None:
        self.query("INSERT INTO destination (name, is_paused, reason) VALUES ('a.test', true, 'Maintenance')")
        queue = await self.queue()
        await queue.settle(Settlement(destinations={"a.test": DestinationNews("a.test", None)}))
        ((state),) = await queue.destinations()
        assert (state.is_paused, state.reason) == (True, "Maintenance")


class EntryTests(ClaimTestCase):
    """RFC 3461 section 5.2.7: what an alias does to a request for notices."""

    async def entries(self, *destinations: Any, notify: frozenset[str] | None, **more: Any) -> list[tuple[Any, ...]]:
        writer = await self.writer()
        to = recipient("lists@example.test", *destinations, parameters=RcptParameters(notify, "rfc822;x@example.test"))
        await writer.store(incoming(to, **more))
        return self.query("SELECT recipient, notify, orcpt, done FROM queue ORDER BY id")

    async def test_an_alias_of_one_address_hands_the_request_on(self) -> None:
        rows = await self.entries("d@elsewhere.test", notify=frozenset({"SUCCESS"}))
        assert rows == [("d@elsewhere.test", ["SUCCESS"], "rfc822;x@example.test", None)]

    async def test_one_of_several_keeps_what_concerns_failure_and_its_expansion_is_told(self) -> None:
        rows = await self.entries("d@elsewhere.test", "e@other.test", notify=frozenset({"SUCCESS", "FAILURE"}))
        assert rows == [
            ("d@elsewhere.test", ["FAILURE"], "rfc822;x@example.test", None),
            ("e@other.test", ["FAILURE"], "rfc822;x@example.test", None),
            ("lists@example.test", ["SUCCESS"], "rfc822;x@example.test", "expanded"),
        ]

    async def test_a_mailbox_has_its_success_told(self) -> None:
        rows = await self.entries(self.alice, notify=frozenset({"SUCCESS"}))
        assert rows == [("lists@example.test", ["SUCCESS"], "rfc822;x@example.test", "delivered")]

    async def test_nobody_is_told_who_did_not_ask_or_has_no_address(self) -> None:
        assert await self.entries(self.alice, notify=None) == []
        assert await self.entries(self.alice, notify=frozenset({"SUCCESS"}), reverse_path="") == []

    async def test_the_account_shares_the_queue_and_not_the_alias(self) -> None:
        writer = await self.writer()
        seen_in = replace(session(), authenticated="alice@example.test")
        await writer.store(incoming("d@elsewhere.test", seen_in=seen_in))
        assert self.query("SELECT sender FROM queue") == [("alice@example.test",)]

    async def test_a_forward_is_sent_with_the_path_that_was_made_for_it(self) -> None:
        """And its failure is told to the message's own."""
        writer = await self.writer()
        note = Resolution((ForwardDestination("d@elsewhere.test", "SRS0=x@example.test"),))
        await writer.store(incoming(replace(recipient("lists@example.test", "d@elsewhere.test"), notes=(note,))))
        (row,) = await self.claim(await self.queue(), 1)
        assert (row.reverse_path, row.original_path) == ("SRS0=x@example.test", "carol@example.org")
