"""Reports that we send: from the record of real transactions, to whoever may be told, once over all nodes."""

from __future__ import annotations

import email
import gzip
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

import dkim
from twisted.internet.defer import Deferred, gatherResults

from mailgate.auth.private_key import PrivateKey, generate_key
from mailgate.auth.results import DkimResult, DmarcResult, PolicyOverride, Result, SpfResult
from mailgate.dns.answer import RecordType
from mailgate.dns.zone import Zone
from mailgate.ids import IdGenerator
from mailgate.policy.signing import Signing
from mailgate.policy.verdict import Opinion
from mailgate.reports import dmarc_report, tls_report
from mailgate.reports.daily import DailyReports, ReportSettings
from mailgate.reports.dmarc_report import DmarcReport
from mailgate.reports.outgoing import Reporter
from mailgate.storage.journal import Journal
from mailgate.storage.records import Disposition
from mailgate.storage.reports import ReportStore
from tests.support.evidence import answer
from tests.support.messages import incoming, refused
from tests.support.waiting import reactor
from tests.support.writing import WritingTestCase

DAY = 86_400.0
RECORD = b"v=DMARC1; p=reject; np=none; aspf=s; rua=mailto:d@example.org,mailto:r@elsewhere.test"
SPF = SpfResult("mailfrom", "bounce.example.org", "b@bounce.example.org", Result.SOFTFAIL)
DKIM = DkimResult(0, Result.PASS, domain="example.org", selector="s1")
PASSED = DmarcResult(
    Result.PASS,
    author_domain="example.org",
    organizational_domain="example.org",
    policy_domain="example.org",
    policy="reject",
    published_policy="reject",
    aligned_dkim=True,
    record=RECORD.decode(),
    evidence=(answer("_dmarc.example.org", RecordType.TXT, RECORD),),
)
FAILED = replace(PASSED, result=Result.FAIL, aligned_dkim=False)
BAD_DKIM = replace(DKIM, result=Result.FAIL, problem="the body hash differs")
REFUSAL = Opinion("end_of_data", "dmarc", "0123456789ab", "reject", "550 5.7.26 No")
AGREED = "example.org._report._dmarc.elsewhere.test. TXT v=DMARC1"


def with_notes(record: Any, *notes: object, reverse_path: object = None) -> Any:  # Any: either kind of record
    return replace(record, transaction=replace(record.transaction, notes=notes))


def parsed(octets: bytes) -> EmailMessage:
    message = email.message_from_bytes(octets, policy=SMTP)
    assert isinstance(message, EmailMessage)
    return message


