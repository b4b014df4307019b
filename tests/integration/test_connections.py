"""Real connections over the loopback, plain and inside TLS: handshakes good and bad, and back-pressure."""

from __future__ import annotations

import socket
import tempfile
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mailgate.certificate import ensure_self_signed
from mailgate.listener import MailFactory
from mailgate.smtp.session import Limits, Settings
from mailgate.tls import TlsContexts
from tests.support.connection import Listener
from tests.support.replies import split_replies
from tests.support.waiting import reactor, until


class Caller(Protocol):
    """A client that speaks when it is told, and keeps what it hears."""

    def __init__(self) -> None:
        self.octets = b""
        self.is_secure = self.is_gone = False

    def dataReceived(self, data: bytes) -> None:
        self.octets += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_gone = True

    def send(self, octets: bytes) -> None:
        transport: Any = self.transport
        transport.write(octets)

    def start_tls(self) -> None:
        transport: Any = self.transport
        transport.startTLS(ssl.CertificateOptions())
        self.is_secure = True

    async def hear(self, count: int = 1) -> list[int]:
        """The codes of so many replies, once they are there."""
        await until(reactor, lambda: self._replies() >= count or self.is_gone, what=f"reply {count} in {self.octets!r}")
        codes = [heard.code for heard in split_replies(self.octets)]
        self.octets = b""
        return codes

    async def gone(self) -> None:
        await until(reactor, lambda: self.is_gone, what="the end of the connection")

    def _replies(self) -> int:
        return sum(line[3:4] == b" " for line in self.octets.splitlines()) if self.octets.endswith(b"\r\n") else 0


