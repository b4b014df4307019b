"""Connections to hosts that others wrote, over real sockets and TLS: aiosmtpd, and Postfix's smtp-sink where it is.

What each receives is compared octet by octet.
"""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SkipTest, TestCase

from mailgate.outbound.connection import ClientTimeouts, HostUnusable, MailSender, connect
from mailgate.outbound.plan import (
    Credentials,
    Delivery,
    Host,
    OutgoingMessage,
    Result,
    TlsDemand,
    TlsLevel,
    TroubleKind,
)
from mailgate.outbound.tls import ClientTls
from mailgate.tls import TlsContexts
from tests.support import host as scripted
from tests.support.certificates import Authority
from tests.support.gate import free_port
from tests.support.outgoing import outgoing
from tests.support.waiting import reactor, until

NAME = "mx.example.test"
TIMEOUTS = ClientTimeouts(connect=5, handshake=5, greeting=10, hello=10, mail=10, rcpt=10, data=10, end=20, quit=2)
DOTS = b"Subject: Dots\r\n\r\n.\r\n..\r\n.a\r\n" + b"." * 900 + b"\r\n\r\n.\r\n"
# Pieces end within line ends and before dots, and the whole is more than a transport holds.
MEBIBYTE = (b"." + b"x" * 75 + b"\r\n") * 14000
PIECES = tuple(MEBIBYTE[place : place + 65537] for place in range(0, len(MEBIBYTE), 65537))
PLAIN_TEXT = TlsDemand(TlsLevel.NONE)


class SendingTest(TestCase):
    """An authority, and a way to connect."""

    timeout = 60

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.authority = Authority(self.folder, datetime.now(UTC))
        self.certificate = self.authority.issue("server", names=(NAME,))
        self.tls = ClientTls(self.authority.certificate_file)

    async def connected(self, port: int, demand: TlsDemand = PLAIN_TEXT, **options: Any) -> MailSender:
        unix_path = options.pop("unix_path", "")
        return await connect(
            reactor,
            Host(NAME, ("127.0.0.1",), port, demand, unix_path),
            "" if unix_path else "127.0.0.1",
            protocol=options.pop("protocol", "smtp"),
            credentials=options.pop("credentials", None),
            helo="mail.example.test",
            timeouts=TIMEOUTS,
            tls=self.tls,
            time=time.time,
            **options,
        )

    async def unusable(self, port: int, demand: TlsDemand, **options: Any) -> HostUnusable:
        try:
            await self.connected(port, demand, **options)
        except HostUnusable as error:
            return error
        raise AssertionError("the host was usable")

    async def delivered(self, sender: MailSender, *messages: OutgoingMessage) -> None:
        """Send these, as many at a time as go, and find all of them delivered."""
        waiting = list(messages)

        def go_on(delivery: Delivery) -> Deferred[None] | None:
            results = [(outcome.result, outcome.reply) for outcome in delivery.outcomes]
            assert results
            assert {result for result, _ in results} == {Result.DELIVERED}, results
            return sender.send(waiting.pop(0)).addCallback(go_on) if waiting else None

        starts = [waiting.pop(0) for _ in range(min(sender.max_outstanding, len(waiting)))]
        await gatherResults([sender.send(message).addCallback(go_on) for message in starts])


