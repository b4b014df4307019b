"""The I/O shell round `mailgate.smtp.client`: one connection to one host, its transport, TLS, time-outs, back-pressure.

`connect` makes it and waits until mail may go; `MailSender` carries messages.

    a message is handed over    send() -> session -> transport; what became of it fires the Deferred
    the host answers            dataReceived -> session -> deliveries, content, transport: one write a round
    the host won't read         the transport pauses us, and no more content is read
    the host is silent          a deadline by what is awaited; then the session says what that means, and we abort
    the host goes               every message that has not ended gets the outcomes that are known

Deliveries are given out before content is fed, so that a message handed over at once by whoever hears of one goes out
behind the content of the one between them, in the same write.

Not here: what a reply means, which host is next, what is done about an outcome, whether TLS is good enough.

Standards: RFC 5321 section 4.5.3.2 (time-outs), RFC 3207 and RFC 8314 (TLS).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IHandshakeListener, IPushProducer
from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailgate.outbound.plan import Endpoint, TlsUsed, Trouble
from mailgate.smtp.client import ClientSession
from mailgate.smtp.client_state import Awaited, Phase
from mailgate.tls import reason as openssl_reason

if TYPE_CHECKING:
    from twisted.internet.interfaces import IConnector, IDelayedCall, IOpenSSLClientConnectionCreator

    from mailgate.outbound.plan import Credentials, Delivery, Host, OutgoingMessage, TlsDemand

# A piece of content goes to the transport in parts of this size; the transport pauses us once it holds as much, so that
# it never holds more than about twice that.
_PART_OCTETS = 65536


class ClientTls(Protocol):
    """What makes TLS connections and judges them: `mailgate.outbound.tls.ClientTls`."""

    def creator(self, demand: TlsDemand, host_name: str) -> IOpenSSLClientConnectionCreator: ...  # noqa: D102
    def judge(self, connection: SSL.Connection, demand: TlsDemand, host_name: str) -> TlsUsed | TlsVerdict: ...  # noqa: D102


class TlsVerdict(Protocol):
    """Why TLS doesn't meet a demand: `mailgate.outbound.tls.TlsFailure`."""

    @property
    def tls_result(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """How long a host may take, in seconds. RFC 5321 section 4.5.3.2 has the least for each but the first two."""

    connect: float = 30.0
    handshake: float = 60.0
    greeting: float = 300.0
    hello: float = 300.0  # EHLO, HELO, STARTTLS, AUTH
    mail: float = 300.0  # and RSET
    rcpt: float = 300.0
    data: float = 120.0
    chunk: float = 180.0  # for the transport to take some more of the content
    end: float = 600.0
    quit: float = 5.0  # the only one below the standard's: nothing depends on it any more

    def of(self, awaited: Awaited) -> float | None:
        """For what the host owes us; None where it owes nothing."""
        name = _TIMEOUT_NAMES.get(awaited)
        seconds: float | None = getattr(self, name) if name is not None else None
        return seconds


_TIMEOUT_NAMES = {
    Awaited.HANDSHAKE: "handshake",
    Awaited.GREETING: "greeting",
    Awaited.EHLO: "hello",
    Awaited.HELO: "hello",
    Awaited.STARTTLS: "hello",
    Awaited.AUTH: "hello",
    Awaited.RSET: "mail",
    Awaited.MAIL: "mail",
    Awaited.RCPT: "rcpt",
    Awaited.DATA: "data",
    Awaited.CONTENT: "chunk",
    Awaited.CHUNK: "end",  # a host may store each chunk before it answers
    Awaited.END: "end",
    Awaited.NO_END: "end",
    Awaited.QUIT: "quit",
}


class HostUnusable(Exception):
    """No mail can go to a host now: there is no connection, or it ended before the session was ready."""

    def __init__(self, trouble: Trouble, endpoint: Endpoint) -> None:
        """Say why, and where."""
        super().__init__(f"{endpoint.host} [{endpoint.address}]: {trouble.reply}")
        self.trouble = trouble
        self.endpoint = endpoint


async def connect(
    reactor: Any,  # Any: one that makes both TCP and Unix connections and tells the time has no interface
    host: Host,
    address: str,
    *,
    protocol: Literal["smtp", "lmtp"],
    credentials: Credentials | None,
    helo: str,
    timeouts: ClientTimeouts,
    tls: ClientTls,
    time: Callable[[], float],
    source_address: str | None = None,
    needs_requiretls: bool = False,
) -> MailSender:
    """A sender to that host whose session is ready: greeted, on TLS as demanded, authenticated where we should.

    `address` is one of the host's; it is passed over where the host has a `unix_path`. `helo` is our name in A-form.
    `source_address` is the local address to connect from. Cancelling gives the connection up.

    @raises HostUnusable: there is no such sender. Under TlsLevel.OPPORTUNISTIC, trouble of kind TLS means that the
        handshake failed: without TLS, mail could go.
    """
    endpoint = Endpoint(host.name, host.unix_path or address, 0 if host.unix_path else host.port)
    session = ClientSession(
        endpoint=endpoint,
        protocol=protocol,
        helo=helo,
        tls_demand=host.tls,
        time=time,
        credentials=credentials,
        needs_requiretls=needs_requiretls,
        is_local=bool(host.unix_path) or ipaddress.ip_address(address).is_loopback,
    )
    sender = MailSender(session, endpoint, reactor, timeouts, tls, host.tls)
    factory = _Factory(sender)
    if host.unix_path:
        connector = reactor.connectUNIX(host.unix_path, factory, timeouts.connect)
    else:
        bind_address = None if source_address is None else (source_address, 0)
        connector = reactor.connectTCP(address, host.port, factory, timeouts.connect, bind_address)
    return await sender.wait_until_ready(connector)


@implementer(IPushProducer, IHandshakeListener)
class MailSender(TwistedProtocol):
    """A connection that carries messages. `connect` makes it."""

    _log = Logger()
    transport: Any  # Any: Twisted's interface for it lacks startTLS and abortConnection, which TCP and Unix have

    def __init__(
        self,
        session: ClientSession,
        endpoint: Endpoint,
        clock: Any,  # Any: the reactor, as above
        timeouts: ClientTimeouts,
        tls: ClientTls,
        tls_demand: TlsDemand,
    ) -> None:
        """Begin to count time with the connection."""
        self.endpoint = endpoint
        self._session = session
        self._clock = clock
        self._timeouts = timeouts
        self._client_tls = tls
        self._tls_demand = tls_demand
        self._ready: Deferred[MailSender] | None = None
        self._closed: list[Deferred[None]] = []
        self._piece: Deferred[bytes] | None = None  # of content, being read
        self._rest = b""  # a piece that is too large to go at once
        self._rest_start = 0  # so much of it has gone
        self._rest_of: tuple[int, int] | None = None  # the number of that piece, and of its transaction
        self._is_advancing = self._is_paused = self._is_tls_started = self._is_gone = self._is_closing = False
        self._replies = 0
        self._active_at = clock.seconds()
        self._timer: IDelayedCall | None = None

    # ------------------------------------------------------------ what the owner asks

    @property
    def tls(self) -> TlsUsed | None:
        """The TLS that the connection has."""
        return self._session.tls

    @property
    def tls_result(self) -> str:
        """RFC 8460 section 4.3: why there is no TLS, where it was asked for and mail goes all the same."""
        return self._session.tls_result

    @property
    def is_usable(self) -> bool:
        """Whether another message can be sent."""
        return self._session.is_usable

    @property
    def trouble(self) -> Trouble | None:
        """Why the connection is not usable, where the host is to blame."""
        return self._session.trouble

    @property
    def outstanding(self) -> int:
        """How many messages have been handed over and have not ended."""
        return self._session.outstanding

    @property
    def max_outstanding(self) -> int:
        """How many messages may be handed over at a time: two where the host takes commands behind content."""
        return 2 if self._session.has_pipelining else 1

    def send(self, message: OutgoingMessage) -> Deferred[Delivery]:
        """Send a message. The Deferred fires once every recipient has an outcome or can't have one; it never fails.

        Where the sender is not usable, it fires at once, with no outcomes.
        """
        ended: Deferred[Delivery] = Deferred()
        session = self._session
        if not session.outstanding:
            self._active_at = self._clock.seconds()
        session.send(message, ended)
        self._advance()
        return ended

    async def quit(self) -> None:
        """End the session as the standard has it, after what is outstanding; returns when the connection is gone."""
        if self._is_gone:
            return
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        self._active_at = self._clock.seconds()
        self._session.quit()
        self._advance()
        await closed

    def abort(self) -> None:
        """Drop the connection now; what is outstanding ends as it does when the host drops it."""
        if not self._is_gone:
            self._session.connection_lost("given up by this side")
            self._advance()
            if self.transport is not None:
                self.transport.abortConnection()

    async def wait_until_ready(self, connector: IConnector) -> MailSender:
        """This, once the session is ready. @raises HostUnusable: it will not be."""

        def give_up(_ready: Deferred[MailSender]) -> None:
            self._ready = None
            connector.disconnect()
            self.abort()

        if self._is_gone:  # a connection to a Unix socket can fail at once
            trouble = self._session.trouble
            assert trouble is not None  # noqa: S101  # it has failed
            raise HostUnusable(trouble, self.endpoint)
        self._ready = Deferred(give_up)
        return await self._ready

    # ------------------------------------------------------------ the connection begins and ends

    def connectionMade(self) -> None:
        """Wait for the greeting, or start TLS."""
        self._active_at = self._clock.seconds()
        if hasattr(self.transport, "setTcpNoDelay"):
            # Each write is all that there is to say until the host answers.
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)
        self._timer = self._clock.callLater(self._timeouts.greeting, self._timer_fired)
        self._advance()

    def connect_failed(self, reason: Failure) -> None:
        """There is no connection."""
        text = reason.getErrorMessage().rstrip(".")
        self._session.connect_failed(text)
        self._gone()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell of each message what is known of it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        text = _reason(reason)
        if self._session.phase is Phase.HANDSHAKE:
            self._session.tls_failed(text, "validation-failure")
        else:
            self._session.connection_lost(text)
        self._gone()

    def _gone(self) -> None:
        self._is_gone = self._is_closing = True
        self._rest = b""
        if self._piece is not None:
            self._piece.cancel()
        self._advance()
        closed, self._closed = self._closed, []
        for deferred in closed:
            deferred.callback(None)

    def _close(self) -> None:
        """The session is over: say what is left to say, and be gone, whether the host agrees or not."""
        self._is_closing = True
        if self._is_gone or self.transport is None:
            return
        octets = self._session.take_output()
        self.transport.unregisterProducer()
        trouble = self._session.trouble
        if octets or (trouble is None and not self._session.is_broken_off):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.callLater(self._timeouts.quit, self._abort)
            self._write(octets)
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()

    def _abort(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    # ------------------------------------------------------------ input and output

    def dataReceived(self, data: bytes) -> None:
        """Give octets to the session and do what follows from them."""
        session = self._session
        session.receive(data)
        if session.replies != self._replies:
            self._replies = session.replies
            self._active_at = self._clock.seconds()
        self._advance()

    def _advance(self) -> None:
        """Tell what became of messages, feed content, send."""
        if self._is_advancing:
            return
        session = self._session
        self._is_advancing = True
        try:
            while True:
                deliveries = session.take_deliveries()
                for ended, delivery in deliveries:
                    assert isinstance(ended, Deferred)  # noqa: S101  # send() has put it there
                    ended.callback(delivery)
                if not self._feed() and not deliveries:
                    break
        finally:
            self._is_advancing = False
        match session.phase:
            case Phase.CLOSED:
                if not self._is_closing:
                    self._close()
                self._settle_ready()
                return
            case Phase.HANDSHAKE if not self._is_tls_started:
                self._flush()
                self._is_tls_started = True
                self._active_at = self._clock.seconds()
                self.transport.startTLS(self._client_tls.creator(self._tls_demand, self.endpoint.host))
            case Phase.READY:
                self._flush()
                if self._ready is not None:
                    self._settle_ready()
            case _:
                self._flush()
        self._hurry_timer()

    def _settle_ready(self) -> None:
        ready, self._ready = self._ready, None
        if ready is None:
            return
        trouble = self._session.trouble
        if trouble is None:
            ready.callback(self)
        else:
            ready.errback(HostUnusable(trouble, self.endpoint))

    def _flush(self) -> None:
        octets = self._session.take_output()
        if octets:
            self._write(octets)

    def _write(self, octets: bytes) -> None:
        self.transport.write(octets)

    # ------------------------------------------------------------ content

    def _feed(self) -> bool:
        """Whether some more content was given to the session."""
        session = self._session
        if self._is_paused or self._piece is not None:
            return False
        wanted = session.wanted
        if wanted is None:
            self._rest = b""
            return False
        content, number, transaction = wanted
        if self._rest and self._rest_of == (number, transaction):
            self._give(self._rest, number, transaction, self._rest_start)
            return True
        try:
            piece = content.piece(number)
        except Exception:  # whatever is wrong with one message must not harm the others
            self._unreadable(Failure())
            return True
        if isinstance(piece, bytes):
            self._give(piece, number, transaction)
            return True
        self._piece = piece
        piece.addCallbacks(self._piece_read, self._piece_failed, callbackArgs=(wanted,), errbackArgs=(wanted,))
        return self._piece is None

    def _give(self, piece: bytes, number: int, transaction: int, start: int = 0) -> None:
        end = start + _PART_OCTETS
        if len(piece) <= end:
            self._rest = b""
            self._session.content(piece[start:])
        else:
            self._rest, self._rest_start, self._rest_of = piece, end, (number, transaction)
            self._session.content(piece[start:end], ends_piece=False)
        if len(piece) >= _PART_OCTETS // 2:
            self._flush()

    def _piece_read(self, piece: bytes, wanted: tuple[object, int, int]) -> None:
        self._piece = None
        self._active_at = self._clock.seconds()
        # The host may have refused the rest in the meantime.
        if self._session.wanted == wanted:
            self._give(piece, *wanted[1:])
        self._advance()

    def _piece_failed(self, failure: Failure, wanted: object) -> None:
        self._piece = None
        if self._session.wanted == wanted:
            self._unreadable(failure)
        self._advance()

    def _unreadable(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:  # else whoever cancelled it has said why
            self._log.failure("content can't be read for {endpoint}", failure=failure, endpoint=self.endpoint)
        self._session.content_failed()

    # ------------------------------------------------------------ back-pressure: we are a push producer

    def pauseProducing(self) -> None:
        """The transport holds enough."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """The transport has room again: the host reads."""
        self._is_paused = False
        self._active_at = self._clock.seconds()
        self._advance()

    def stopProducing(self) -> None:
        """The connection is gone; connectionLost does the rest."""

    # ------------------------------------------------------------ TLS

    def handshakeCompleted(self) -> None:
        """Judge the TLS that there is before anything is said in it."""
        session = self._session
        if session.phase is not Phase.HANDSHAKE:
            return
        self._active_at = self._clock.seconds()
        verdict = self._client_tls.judge(self.transport.getHandle(), self._tls_demand, self.endpoint.host)
        if isinstance(verdict, TlsUsed):
            session.tls_started(verdict)
        else:
            session.tls_failed(verdict.reason, verdict.tls_result)
        self._advance()

    # ------------------------------------------------------------ time

    def _due_in(self) -> float | None:
        seconds = self._timeouts.of(self._session.awaited)
        return None if seconds is None else seconds - (self._clock.seconds() - self._active_at)

    def _hurry_timer(self) -> None:
        """Move the timer only where it would come too late; where it comes early, it sets itself again."""
        timer = self._timer
        if timer is None:
            return
        due = self._due_in()
        if due is not None and timer.getTime() - self._clock.seconds() > due:
            timer.reset(max(due, 0.0))

    def _timer_fired(self) -> None:
        due = self._due_in()
        if due is None or due > 0:
            self._timer = self._clock.callLater(self._timeouts.greeting if due is None else due, self._timer_fired)
            return
        self._timer = None
        session = self._session
        if self._piece is not None:
            self._log.error("content took too long to be read for {endpoint}", endpoint=self.endpoint)
            self._piece.cancel()  # which says so to the session
        elif session.phase is Phase.HANDSHAKE:
            session.tls_failed("the handshake took too long", "validation-failure")
        else:
            session.time_out()
        self._advance()


class _Factory(ClientFactory):
    """Makes the one connection of a sender."""

    noisy = False

    def __init__(self, sender: MailSender) -> None:
        self._sender = sender

    def buildProtocol(self, addr: IAddress | None) -> TwistedProtocol:
        """The sender itself."""
        return self._sender

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        """Tell the sender."""
        self._sender.connect_failed(reason)


def _reason(failure: Failure) -> str:
    """Why a connection ended, as one line."""
    if isinstance(failure.value, SSL.Error):
        return openssl_reason(failure.value)
    return " ".join(failure.getErrorMessage().split()).rstrip(".")
