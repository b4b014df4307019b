"""The journal: what happened is kept, behind the reply, within bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from mailgate.envelope import RcptParameters
from mailgate.policy.fingerprint import configuration_of
from mailgate.policy.stage import TlsState
from mailgate.smtp.reply import reply
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.journal import FLUSH_RECORDS, FLUSH_SECONDS, Journal
from mailgate.storage.literal import settle
from mailgate.storage.records import Disposition
from tests.support.evidence import SPF
from tests.support.messages import ended, recipient, refused, session
from tests.support.unreliable import UnreliableWay
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase


class RecordTests(WritingTestCase):
    async def test_a_session_is_kept_with_its_dialogue(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        view = session(tls=TlsState("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, "mx.example.test", "client"))
        journal.session_ended(ended(seen_in=view, dialogue="S: 220 it's me\nC: \0\\'\udcff\n"))
        await journal.stop()
        rows = self.query(
            "SELECT id, node, listener, role, host(client_address), client_port, host(server_address), server_port,"
            " helo, is_esmtp, tls_version, tls_server_name, client_certificate, authenticated, ending, transactions,"
            " errors, dialogue FROM session"
        )
        assert rows == [
            (
                *(view.id, "mx1", "mx", "mx", "192.0.2.7", 40123, "192.0.2.1", 25, "client.example.org", True),
                *("TLSv1.3", "mx.example.test", "client", None, "quit", 1, 0, "S: 220 it's me\nC: \ufffd\\'?\n"),
            )
        ]

    async def test_a_refused_transaction_is_kept_with_its_recipients(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        unknown = reply(550, "5.1.1", "No such mailbox here")
        record = refused(
            recipient("alice@example.test", self.alice, parameters=RcptParameters(frozenset({"NEVER"}))),
            recipient("nobody@example.test", answer=unknown),
            answer="554 5.7.1 No",
        )
        journal.transaction_ended(record)
        await journal.stop()
        rows = self.query(
            "SELECT id, session_id, disposition, stage, policy, reason, reply, size_octets, length(sha256)"
            " FROM transaction"
        )
        identifier = record.transaction.id
        expected = (
            identifier,
            record.session.id,
            "refused",
            "end_of_data",
            "size",
            "too large",
            "554 5.7.1 No",
            12,
            32,
        )
        assert rows == [expected]
        rows = self.query("SELECT position, forward_path, is_accepted, notify FROM recipient ORDER BY 1")
        assert rows == [(0, "alice@example.test", True, ["NEVER"]), (1, "nobody@example.test", False, None)]
        ((reply_text,),) = self.query("SELECT reply FROM recipient WHERE position = 1")
        assert reply_text.startswith("550 5.1.1 No such mailbox here [")
        assert self.query("SELECT count(*) FROM recent_refusals") == [(2,)]

    async def test_every_disposition_and_stage_fits_the_schema(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        stages = ("connect", "helo", "mail", "rcpt", "data", "end_of_data")
        for disposition in Disposition:
            for stage in stages:
                journal.transaction_ended(refused(stage=stage, disposition=disposition))
        await journal.stop()
        assert (self.count("transaction"), journal.dropped) == (len(Disposition) * len(stages), 0)

    async def test_records_are_written_soon_and_together(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        for _ in range(50):
            journal.session_ended(ended())
        await until(reactor, lambda: self.count("session") == 50, timeout_seconds=5)
        assert self.query("SELECT count(DISTINCT xmin::text) FROM session") == [(1,)]
        await journal.stop()

    async def test_one_that_can_not_be_written_does_not_keep_the_others_from_it(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        view = session()
        for place in range(20):
            record = ended(seen_in=view) if place == 7 else ended()
            if place == 7:
                object.__setattr__(record, "ending", "unheard of")
            journal.session_ended(record)
        await journal.stop()
        assert (self.count("session"), journal.dropped) == (19, 1)

    async def test_a_lost_answer_doubles_nothing_and_loses_nothing(self) -> None:
        way = UnreliableWay(reactor, self.dsn)
        self.addCleanup(lambda: Deferred.fromCoroutine(way.close()))
        journal = Journal(reactor, await self.connection(settle, way.dsn), node="mx1")
        way.cut_at(b"INSERT INTO mailgate.session")
        for _ in range(10):
            journal.session_ended(ended())
            journal.transaction_ended(refused(recipient("nobody@example.test", answer=reply(550, "5.1.1", "No"))))
        await until(reactor, lambda: not journal._records)
        await journal.stop()
        assert way.cuts == 1
        assert (self.count("session"), self.count("transaction"), self.count("recipient")) == (10, 10, 10)
        assert journal.dropped == 0


class _Away:
    """A database that is away until it is told to come back."""

    def __init__(self) -> None:
        self.is_away = True
        self.statements: list[bytes] = []

    async def execute(self, sql: bytes, *, timeout_seconds: float) -> list[tuple[Any, ...]]:
        if self.is_away:
            raise StorageUnavailable("away")
        self.statements.append(sql)
        return []


class BoundTests(TestCase):
    """Without a database: time is a clock of ours."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pool = _Away()

    def journal(self, **keywords: Any) -> Journal:  # Any: as for Journal
        pool: Any = self.pool  # Any: all that the journal uses of a pool
        return Journal(self.clock, pool, node="mx1", **keywords)

    def test_nothing_is_written_before_its_time(self) -> None:
        """A batch forms meanwhile; a reply never waits for it."""
        self.pool.is_away = False
        journal = self.journal()
        journal.session_ended(ended())
        self.clock.advance(FLUSH_SECONDS * 0.9)
        assert self.pool.statements == []
        self.clock.advance(FLUSH_SECONDS * 0.1)
        assert len(self.pool.statements) == 1

    def test_many_records_are_written_at_once(self) -> None:
        self.pool.is_away = False
        journal = self.journal()
        for _ in range(FLUSH_RECORDS):
            journal.session_ended(ended())
        self.clock.advance(0)
        assert len(self.pool.statements) == 1

    def test_while_the_database_is_away_records_are_kept_up_to_the_bound(self) -> None:
        journal = self.journal(max_records=5)
        for _ in range(8):
            journal.session_ended(ended())
        self.clock.advance(FLUSH_SECONDS)
        assert (len(journal._records), journal.dropped) == (5, 3)
        self.pool.is_away = False
        self.clock.advance(5)
        assert (len(journal._records), journal._octets, len(self.pool.statements)) == (0, 0, 1)

    def test_the_bound_is_on_octets_too(self) -> None:
        journal = self.journal(max_octets=100_000)
        for _ in range(10):
            journal.session_ended(ended(dialogue="C: x\n" * 4000))
        assert (len(journal._records), journal.dropped) == (4, 6)

    def test_configurations_of_policies_wait_for_a_database_that_is_away(self) -> None:
        """Without them old verdicts could not be explained."""
        journal = self.journal()
        journal.policies_configured([configuration_of("spf", None)])
        self.clock.advance(FLUSH_SECONDS)
        assert self.pool.statements == []
        self.pool.is_away = False
        self.clock.advance(5)
        (statement,) = self.pool.statements
        assert b"policy_configuration" in statement

    def test_the_bound_on_octets_counts_notes(self) -> None:
        journal = self.journal(max_octets=100_000)
        for _ in range(10):
            journal.session_ended(replace(ended(), notes=(SPF,) * 40))
        assert len(journal._records) < 5

    async def test_stop_does_not_wait_for_a_database_that_is_away(self) -> None:
        journal = self.journal()
        journal.session_ended(ended())
        await journal.stop(1.0)
        assert journal.dropped == 1
        assert self.clock.getDelayedCalls() == []
