"""Connections to a gate of our own, by real TLS: each demand is met before any mail, and each outcome is counted."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from mailgate.certificate import CertificateFiles
from mailgate.outbound.connection import ClientTimeouts, HostUnusable, MailSender, connect
from mailgate.outbound.counted import counted
from mailgate.outbound.plan import Host, PublishedPolicy, TlsDemand, TlsLevel, TroubleKind
from mailgate.outbound.tls import ClientTls
from mailgate.outbound.tls_report import TlsCounts
from mailgate.smtp.session import Limits, Settings
from mailgate.tls import TlsContexts
from tests.support.certificates import Authority
from tests.support.connection import Listener
from tests.support.waiting import reactor, until

NAME = "mx.example.test"
POLICY = PublishedPolicy("example.test", "sts", ("version: STSv1", "mode: enforce"))
TIMEOUTS = ClientTimeouts(connect=5, handshake=5, greeting=10, hello=10, quit=2)
VERIFY = TlsDemand(TlsLevel.VERIFY, "mta-sts", (NAME,), published=POLICY)
TESTING = TlsDemand(TlsLevel.OPPORTUNISTIC, "mta-sts", (NAME,), is_testing=True, published=POLICY)
NOBODY = TlsDemand(published=PublishedPolicy("example.test"))
UNUSABLE = TlsDemand(TlsLevel.ENCRYPT, "dane", published=PublishedPolicy(NAME, "tlsa", ("0 1 1 abcd",)))


class CountedTlsTests(TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.authority = Authority(Path(folder.name), datetime.now(UTC))
        self.good = self.authority.issue("good", names=(NAME,))
        self.wrong = self.authority.issue("wrong", names=("other.test",))
        self.tls = ClientTls(self.authority.certificate_file)
        self.counts = TlsCounts(time.time)

    async def connected(self, files: CertificateFiles | None, demand: TlsDemand) -> MailSender | HostUnusable:
        """A sender to a gate with that certificate, or with none; or why there is none."""
        self.listener = Listener(
            settings=Settings(NAME, Limits(), offers_starttls=files is not None),
            tls=None if files is None else TlsContexts.load([files]).factory(),
            clock=reactor,
        )
        port = reactor.listenTCP(0, self.listener.factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        host = Host(NAME, ("127.0.0.1",), port.getHost().port, demand)
        connecting = connect(
            reactor,
            host,
            "127.0.0.1",
            protocol="smtp",
            credentials=None,
            helo="client.example.org",
            timeouts=TIMEOUTS,
            tls=self.tls,
            time=time.time,
        )
        try:
            sender = await counted(connecting, host, self.counts, sending_address="192.0.2.25")
        except HostUnusable as error:
            return error
        await sender.quit()
        return sender

    def taken(self) -> list[tuple[str, str, str, str, str]]:
        """What was counted since."""
        return [
            (kind.policy.type, kind.mx_host, kind.result, kind.sending_address, kind.receiving_address)
            for kind, sessions in self.counts.take().items()
            if sessions == 1
        ]

    async def test_a_session_that_meets_its_policy_is_a_success(self) -> None:
        """RFC 8460 section 4.3; without addresses, so that a day's successes are one row."""
        sender = await self.connected(self.good, VERIFY)
        assert isinstance(sender, MailSender)
        assert sender.tls is not None
        assert sender.tls.is_verified
        assert self.taken() == [("sts", NAME, "", "", "")]

    async def test_a_certificate_that_fails_stops_the_session_before_any_mail(self) -> None:
        """RFC 8461 section 4.2: nothing is said inside that TLS, not even EHLO."""
        failed = await self.connected(self.wrong, VERIFY)
        assert isinstance(failed, HostUnusable)
        assert failed.trouble.kind is TroubleKind.TLS
        result = "certificate-host-mismatch"
        assert failed.trouble.tls_result == result
        assert self.taken() == [("sts", NAME, result, "192.0.2.25", "127.0.0.1")]
        journal: Any = self.listener.journal
        await until(reactor, lambda: journal.sessions, what="the end of the session")
        (session,) = journal.sessions
        assert session.transactions == 0
        said = [line for line in session.dialogue.splitlines() if line.startswith("C: ")]
        assert said == ["C: EHLO client.example.org", "C: STARTTLS"]

    async def test_a_host_without_tls_is_not_used_where_tls_is_demanded(self) -> None:
        """Whoever took STARTTLS out of the answer to EHLO."""
        failed = await self.connected(None, VERIFY)
        assert isinstance(failed, HostUnusable)
        assert self.taken() == [("sts", NAME, "starttls-not-supported", "192.0.2.25", "127.0.0.1")]

    async def test_a_policy_in_testing_lets_mail_through_and_counts(self) -> None:
        """RFC 8461 section 5."""
        for files, result in ((self.wrong, "certificate-host-mismatch"), (None, "starttls-not-supported")):
            assert isinstance(await self.connected(files, TESTING), MailSender)
            assert [row[2] for row in self.taken()] == [result]

    async def test_what_nobody_demands_is_counted_too(self) -> None:
        """RFC 8460 section 4.2: "no-policy-found"."""
        for files, result in ((self.wrong, ""), (None, "starttls-not-supported")):
            assert isinstance(await self.connected(files, NOBODY), MailSender)
            assert [row[:3] for row in self.taken()] == [("no-policy-found", NAME, result)]

    async def test_records_of_which_none_can_be_used_are_told_of(self) -> None:
        """RFC 8460 section 4.3.2.1."""
        assert isinstance(await self.connected(self.wrong, UNUSABLE), MailSender)
        assert [row[:3] for row in self.taken()] == [("tlsa", NAME, "tlsa-invalid")]

    async def test_a_smarthost_is_nobodys_report(self) -> None:
        """No published policy is about it."""
        assert isinstance(await self.connected(self.good, TlsDemand(TlsLevel.VERIFY, "config", (NAME,))), MailSender)
        assert self.taken() == []
