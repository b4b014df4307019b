"""Results, verdicts and the answers that they rest on: kept with the message, or behind the reply."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.internet.defer import Deferred

from mailgate.auth.results import Result
from mailgate.dns.answer import RecordType
from mailgate.policy.fingerprint import configuration_of
from mailgate.policy.verdict import Discard, Fate, Opinion, Quarantine
from mailgate.smtp.reply import reply
from mailgate.storage.journal import Journal
from mailgate.storage.literal import settle
from mailgate.storage.records import Disposition
from mailgate.storage.retention import Retention
from tests.support.evidence import ARC, DKIM, DMARC, OPINION, OVERRIDE, RESULTS, SPF, answer
from tests.support.messages import ended, incoming, recipient, refused
from tests.support.unreliable import UnreliableWay
from tests.support.waiting import reactor, until
from tests.support.writing import WritingTestCase


def with_notes(record: Any, *notes: object) -> Any:  # Any: a message or the record of a transaction, as given
    """The same, with notes of its transaction."""
    return replace(record, transaction=replace(record.transaction, notes=notes))


class AcceptedTests(WritingTestCase):
    async def test_results_verdicts_and_answers_are_in_the_messages_own_commit(self) -> None:
        writer = await self.writer()
        message = with_notes(incoming(self.alice), *RESULTS, OPINION)
        await writer.store(message)
        rows = self.query(
            "SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM message UNION ALL SELECT xmin FROM transaction"
            " UNION ALL SELECT xmin FROM dns_answer UNION ALL SELECT xmin FROM delivery) AS written"
        )
        assert rows == [(1,)]
        ((results, verdicts),) = self.query("SELECT results, verdicts FROM transaction")
        assert [result["kind"] for result in results] == [
            *("spf", "dkim", "arc", "dmarc", "author-fault", "trusted-forwarder", "override")
        ]
        assert [verdict["policy"] for verdict in verdicts] == ["dmarc"]
        named = [digest for result in results for digest in result.get("answers", ())]
        assert {row[0] for row in self.query("SELECT digest FROM dns_answer")} == set(named)

    async def test_a_message_without_notes_has_null_in_both_columns(self) -> None:
        writer = await self.writer()
        await writer.store(incoming(self.alice))
        assert self.query("SELECT results, verdicts FROM transaction") == [(None, None)]
        assert self.count("dns_answer") == 0

    async def test_answers_that_transactions_share_are_stored_once(self) -> None:
        """Whichever writer comes first: that of messages, that of large ones, the journal."""
        writer = await self.writer(large_octets=10_000)
        journal = Journal(reactor, await self.settled(), node="mx1")
        large = b"Subject: large\r\n\r\n" + b"x\r\n" * 10_000
        stored = [
            writer.store(with_notes(incoming(self.alice, octets=octets), SPF))
            for octets in (b"Subject: 1\r\n\r\n", b"Subject: 2\r\n\r\n", large)
        ]
        journal.transaction_ended(with_notes(refused(), SPF, DKIM))
        for each in stored:
            await each
        await journal.stop()
        assert self.count("transaction") == 4
        assert self.count("dns_answer") == 4
        assert self.query("SELECT name, records FROM dns_answer WHERE type = 'MX'") == [
            ("example.org", ["10 mx.example.org"])
        ]

    async def test_an_answer_that_is_known_to_be_there_is_not_sent_again(self) -> None:
        """A warm cache costs nothing but the digests."""
        writer = await self.writer()
        await writer.store(with_notes(incoming(self.alice), SPF))
        self.query("DELETE FROM dns_answer")
        await writer.store(with_notes(incoming(self.alice, octets=b"Subject: 2\r\n\r\n"), SPF))
        assert self.count("dns_answer") == 0

    async def test_an_answer_of_a_batch_that_was_refused_is_sent_again(self) -> None:
        """Only what was committed is known."""
        writer = await self.writer()
        gone = recipient("gone@example.test", 999_999)
        await self.unavailable(writer.store(with_notes(incoming(gone), SPF)))
        assert self.count("dns_answer") == 0
        await writer.store(with_notes(incoming(self.alice), SPF))
        assert self.count("dns_answer") == 3

    async def test_whatever_strangers_wrote_is_kept_or_replaced(self) -> None:
        hostile = "\0'\"\\{}\ud800\x1b\u2028é" * 500
        octets = bytes(range(256))
        found = replace(
            DKIM,
            domain=hostile,
            problem=hostile,
            signed_fields=(hostile,) * 200,
            evidence=(
                answer(hostile, RecordType.TXT, octets, b"x" * 60_000, detail=hostile),
                answer("mx.example.org", RecordType.MX, (10, hostile)),
                answer("_25._tcp.mx.example.org", RecordType.TLSA, (3, 1, 1, octets)),
            ),
        )
        writer = await self.writer()
        await writer.store(with_notes(incoming(self.alice), found, replace(OPINION, reason=hostile)))
        ((result,),) = self.query("SELECT results -> 0 FROM transaction")
        assert result["problem"].startswith("\ufffd'\"\\{}?\x1b\u2028é")
        ((records,),) = self.query("SELECT records FROM dns_answer WHERE type = 'TXT'")
        assert records[0].startswith("\\000\\001")
        assert "\\127\\128" in records[0]

    async def test_one_recipients_copy_is_in_junk_or_nowhere(self) -> None:
        writer = await self.writer()
        message = incoming(
            recipient("alice@example.test", self.alice),
            replace(recipient("bob@example.test", self.bob), fate=Fate(Quarantine("looks odd"), "taste")),
            replace(recipient("carol@example.test", self.carol), fate=Fate(Discard("never wanted"), "taste")),
        )
        await writer.store(message)
        assert self.query("SELECT mailbox_id, folder FROM delivery ORDER BY mailbox_id") == [
            (self.alice, "INBOX"),
            (self.bob, "Junk"),
        ]
        assert self.query("SELECT disposition, policy, reason FROM recipient ORDER BY position") == [
            (None, None, None),
            ("quarantined", "taste", "looks odd"),
            ("discarded", "taste", "never wanted"),
        ]

    async def test_a_mailbox_that_one_recipient_leads_to_as_usual_has_the_message_in_its_inbox(self) -> None:
        """Two recipients lead there, and there is one copy: who wants it gets it, whatever their order."""
        writer = await self.writer()
        odd = replace(recipient("a@example.test", self.alice), fate=Fate(Quarantine("looks odd"), "taste"))
        unwanted = replace(recipient("b@example.test", self.alice), fate=Fate(Discard("no"), "taste"))
        await writer.store(incoming(unwanted, odd, recipient("c@example.test", self.alice)))
        await writer.store(incoming(unwanted, odd, octets=b"Subject: 2\r\n\r\n"))
        assert self.query("SELECT folder FROM delivery ORDER BY uid") == [("INBOX",), ("Junk",)]


class RefusedTests(WritingTestCase):
    async def test_a_refused_transaction_has_its_evidence_behind_the_reply(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        unknown = Opinion("rcpt", "recipients", "", "reject", "550 5.1.1 No")
        nobody = replace(recipient("nobody@example.test", answer=reply(550, "5.1.1", "No")), notes=(unknown,))
        journal.transaction_ended(with_notes(refused(nobody), SPF, DMARC, OPINION))
        await journal.stop()
        ((results, verdicts),) = self.query("SELECT results, verdicts FROM transaction")
        assert [result["kind"] for result in results] == ["spf", "dmarc"]
        assert [(verdict["policy"], verdict.get("recipient")) for verdict in verdicts] == [
            ("dmarc", None),
            ("recipients", 0),
        ]
        assert self.query("SELECT policy FROM recipient") == [("recipients",)]
        assert self.query("SELECT policy FROM recent_refusals WHERE stage = 'rcpt'") == [("recipients",)]
        assert self.count("dns_answer") == 5

    async def test_a_session_has_what_no_transaction_has(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        journal.session_ended(replace(ended(), notes=(SPF, OPINION)))
        journal.session_ended(ended())
        await journal.stop()
        rows = self.query("SELECT results -> 0 ->> 'kind', verdicts -> 0 ->> 'policy' FROM session ORDER BY id")
        assert rows == [("spf", "dmarc"), (None, None)]
        assert self.count("dns_answer") == 3

    async def test_a_lost_answer_loses_no_evidence(self) -> None:
        way = UnreliableWay(reactor, self.dsn)
        self.addCleanup(lambda: Deferred.fromCoroutine(way.close()))
        journal = Journal(reactor, await self.connection(settle, way.dsn), node="mx1")
        way.cut_at(b"INSERT INTO mailgate.session", before_answer_is_known=True)
        journal.transaction_ended(with_notes(refused(), SPF))
        await until(reactor, lambda: not journal._records)
        await journal.stop()
        assert way.cuts == 1
        assert (self.count("transaction"), self.count("dns_answer")) == (1, 3)


class PolicyConfigurationTests(WritingTestCase):
    async def test_a_configuration_is_kept_once_with_the_time_of_its_first_use(self) -> None:
        journal = Journal(reactor, await self.settled(), node="mx1")
        one, other = configuration_of("dmarc", None), configuration_of("spf", None)
        journal.policies_configured([one])
        await until(reactor, lambda: self.count("policy_configuration") == 1)
        ((since,),) = self.query("SELECT first_seen_at FROM policy_configuration")
        journal.policies_configured([one, other])
        await journal.stop()
        assert self.query("SELECT fingerprint, policy, options FROM policy_configuration ORDER BY policy") == [
            (one.fingerprint, "dmarc", {}),
            (other.fingerprint, "spf", {}),
        ]
        assert self.query("SELECT min(first_seen_at) FROM policy_configuration") == [(since,)]


class RetentionTests(WritingTestCase):
    async def test_answers_go_after_the_last_record_that_can_name_them(self) -> None:
        """The record goes by whole months, and some of it used what the cache had had for a while."""
        now = datetime(2026, 11, 23, tzinfo=UTC)
        writer = await self.writer()
        days = {"of this month": 1, "of the month that is kept": 53, "in the cache then": 55, "older": 62}
        answers = tuple(
            answer(name, RecordType.TXT, answered_at=(now - timedelta(days=ago)).timestamp())
            for name, ago in days.items()
        )
        await writer.store(with_notes(incoming(self.alice), replace(SPF, evidence=answers)))
        retention = Retention(
            reactor, await self.settled(), record_days=30, folder_days={}, time=lambda: now.timestamp()
        )
        await retention.prune()
        assert {row[0] for row in self.query("SELECT name FROM dns_answer")} == days.keys() - {"older"}


class ViewTests(WritingTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.today = "transaction_id >= id_at(now() - interval '1 day')"

    async def record(self) -> None:
        """Two accepted messages, one of them in Junk, and a refused one."""
        writer = await self.writer()
        journal = Journal(reactor, await self.settled(), node="mx1")
        second = replace(DKIM, position=1, result=Result.FAIL, problem="the body was changed")
        await writer.store(with_notes(incoming(self.alice), SPF, DKIM, replace(DKIM, position=1), DMARC, OVERRIDE))
        await writer.store(
            with_notes(
                incoming(self.bob, octets=b"Subject: 2\r\n\r\n", disposition=Disposition.QUARANTINED),
                SPF,
                second,
                ARC,
                replace(OPINION, verdict="quarantine", fingerprint=""),
            )
        )
        journal.transaction_ended(with_notes(refused(recipient("alice@example.test", self.alice)), DMARC, OPINION))
        await journal.stop()

    async def test_authentication_has_a_row_a_result(self) -> None:
        await self.record()
        rows = self.query(
            "SELECT method, identity, domain, result, problem, policy, aligned_spf, disposition, cardinality(answers)"
            f" FROM authentication WHERE {self.today} ORDER BY transaction_id, method, problem NULLS FIRST"
        )
        neither = "neither SPF nor DKIM passed for example.org"
        fail = ("dmarc", "from", "example.org", "fail", neither, "reject", False)
        spf = ("spf", "mailfrom", "example.org", "pass", None, None, None)
        dkim = ("dkim", "@example.org", "example.org")
        assert rows == [
            (*dkim, "pass", None, None, None, "accepted", 1),
            (*dkim, "pass", None, None, None, "accepted", 1),
            (*fail, "accepted", 2),
            (*spf, "accepted", 3),
            ("arc", "seal", "relay.example.net", "pass", None, None, None, "quarantined", 1),
            (*dkim, "fail", "the body was changed", None, None, "quarantined", 1),
            (*spf, "quarantined", 3),
            (*fail, "refused", 2),
        ]

    async def test_the_answers_of_a_result_are_found_by_their_digests(self) -> None:
        await self.record()
        rows = self.query(
            "SELECT d.name, d.type FROM authentication a JOIN dns_answer d ON d.digest = ANY (a.answers)"
            " WHERE a.method = 'dmarc' AND a.disposition = 'refused' ORDER BY 1"
        )
        assert rows == [("_dmarc.example.org", "TXT"), ("_dmarc.org", "TXT")]

    async def test_authentication_by_domain_counts_messages_not_results(self) -> None:
        await self.record()
        rows = self.query(
            "SELECT domain, method, result, messages, accepted, last_seen_at IS NOT NULL FROM authentication_by_domain"
            " ORDER BY 1, 2, 3"
        )
        assert rows == [
            ("example.org", "dkim", "fail", 1, 0, True),
            ("example.org", "dkim", "pass", 1, 1, True),
            ("example.org", "dmarc", "fail", 2, 1, True),
            ("example.org", "spf", "pass", 2, 1, True),
            ("relay.example.net", "arc", "pass", 1, 0, True),
        ]

    async def test_authentication_by_domain_looks_only_into_partitions_of_the_last_30_days(self) -> None:
        await self.record()
        self.query("SELECT create_partitions(now() - interval '1 year', 0)")
        plan = "\n".join(row[0] for row in self.query("EXPLAIN SELECT * FROM authentication_by_domain"))
        executed = self.query("EXPLAIN (ANALYZE, COSTS OFF) SELECT * FROM authentication_by_domain")
        assert "Subplans Removed" in "\n".join(row[0] for row in executed), plan

    async def test_verdicts_has_a_row_a_verdict(self) -> None:
        await self.record()
        rows = self.query(
            "SELECT stage, policy, fingerprint, verdict, reason, forward_path, host(client), reverse_path, disposition"
            f" FROM verdicts WHERE {self.today} ORDER BY transaction_id"
        )
        reason = "550 5.7.26 example.org says so"
        client = (None, "192.0.2.7", "carol@example.org")
        assert rows == [
            ("end_of_data", "dmarc", None, "quarantine", reason, *client, "quarantined"),
            ("end_of_data", "dmarc", "0123456789ab", "reject", reason, *client, "refused"),
        ]