class SentReportTests(WritingTestCase):
    async def daily(self, zone: str = "", *, instance: int = 1, **settings: Any) -> DailyReports:  # Any: as declared
        store = ReportStore(await self.settled())
        reporter = Reporter("Example", "postmaster@example.test", "mx.example.test")

        def tomorrow() -> float:
            return time.time() + DAY

        return DailyReports(
            reactor,
            store,
            Zone(zone),
            ReportSettings(reporter, **settings),
            signing=None,
            next_id=IdGenerator(instance, tomorrow).next,
            time=tomorrow,
        )

    async def record(self, *found: tuple[object, ...]) -> None:
        """Transactions of today: accepted with these notes, or refused where the notes say so."""
        writer = await self.writer()
        journal = Journal(reactor, await self.settled(), node="mx1")
        for number, notes in enumerate(found):
            if REFUSAL in notes:
                journal.transaction_ended(with_notes(refused(), *notes))
            else:
                octets = f"Subject: {number}\r\n\r\n".encode()
                await writer.store(with_notes(incoming(self.alice, octets=octets), *notes))
        await journal.stop()

    def mail(self) -> list[tuple[list[str], EmailMessage]]:
        """The messages of our own, each with its rows of the queue."""
        rows = self.query(
            "SELECT ARRAY(SELECT q.recipient FROM queue q WHERE q.message_id = m.id ORDER BY q.id),"
            " message_octets(m.id) FROM message m WHERE m.reverse_path = '' ORDER BY m.id"
        )
        return [(recipients, parsed(bytes(octets))) for recipients, octets in rows]

    def report_of(self, message: EmailMessage) -> DmarcReport:
        (attachment,) = (part for part in message.walk() if part.get_content_type() == "application/gzip")
        octets = attachment.get_payload(decode=True)
        assert isinstance(octets, bytes)
        return dmarc_report.read([gzip.decompress(octets)])

    async def test_a_day_becomes_one_report_to_whoever_asks_and_may_be_told(self) -> None:
        """RFC 9990 sections 3.1 and 4."""
        await self.record(
            (SPF, DKIM, PASSED),
            (SPF, DKIM, PASSED),
            (SPF, BAD_DKIM, FAILED, REFUSAL),
            (SPF, BAD_DKIM, FAILED, PolicyOverride("local_policy", "known", "continue")),
        )
        assert await (await self.daily(AGREED)).make() == 1
        ((recipients, message),) = self.mail()
        assert recipients == ["d@example.org", "r@elsewhere.test"]
        day = datetime.now(UTC).date()
        identifier = f"{day:%Y%m%d}.dmarc.example.org"
        assert message["Subject"] == (
            f"Report Domain: example.org Submitter: mx.example.test Report-ID: <{identifier}>"
        )
        assert message["From"] == "postmaster@example.test"
        report = self.report_of(message)
        assert (report.report_id, report.ends_at - report.begins_at) == (identifier, 86_399)
        assert report.policy == dmarc_report.PublishedPolicy(
            "example.org", "reject", "", "none", "r", "s", "0", "n", "treewalk"
        )
        assert sorted((row.messages, row.disposition, row.dkim, row.spf, row.reasons) for row in report.rows) == [
            (1, "none", "fail", "fail", (("local_policy", "known"),)),
            (1, "reject", "fail", "fail", ()),
            (2, "pass", "pass", "fail", ()),
        ]
        (passed,) = (row for row in report.rows if row.messages == 2)
        assert (passed.source, passed.header_from, passed.envelope_from) == ("192.0.2.7", "example.org", "example.org")
        assert passed.dkim_results == (dmarc_report.DkimAuthResult("example.org", "s1", "pass"),)
        assert passed.spf_results == (dmarc_report.SpfAuthResult("bounce.example.org", "softfail"),)

    async def test_a_report_is_signed_by_the_domain_of_its_author(self) -> None:
        """RFC 9990 section 3.5: it has to pass DMARC itself; RFC 8460 section 3 wants DKIM."""
        key = generate_key("example.test", "s1", "rsa")
        daily = await self.daily()

        class Keys:
            def keys_for(self, domain: str) -> tuple[PrivateKey, ...]:
                return (key,) if domain == "example.test" else ()

        keys: Any = Keys()  # Any: stands for SigningKeys
        daily._signing = Signing(keys, reactor)
        await self.record((DKIM, PASSED))
        assert await daily.make() == 1
        ((octets,),) = self.query("SELECT content FROM message WHERE reverse_path = ''")
        assert dkim.verify(bytes(octets), dnsfunc=lambda *_, **__: key.record.encode())

    async def test_a_destination_elsewhere_that_has_not_agreed_gets_nothing(self) -> None:
        """RFC 9990 section 4."""
        await self.record((DKIM, PASSED))
        assert await (await self.daily()).make() == 1
        ((recipients, _),) = self.mail()
        assert recipients == ["d@example.org"]
        assert self.query("SELECT domain, recipients FROM report_sent") == [("example.org", ["d@example.org"])]

    async def test_the_same_day_is_reported_once_over_all_nodes(self) -> None:
        """Whoever comes second finds that it was done."""
        await self.record((DKIM, PASSED))
        nodes = [await self.daily(AGREED, instance=number) for number in range(3)]
        made = await gatherResults([Deferred.fromCoroutine(node.make()) for node in nodes])
        assert sum(made) == 1
        assert await nodes[0].make() == 0
        assert len(self.mail()) == 1

    async def test_a_domain_without_a_pass_hears_nothing_unless_the_operator_wants_it(self) -> None:
        """Its report would tell of forged mail alone."""
        await self.record((BAD_DKIM, FAILED))
        assert await (await self.daily()).make() == 0
        assert self.query("SELECT recipients FROM report_sent") == [([],)]
        self.query("DELETE FROM report_sent")
        assert await (await self.daily(dmarc_without_pass=True)).make() == 1

    async def test_a_domain_that_asks_for_none_gets_none(self) -> None:
        """No rua, no report; so for the records that are not kept any more."""
        quiet = replace(PASSED, evidence=(answer("_dmarc.example.org", RecordType.TXT, b"v=DMARC1; p=none"),))
        await self.record((DKIM, quiet), (DKIM, replace(PASSED, policy_domain="example.com", evidence=())))
        assert await (await self.daily(dmarc_without_pass=True)).make() == 0
        assert self.mail() == []

    async def test_a_report_that_is_larger_than_a_destination_takes_does_not_go_there(self) -> None:
        """RFC 7489 section 6.3: the size behind the exclamation mark."""
        record = b"v=DMARC1; p=none; rua=mailto:small@example.org!10,mailto:large@example.org!10m"
        await self.record((DKIM, replace(PASSED, evidence=(answer("_dmarc.example.org", RecordType.TXT, record),))))
        assert await (await self.daily()).make() == 1
        ((recipients, message),) = self.mail()
        assert recipients == ["large@example.org"]
        assert message["To"] == "large@example.org"

    async def test_while_the_dns_is_silent_nothing_is_decided(self) -> None:
        """The next round asks again."""
        await self.record((DKIM, PASSED))
        daily = await self.daily()
        zone = daily._resolver
        assert isinstance(zone, Zone)
        zone.fail("example.org._report._dmarc.elsewhere.test", RecordType.TXT)
        assert await daily.make() == 0
        assert self.count("report_sent") == 0
        zone.heal()
        assert await daily.make() == 1

    async def test_a_report_to_an_address_of_ours_is_in_its_mailbox(self) -> None:
        """Our own domain asks for reports too."""
        record = b"v=DMARC1; p=none; rua=mailto:bob@example.test"
        own = replace(
            PASSED,
            author_domain="example.test",
            policy_domain="example.test",
            evidence=(answer("_dmarc.example.test", RecordType.TXT, record),),
        )
        await self.record((DKIM, own))
        assert await (await self.daily()).make() == 1
        ((recipients, _),) = self.mail()
        assert recipients == []
        assert self.query(
            "SELECT d.folder, u.messages FROM delivery d JOIN mailbox_usage u USING (mailbox_id)"
            " WHERE d.mailbox_id = %s",
            (self.bob,),
        ) == [("INBOX", 1)]

    async def test_what_was_deferred_or_never_evaluated_is_not_reported(self) -> None:
        """The client comes again, and is counted then."""
        deferred = with_notes(replace(refused(), disposition=Disposition.DEFERRED), DKIM, PASSED)
        journal = Journal(reactor, await self.settled(), node="mx1")
        journal.transaction_ended(deferred)
        await journal.stop()
        assert await (await self.daily()).make() == 0
        assert self.count("report_sent") == 0

    async def test_tls_results_become_a_tls_report(self) -> None:
        """RFC 8460 sections 3 to 5."""
        day = datetime.now(UTC).date()
        policy = "version: STSv1\nmode: enforce\nmx: *.example.org\nmax_age: 86400"
        well = ("", "", "", "")
        badly = ("certificate-expired", "192.0.2.1", "192.0.2.9", "x")
        for sessions, told_day, domain, kind, text, found in (
            (7, day, "example.org", "sts", policy, well),
            (2, day, "example.org", "sts", policy, badly),
            (99, day - timedelta(days=1), "example.org", "sts", policy, well),
            (1, day, "example.com", "no-policy-found", "", well),
        ):
            self.query(
                "INSERT INTO tls_result (day, digest, policy_domain, policy_type, policy, mx_host, sessions,"
                " result_type, sending_address, receiving_address, reason)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (told_day, sessions.to_bytes(32, "big"), domain, kind, text, f"mx.{domain}", sessions, *found),
            )
        zone = '_smtp._tls.example.org. TXT "v=TLSRPTv1; rua=mailto:t@example.org,https://example.org/r"'
        assert await (await self.daily(zone)).make() == 1
        ((recipients, message),) = self.mail()
        assert recipients == ["t@example.org"]
        assert message["TLS-Report-Domain"] == "example.org"
        assert message["TLS-Required"] == "No"
        assert self.query("SELECT tls_is_optional FROM queue") == [(True,)]
        assert message["TLS-Report-Submitter"] == "mx.example.test"
        assert message.get_param("report-type") == "tlsrpt"
        (attachment,) = (part for part in message.walk() if part.get_content_type() == "application/tlsrpt+gzip")
        octets = attachment.get_payload(decode=True)
        assert isinstance(octets, bytes)
        (told,) = tls_report.read(gzip.decompress(octets)).policies
        assert (told.policy_type, told.successes, told.failures, told.mx_hosts) == ("sts", 7, 2, ("*.example.org",))
        assert told.details == (
            tls_report.TlsFailure("certificate-expired", 2, "192.0.2.1", "mx.example.org", "192.0.2.9", "x"),
        )
        assert self.query("SELECT domain FROM report_sent WHERE recipients = '{}'") == [("example.com",)]