class ConnectionsTest(TestCase):
    """One listener a test, on a port of the loopback."""

    def listen(self, *, offers_starttls: bool = False, **more: Any) -> Listener:
        with tempfile.TemporaryDirectory() as folder:
            files = ensure_self_signed(Path(folder), "mx.example.test", now=datetime.now(UTC))
            contexts = TlsContexts.load([files])
        listener = Listener(
            settings=Settings("mx.example.test", Limits(idle_commands=10**6), offers_starttls=offers_starttls),
            tls=contexts.factory(),
            clock=reactor,
            **more,
        )
        self.factory: MailFactory = listener.factory
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.callers: list[Caller] = []
        self.addCleanup(self._close)
        return listener

    async def _close(self) -> None:
        for caller in self.callers:
            transport: Any = caller.transport
            if not caller.is_gone:
                transport.abortConnection()
        done: Deferred[None] = self.factory.shut_down(5)
        await self.port.stopListening()
        await done
        for caller in self.callers:
            await caller.gone()

    async def call(self) -> Caller:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        caller: Caller = await connectProtocol(endpoint, Caller())
        self.callers.append(caller)
        return caller

    def tracebacks(self) -> list[Failure]:
        """What was logged as a failure in this test so far."""
        failures: list[Failure] = self.flushLoggedErrors()  # type: ignore[no-untyped-call]  # trial's
        return failures

    async def deliver(self, caller: Caller, content: bytes) -> None:
        caller.send(
            b"EHLO client.example\r\nMAIL FROM:<alice@client.example>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
        )
        assert await caller.hear(4) == [250, 250, 250, 354]
        caller.send(content + b".\r\n")
        assert await caller.hear() == [250]

    async def test_a_message_over_starttls(self) -> None:
        """RFC 3207; the session knows version and cipher, and nothing was offered twice."""
        listener = self.listen(offers_starttls=True)
        caller = await self.call()
        await caller.hear()
        caller.send(b"EHLO client.example\r\n")
        await until(reactor, lambda: b"250 STARTTLS\r\n" in caller.octets)
        caller.octets = b""
        caller.send(b"STARTTLS\r\n")
        assert await caller.hear() == [220]
        caller.start_tls()
        await self.deliver(caller, b"Subject: secret\r\n")
        message = listener.writer.stored[0]
        assert message.session.tls is not None
        assert message.session.tls.version == "TLSv1.3"
        assert b"with ESMTPS (TLSv1.3 TLS_" in message.trace
        caller.send(b"EHLO client.example\r\nQUIT\r\n")
        await caller.gone()
        assert b"STARTTLS" not in caller.octets
        await until(reactor, lambda: listener.journal.sessions)
        assert [record.ending for record in listener.journal.sessions] == ["quit"]
        assert self.factory.handshake_failures == 0

    async def test_a_large_message_over_implicit_tls(self) -> None:
        """RFC 8314; many records, in any cut."""
        listener = self.listen(is_implicit_tls=True)
        caller = await self.call()
        caller.start_tls()
        assert await caller.hear() == [220]
        content = b"\r\n" + (b"x" * 998 + b"\r\n") * 2000
        await self.deliver(caller, content)
        assert listener.writer.stored[0].content.joined() == content

    async def test_a_proxy_header_before_implicit_tls(self) -> None:
        """The header is in plain text, and the handshake may stand in the same segment."""
        listener = self.listen(is_implicit_tls=True, proxy_from=(ip_network("127.0.0.0/8"),))
        caller = await self.call()
        caller.send(b"PROXY TCP4 192.0.2.99 192.0.2.25 5678 465\r\n")
        caller.start_tls()
        assert await caller.hear() == [220]
        assert listener.chain.asked[0].session.client_address == "192.0.2.99"
        await self.deliver(caller, b"x\r\n")

    async def test_plain_text_on_a_tls_port_is_a_failed_handshake(self) -> None:
        """Counted and logged, and never a traceback."""
        listener = self.listen(is_implicit_tls=True)
        caller = await self.call()
        caller.send(b"EHLO client.example\r\n")
        await caller.gone()
        await until(reactor, lambda: self.factory.handshake_failures == 1)
        assert self.tracebacks() == []
        assert listener.usage.sessions == 0

    async def test_plain_text_after_starttls_is_a_failed_handshake(self) -> None:
        listener = self.listen(offers_starttls=True)
        caller = await self.call()
        await caller.hear()
        caller.send(b"STARTTLS\r\n")
        await caller.hear()
        caller.send(b"EHLO evil.example\r\nMAIL FROM:<evil@client.example>\r\n")
        await caller.gone()
        await until(reactor, lambda: self.factory.handshake_failures == 1)
        assert self.tracebacks() == []
        assert [record.ending for record in listener.journal.sessions] == ["tls-failed"]
        assert len(listener.chain.asked) == 1

    async def test_an_old_client_is_a_failed_handshake(self) -> None:
        """TLS 1.2 and up."""
        self.listen(is_implicit_tls=True)
        caller = await self.call()
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        context.set_max_proto_version(SSL.TLS1_1_VERSION)

        class Old(ssl.ClientContextFactory):
            def getContext(self) -> SSL.Context:  # noqa: N802  # Twisted calls us
                return context

        transport: Any = caller.transport
        transport.startTLS(Old())
        await caller.gone()
        await until(reactor, lambda: self.factory.handshake_failures == 1)
        assert self.tracebacks() == []

    async def test_a_client_that_goes_in_the_middle_of_a_handshake_leaves_nothing(self) -> None:
        listener = self.listen(is_implicit_tls=True)
        caller = await self.call()
        caller.send(b"\x16\x03\x01\x00\x80\x01\x00")
        await until(reactor, lambda: listener.usage.sessions == 1)
        transport: Any = caller.transport
        transport.abortConnection()
        await until(reactor, lambda: listener.usage.sessions == 0)
        assert self.tracebacks() == []
        assert self.factory.connections == set()

    async def _flood(self, caller: Caller) -> None:
        transport: Any = caller.transport
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
        transport.pauseProducing()
        count, reply_octets = 80_000, 90
        caller.octets = b""
        caller.send(b"HELP\r\n" * count)
        connection: Any = next(iter(self.factory.connections))
        await until(reactor, lambda: connection._is_paused and connection._pending is None, what="back-pressure")
        assert connection._session.waiting_octets < 4 * 65536
        received: list[int] = []
        caller.dataReceived = lambda data: received.append(len(data))  # type: ignore[method-assign]  # only to count
        transport.resumeProducing()
        await until(reactor, lambda: sum(received) >= count * reply_octets, timeout_seconds=60, what="all replies")
        assert sum(received) == count * reply_octets

    async def test_a_client_that_does_not_read_is_not_read_from(self) -> None:
        """And nothing is lost once it reads again."""
        self.listen()
        caller = await self.call()
        await caller.hear()
        await self._flood(caller)

    async def test_a_client_that_does_not_read_inside_tls_is_not_read_from(self) -> None:
        """STARTTLS takes our producer over: back-pressure has to survive it."""
        self.listen(is_implicit_tls=True)
        caller = await self.call()
        caller.start_tls()
        await caller.hear()
        await self._flood(caller)
