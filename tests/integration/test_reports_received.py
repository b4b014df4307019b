"""Reports that come: found among accepted messages, and kept once, if they are about a domain of ours."""

from __future__ import annotations

import gzip
import json
import time
from unittest import mock

from mailgate.reports.dmarc_report import read
from mailgate.reports.inbound import SETTLED_SECONDS, Found, InboundReports
from mailgate.reports.tls_report import write as write_tls
from mailgate.storage.reports import ReportStore
from tests.support import stored_mail
from tests.support.waiting import reactor
from tests.support.writing import WritingTestCase
from tests.unit.reports.test_attachment import TEXT, bomb, message, part
from tests.unit.reports.test_dmarc_report import OLD
from tests.unit.reports.test_tls_report import REPORT as TLS_REPORT

SUBJECT = "Report Domain: example.test Submitter: google.com Report-ID: 571710"
OURS = OLD.replace("Example.org", "Example.test").replace("header_from>example.org", "header_from>example.test")


def report_message(xml: str = OURS) -> bytes:
    return message(TEXT, part(gzip.compress(xml.encode())))


class ReceivedReportTests(WritingTestCase):
    def deliver(self, octets: bytes, subject: str = SUBJECT, piece_octets: int | None = None) -> int:
        return stored_mail.deliver(self.dsn, self.alice, octets, subject=subject, piece_octets=piece_octets)

    async def inbound(self) -> InboundReports:
        return InboundReports(
            reactor, ReportStore(await self.settled()), time=lambda: time.time() + SETTLED_SECONDS + 1
        )

    async def test_a_report_about_a_domain_of_ours_is_tabled(self) -> None:
        """RFC 9990: what it says, row by row."""
        message_id = self.deliver(report_message())
        assert await (await self.inbound()).search() == 1
        assert self.query(
            "SELECT organization, report_id, domain, contact, policy ->> 'p', message_id, authenticated_as,"
            " extract(epoch FROM begins_at)::bigint FROM dmarc_report"
        ) == [("google.com", "571710", "example.test", "noreply@google.com", "none", message_id, None, 1706832000)]
        assert self.query(
            "SELECT position, host(source), messages, disposition, dkim, spf, reasons, header_from, envelope_from"
            " FROM dmarc_report_row"
        ) == [(0, "192.0.2.9", 2, "none", "pass", "fail", ["forwarded"], "example.test", None)]
        ((results,),) = self.query("SELECT results FROM dmarc_report_row")
        assert [(each["kind"], each["domain"], each["result"]) for each in results] == [
            *(("dkim", "example.org", "pass"), ("dkim", "relay.example", "pass"), ("spf", "relay.example", "pass"))
        ]

    async def test_the_same_report_is_kept_once(self) -> None:
        """Sent again, or found by another node."""
        self.deliver(report_message())
        self.deliver(report_message())
        first, second = await self.inbound(), await self.inbound()
        assert await first.search() == 2
        assert await second.search() == 0
        self.query("DELETE FROM report_cursor")
        assert await second.search() == 2
        assert self.count("dmarc_report") == 1
        assert self.count("dmarc_report_row") == 1

    async def test_who_proved_to_have_sent_it_is_kept(self) -> None:
        """A forged report takes no place from a true one."""
        self.deliver(report_message())
        true = self.deliver(report_message())
        results = [{"kind": "dmarc", "result": "pass", "author_domain": "google.com"}]
        self.query("UPDATE transaction SET results = %s WHERE id = %s", (json.dumps(results), true))
        await (await self.inbound()).search()
        assert self.query("SELECT authenticated_as FROM dmarc_report ORDER BY id") == [(None,), ("google.com",)]

    async def test_who_reports_too_much_a_day_is_not_heard_further(self) -> None:
        """What one domain sends, or nobody proves to have sent, takes no room from the reports of others."""
        for number in range(3):
            self.deliver(report_message(OURS.replace("571710", str(number))))
        proven = self.deliver(report_message(OURS.replace("571710", "4")))
        results = [{"kind": "dmarc", "result": "pass", "author_domain": "google.com"}]
        self.query("UPDATE transaction SET results = %s WHERE id = %s", (json.dumps(results), proven))
        with mock.patch("mailgate.storage.reports.MAX_ROWS_A_DAY", 2):
            await (await self.inbound()).search()
        assert self.query("SELECT report_id FROM dmarc_report ORDER BY id") == [("0",), ("1",), ("4",)]

    async def test_a_report_about_somebody_else_is_not_kept(self) -> None:
        """Only our domains, and what is below them."""
        self.deliver(report_message(OLD))
        self.deliver(report_message(OURS.replace("Example.test", "notexample.test").replace("571710", "2")))
        self.deliver(report_message(OURS.replace("Example.test", "news.example.test").replace("571710", "3")))
        await (await self.inbound()).search()
        assert self.query("SELECT domain FROM dmarc_report") == [("news.example.test",)]

    async def test_a_tls_report_is_tabled_by_domain(self) -> None:
        """RFC 8460 section 4.4."""
        octets = write_tls(TLS_REPORT).replace(b'"policy-domain": "example.org"', b'"policy-domain": "example.test"')
        self.deliver(message(TEXT, part(gzip.compress(octets), "application/tlsrpt+gzip")), "TLS-RPT")
        assert await (await self.inbound()).search() == 1
        assert self.query(
            "SELECT organization, domain, successes, failures, policies -> 0 -> 'details' -> 0 ->> 'result_type'"
            " FROM tls_report"
        ) == [("Example", "example.test", 5327, 303, "certificate-expired")]

    async def test_other_mail_is_not_read_and_young_mail_waits(self) -> None:
        """By subject and size, in the database; and not before it is settled."""
        self.deliver(report_message(), "Hello")
        inbound = await self.inbound()
        assert await inbound.search() == 0
        self.deliver(report_message())
        inbound._time = time.time
        assert await inbound.search() == 0
        inbound._time = lambda: time.time() + SETTLED_SECONDS + 1
        assert await inbound.search() == 1

    async def test_hostile_reports_end_in_a_line_of_the_log(self) -> None:
        """A bomb, entities, texts that PostgreSQL does not take, a report in pieces: the search goes on behind them."""
        self.deliver(message(part(bomb(60 << 20, b"<feedback>"))))
        self.deliver(report_message('<!DOCTYPE feedback [<!ENTITY a "b">]>' + OURS))
        self.deliver(report_message(OURS.replace("<count>2<", "<count>999999999999999<").replace("571710", "2")))
        self.deliver(report_message(OURS.replace("google.com", "a'\\\"{}%(x)s&#x85;").replace("571710", "3")))
        self.deliver(b"\xff\x00" * 1000)
        self.deliver(report_message(), piece_octets=100)
        assert await (await self.inbound()).search() == 3
        assert self.query("SELECT report_id FROM dmarc_report ORDER BY 1") == [("2",), ("3",), ("571710",)]

    async def test_a_message_that_breaks_the_reader_does_not_stop_the_search(self) -> None:
        """Else it would be met first again after each start."""
        self.deliver(report_message())
        self.deliver(report_message(OURS.replace("571710", "2")))
        inbound = await self.inbound()
        with mock.patch(
            "mailgate.reports.inbound.report_in", side_effect=[KeyError("odd"), Found(read([OURS.encode()]))]
        ):
            assert await inbound.search() == 1
        assert len(self.flushLoggedErrors(KeyError)) == 1  # type: ignore[no-untyped-call]  # Twisted's
        assert await inbound.search() == 0

    async def test_old_reports_are_forgotten(self) -> None:
        """As long as config says."""
        self.deliver(report_message())
        inbound = await self.inbound()
        await inbound.search()
        store = ReportStore(await self.settled())
        await store.forget(1706918398.0, time.time())
        assert self.count("dmarc_report") == 1
        await store.forget(1706918400.0, time.time())
        assert self.count("dmarc_report_row") == 0
