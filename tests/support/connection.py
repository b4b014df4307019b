"""A MailConnection without a network: its transport, its clock, and fakes for the chain, the writer and the journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mailgate.ids import IdGenerator
from mailgate.listener import Authenticator, MailConnection, MailFactory, Rules, Timeouts, Tolerated
from mailgate.policy.limits import NodeLimits, Usage
from mailgate.policy.stage import Request, Role, Stage
from mailgate.policy.verdict import Continue, Decision
from mailgate.smtp.session import Limits, Settings
from mailgate.storage.records import IncomingMessage, SessionRecord, Stored, TransactionRecord

NOW = 1_790_000_000.0


class FakeChain:
    """Goes on at every stage, unless told otherwise."""

    def __init__(self) -> None:
        self.answers: dict[Stage, Callable[[Request], Decision | Deferred[Decision]]] = {}
        self.asked: list[Request] = []

    def decide(self, request: Request) -> Decision | Deferred[Decision]:
        self.asked.append(request)
        answer = self.answers.get(request.stage)
        return Decision(Continue()) if answer is None else answer(request)


class FakeWriter:
    """Stores at once, unless `is_slow`: then `waiting` holds what has to be answered."""

    def __init__(self) -> None:
        self.is_slow = False
        self.stored: list[IncomingMessage] = []
        self.waiting: list[Deferred[Stored]] = []
        self.cancelled = 0
        self.confirmed: list[int] = []
        self.unconfirmed: list[int] = []
        self.abandoned: list[int] = []

    def store(self, message: IncomingMessage) -> Deferred[Stored]:
        self.stored.append(message)
        deferred: Deferred[Stored] = Deferred(self._cancel)
        self.waiting.append(deferred)
        if not self.is_slow:
            self.answer()
        return deferred

    def answer(self) -> None:
        """The oldest message that waits is stored."""
        message = self.stored[-len(self.waiting)]
        self.waiting.pop(0).callback(Stored(message.transaction.id))

    def confirm(self, transaction_ids: list[int]) -> None:
        self.confirmed += transaction_ids

    def connection_lost(self, transaction_ids: list[int]) -> None:
        waiting = {message.transaction.id for message in self.stored[len(self.stored) - len(self.waiting) :]}
        for identifier in transaction_ids:
            (self.abandoned if identifier in waiting else self.unconfirmed).append(identifier)

    def _cancel(self, _deferred: Deferred[Stored]) -> None:
        self.cancelled += 1


class FakeJournal:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.transactions: list[TransactionRecord] = []
        self.sessions: list[SessionRecord] = []

    def transaction_ended(self, record: TransactionRecord) -> None:
        self.transactions.append(record)

    def session_ended(self, record: SessionRecord) -> None:
        self.sessions.append(record)


class FakeTransport(StringTransport):
    """A transport that knows how it was closed, whose client reads or does not, and that never meets TLS.

    With `is_read` false, what is written stays in its buffer, and it pauses the producer as a real one does.
    """

    buffer_octets = 65536

    def __init__(self, peer: str = "192.0.2.7") -> None:
        kind = IPv6Address if ":" in peer else IPv4Address
        host = "2001:db8::25" if ":" in peer else "192.0.2.25"
        super().__init__(  # type: ignore[no-untyped-call]  # Twisted's
            hostAddress=kind("TCP", host, 25), peerAddress=kind("TCP", peer, 40000)
        )
        self.protocol: Any = None  # a MailConnection, or what startTLS puts there
        self.is_read = True
        self.unread = 0
        self.is_losing = self.is_aborted = self.is_gone = False
        self.wants_tls = False

    def write(self, data: bytes) -> None:
        super().write(data)  # type: ignore[no-untyped-call]  # Twisted's
        if not self.is_read:
            self.unread += len(data)
            if self.unread > self.buffer_octets and self.producer is not None:
                self.producer.pauseProducing()

    def client_reads(self) -> None:
        """The client reads all that there is, and goes on reading."""
        self.is_read, self.unread = True, 0
        if self.producer is not None:
            self.producer.resumeProducing()
        if self.is_losing:
            self.lose(ConnectionDone())

    def loseConnection(self) -> None:
        self.is_losing = True
        if self.is_read:
            self.lose(ConnectionDone())

    def abortConnection(self) -> None:
        self.is_aborted = True
        self.lose(ConnectionAborted())

    def startTLS(self, _context_factory: object) -> None:  # noqa: N802  # Twisted calls us
        self.wants_tls = True

    def client_goes(self) -> None:
        """The client's end of the connection breaks."""
        self.lose(ConnectionLost())

    def lose(self, reason: Exception) -> None:
        if not self.is_gone:
            self.is_gone = True
            self.protocol.connectionLost(Failure(reason))


class Listener:
    """A factory with its surroundings, and the connections of its clients."""

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        session_limits: Limits | None = None,
        limits: NodeLimits | None = None,
        timeouts: Timeouts | None = None,
        tolerated: Tolerated | None = None,
        chain: Any = None,  # a Decider
        usage: Usage | None = None,
        authenticator: Authenticator | None = None,
        clock: Any = None,  # a Clock, or the reactor
        **more: Any,  # of MailFactory
    ) -> None:
        self.clock = Clock() if clock is None else clock
        self.chain = chain if chain is not None else FakeChain()
        self.writer = FakeWriter()
        self.journal = FakeJournal()
        self.usage = usage if usage is not None else Usage()
        self.factory = MailFactory(
            name="mx",
            role=Role.MX,
            rules=Rules(
                settings or Settings("mx.example.test", session_limits or Limits()),
                limits or NodeLimits(),
                timeouts or Timeouts(),
                tolerated or Tolerated(),
            ),
            chain=self.chain,
            writer=self.writer,
            journal=self.journal,
            ids=IdGenerator(1, self.time),
            clock=self.clock,
            time=self.time,
            usage=self.usage,
            authenticator=authenticator,
            **more,
        )

    def time(self) -> float:
        return NOW + self.clock.seconds()

    def connect(self, peer: str = "192.0.2.7") -> Client:
        return Client(self, peer)


class Client:
    """One client of a Listener."""

    def __init__(self, listener: Listener, peer: str) -> None:
        self.transport: Any = FakeTransport(peer)  # Any: StringTransport has no types
        connection = listener.factory.buildProtocol(self.transport.getPeer())  # type: ignore[no-untyped-call]  # Twisted's
        assert isinstance(connection, MailConnection)
        self.connection = connection
        self.transport.protocol = connection
        self.connection.makeConnection(self.transport)  # type: ignore[no-untyped-call]  # Twisted's

    def send(self, octets: bytes) -> None:
        """Send, whether or not anybody reads: what is in flight arrives."""
        if not self.transport.is_gone:
            self.transport.protocol.dataReceived(octets)

    def say(self, *lines: str) -> bytes:
        """Send lines; what is heard then."""
        self.send("".join(line + "\r\n" for line in lines).encode())
        return self.heard()

    def heard(self) -> bytes:
        """What was sent to the client since the last call."""
        octets = bytes(self.transport.value())
        self.transport.clear()
        return octets

    def codes(self) -> list[int]:
        """The codes of the replies heard since the last call."""
        return [int(line[:3]) for line in self.heard().splitlines() if line[3:4] == b" "]