class Keeper:
    """What aiosmtpd hands over."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.recipients: list[str] = []
        self.options: list[list[str]] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802
        """Keep it."""
        self.contents.append(envelope.content)
        self.recipients += envelope.rcpt_tos
        self.options.append(envelope.mail_options)
        return "250 2.0.0 Kept"


class _Controller(Controller):
    def factory(self) -> SMTP:
        return SMTP(self.handler, **self.SMTP_kwargs)


class AiosmtpdTests(SendingTest):
    """aiosmtpd has no PIPELINING: one command at a time."""

    def serve(self, **options: Any) -> tuple[Keeper, int]:
        keeper = Keeper()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate.certificate, self.certificate.key)
        controller = _Controller(
            keeper,
            "127.0.0.1",
            free_port(),
            tls_context=context,
            data_size_limit=5_000_000,
            decode_data=False,
            enable_SMTPUTF8=True,
            **options,
        )
        controller.start()
        self.addCleanup(controller.stop)
        return keeper, controller.port

    async def test_content_arrives_as_it_is_over_verified_tls(self) -> None:
        """RFC 5321 section 4.5.2; RFC 3207; the certificate is for the name."""
        keeper, port = self.serve()
        sender = await self.connected(port, TlsDemand(TlsLevel.VERIFY, "config", (NAME,)))
        assert sender.tls is not None
        assert sender.tls.is_verified
        await self.delivered(
            sender, outgoing(pieces=(DOTS,)), outgoing("bob@host.test", pieces=PIECES), outgoing(is_eight_bit=True)
        )
        await sender.quit()
        assert keeper.contents[:2] == [DOTS, MEBIBYTE]
        assert "BODY=8BITMIME" in keeper.options[2]

    async def test_a_host_with_another_name_gets_no_mail(self) -> None:
        """RFC 6125: verification fails before any octet of mail is sent."""
        keeper, port = self.serve()
        error = await self.unusable(port, TlsDemand(TlsLevel.VERIFY, "config", ("other.example.test",)))
        assert (error.trouble.kind, error.trouble.tls_result) == (TroubleKind.TLS, "certificate-host-mismatch")
        assert keeper.contents == []

    async def test_we_authenticate_inside_tls(self) -> None:
        """RFC 4954 section 4: aiosmtpd offers AUTH on TLS only."""

        def check(_server: object, _session: object, _envelope: object, mechanism: str, data: Any) -> AuthResult:
            mechanisms.append(mechanism)
            return AuthResult(success=(data.login, data.password) == (b"alice", b"secret"), handled=False)

        mechanisms: list[str] = []
        keeper, port = self.serve(auth_required=True, authenticator=check)
        sender = await self.connected(port, TlsDemand(), credentials=Credentials("alice", "secret"))
        await self.delivered(sender, outgoing())
        await sender.quit()
        error = await self.unusable(port, TlsDemand(), credentials=Credentials("alice", "wrong"))
        assert (error.trouble.kind, error.trouble.status) == (TroubleKind.GREETING, "5.7.8")
        assert mechanisms == ["PLAIN", "PLAIN"]
        assert len(keeper.contents) == 1

    async def test_an_internationalized_address_goes_by_smtputf8(self) -> None:
        """RFC 6531 section 3.4."""
        keeper, port = self.serve()
        sender = await self.connected(port)
        await self.delivered(sender, outgoing("jürgen@bücher.test", is_smtputf8=True))
        await sender.quit()
        assert keeper.recipients == ["jürgen@bücher.test"]


class _ScriptedServer(Protocol):
    """`tests.support.host.Host` on a socket; where it says 220 to STARTTLS, TLS follows, or what is no TLS."""

    transport: Any  # Any: of TCP, with startTLS

    def __init__(self, host: scripted.Host, tls: object) -> None:
        self.host = host
        self._tls = tls

    def connectionMade(self) -> None:
        self.transport.write(self.host.greeting)

    def dataReceived(self, data: bytes) -> None:
        if data.startswith(b"\x16"):  # a ClientHello
            self.transport.write(b"This is no TLS at all\r\n" * 20)
            self.transport.loseConnection()
            return
        self.transport.write(self.host.receive(data))
        if data.upper() == b"STARTTLS\r\n" and self._tls is not None:
            self.transport.startTLS(self._tls)


class ScriptedTests(SendingTest):
    """A host with PIPELINING inside TLS, and one whose TLS is broken."""

    def serve(self, host: scripted.Host, tls: object) -> int:
        factory: Any = Factory.forProtocol(lambda: _ScriptedServer(host, tls))
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    async def test_messages_are_pipelined_inside_tls(self) -> None:
        """RFC 2920, after STARTTLS; large ones go in chunks."""
        host = scripted.Host((*scripted.EXTENSIONS, "STARTTLS", "CHUNKING"), says={"STARTTLS": b"220 Go on\r\n"})
        port = self.serve(host, TlsContexts.load([self.certificate]).factory())
        sender = await self.connected(port, TlsDemand())
        assert sender.tls is not None
        assert not sender.tls.is_verified
        assert sender.max_outstanding == 2
        messages = [outgoing(message_id=number, pieces=(DOTS,)) for number in range(1, 30)]
        await self.delivered(sender, *messages, outgoing(message_id=30, pieces=PIECES))
        await sender.quit()
        assert host.messages == [DOTS] * 29 + [MEBIBYTE]
        assert b"BDAT 65536" in host.commands

    async def test_tls_that_fails_is_trouble_with_tls(self) -> None:
        """RFC 7435: mail may go without, on another connection, if nobody demands it."""
        port = self.serve(scripted.Host(("STARTTLS",), says={"STARTTLS": b"220 Go on\r\n"}), None)
        for level in (TlsLevel.OPPORTUNISTIC, TlsLevel.ENCRYPT):
            error = await self.unusable(port, TlsDemand(level))
            assert (error.trouble.kind, error.trouble.tls_result) == (TroubleKind.TLS, "validation-failure")
        sender = await self.connected(port)
        await self.delivered(sender, outgoing())
        await sender.quit()

    async def test_a_port_where_nobody_listens_is_trouble_with_connecting(self) -> None:
        """The next host of the route may do."""
        error = await self.unusable(free_port(), PLAIN_TEXT)
        assert (error.trouble.kind, error.trouble.status) == (TroubleKind.CONNECT, "4.4.1")
        error = await self.unusable(0, PLAIN_TEXT, unix_path=str(self.folder / "nothing"), protocol="lmtp")
        assert error.trouble.kind == TroubleKind.CONNECT


class SinkTests(SendingTest):
    """Postfix's smtp-sink."""

    async def sink(self, *arguments: str, where: str) -> None:
        program = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin")
        if program is None:
            raise SkipTest("Postfix's smtp-sink is not installed")
        process = subprocess.Popen([program, "-u", "root", *arguments, where, "100"])
        self.addCleanup(process.wait, 10)
        self.addCleanup(process.send_signal, signal.SIGTERM)
        await until(reactor, lambda: self.listens(where), what="smtp-sink")

    def listens(self, where: str) -> bool:
        if where.startswith("unix:"):
            return Path(where.removeprefix("unix:")).exists()
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", int(where.rpartition(":")[2]))) == 0

    async def test_many_messages_go_over_one_connection(self) -> None:
        """RFC 2920: Postfix's parser takes what we pipeline."""
        port = free_port()
        await self.sink(where=f"127.0.0.1:{port}")
        sender = await self.connected(port)
        assert sender.max_outstanding == 2
        await self.delivered(sender, *(outgoing(message_id=number, pieces=(DOTS,)) for number in range(200)))
        await self.delivered(sender, outgoing("a@host.test", "b@host.test", pieces=PIECES))
        await sender.quit()

    async def test_refusals_of_a_sink_are_outcomes(self) -> None:
        """RFC 5321 section 4.2.1; and the connection goes on."""
        port = free_port()
        await self.sink("-f", "rcpt", where=f"127.0.0.1:{port}")
        sender = await self.connected(port)
        for number in (1, 2):
            delivery = await sender.send(outgoing(message_id=number))
            assert [outcome.result for outcome in delivery.outcomes] == [Result.FAILED]
            assert delivery.trouble is None
        await sender.quit()

    async def test_lmtp_over_tcp(self) -> None:
        """RFC 2033 section 5: on a port of its own."""
        port = free_port()
        await self.sink("-L", where=f"127.0.0.1:{port}")
        sender = await self.connected(port, protocol="lmtp")
        await self.delivered(sender, outgoing("a@host.test", "b@host.test"), outgoing("c@host.test", message_id=2))
        await sender.quit()

    async def test_lmtp_over_a_unix_socket(self) -> None:
        """RFC 2033: a reply for each recipient."""
        path = self.folder / "lmtp"
        await self.sink("-L", where=f"unix:{path}")
        sender = await self.connected(0, unix_path=str(path), protocol="lmtp")
        await self.delivered(
            sender, *(outgoing("a@host.test", "b@host.test", message_id=number) for number in range(9))
        )
        await sender.quit()
