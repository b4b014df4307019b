"""The I/O shell round `mailgate.smtp.session`: one connection, its transport, TLS, time-outs and back-pressure.

`MailFactory` and `MailConnection` are Twisted's SMTPFactory and ESMTP in shape; of ESMTP's dialogue nothing is left:
`dataReceived` is overridden whole. Decisions come from the policy chain, storage from the mailbox writer; here they
are awaited, owned, and given up when the client goes.

    the client sends        dataReceived -> session -> actions -> transport, chain, writer
    the client is silent    a deadline by state; then 421 and, after a grace, abortConnection
    the client won't read   the transport pauses us, and we stop reading; the deadline goes on
    the client goes         what waits for the chain is cancelled; what is on its way to storage is not

Not here: what a command means, what is accepted, how a message is stored.

Standards: RFC 3207 and RFC 8314 (TLS), RFC 5321 section 4.5.3.2 (time-outs), the PROXY protocol (`mailgate.proxy`).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, assert_never

from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IAddress, IHandshakeListener, IPushProducer
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.mail import smtp
from zope.interface import implementer

from mailgate.ids import encode_id
from mailgate.policy.limits import NodeLimits, Usage, client_network, is_in
from mailgate.policy.stage import Role, SessionView, TlsState
from mailgate.policy.verdict import Decision, Defer
from mailgate.proxy import ProxyError, ProxyHeaderParser
from mailgate.smtp.actions import Authenticate, Close, Decide, StartTls, Store, Yield
from mailgate.smtp.framing import STRICT, Tolerance
from mailgate.smtp.reply import Reply, reply
from mailgate.smtp.session import Ending, Session, Settings, State
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.records import SessionRecord, Stored, TransactionRecord
from mailgate.tls import describe

if TYPE_CHECKING:
    from twisted.internet.interfaces import (
        IDelayedCall,
        IOpenSSLServerConnectionCreator,
        IReactorTime,
    )
    from twisted.python.failure import Failure

    from mailgate.ids import IdGenerator
    from mailgate.policy.limits import Network
    from mailgate.storage.records import IncomingMessage
    from mailgate.submission.local_users import LocalUsers

_T = TypeVar("_T")

# More input than this is not read while a decision is awaited.
_WAITING_OCTETS = 65536

_AUTH_UNAVAILABLE = reply(454, "4.7.0", "Authentication is unavailable for the moment; try again later")
_UNDECIDED = Decision(Defer(reply(451, "4.3.0", "A check could not be completed; try again later")))
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): process, user, group
_UNKNOWN_CLIENT = "127.0.0.1"  # over a Unix socket without a PROXY header


class Decider(Protocol):
    """What a connection asks: `mailgate.policy.chain.Chain`."""

    def decide(self, request: Any) -> Decision | Deferred[Decision]: ...  # noqa: D102


class Writer(Protocol):
    """What a connection stores with: `mailgate.storage.mailbox.MailboxWriter`."""

    def store(self, message: IncomingMessage) -> Deferred[Stored]: ...  # noqa: D102
    def confirm(self, transaction_ids: list[int]) -> None: ...  # noqa: D102
    def connection_lost(self, transaction_ids: list[int]) -> None: ...  # noqa: D102


class Recorder(Protocol):
    """What a connection reports to: `mailgate.storage.journal.Journal`."""

    def transaction_ended(self, record: TransactionRecord) -> None: ...  # noqa: D102
    def session_ended(self, record: SessionRecord) -> None: ...  # noqa: D102


class Exchange(Protocol):
    """One SASL exchange; see `mailgate.interfaces.IAuthenticator.begin`."""

    def step(self, response: bytes | None) -> object: ...  # noqa: D102


class Authenticator(Protocol):
    """Checks credentials; see `mailgate.interfaces.IAuthenticator`."""

    def mechanisms(self, session: SessionView) -> tuple[str, ...]: ...  # noqa: D102
    def begin(self, mechanism: str, session: SessionView) -> Exchange: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a client may take, in seconds."""

    command: float = 300.0
    data: float = 180.0
    transaction: float = 1800.0
    handshake: float = 30.0
    goodbye: float = 10.0  # for the last reply to leave


@dataclass(frozen=True, slots=True)
class Tolerated:
    """The networks whose clients are let through with faults in their messages."""

    bare_line_ends: tuple[Network, ...] = ()
    nul: tuple[Network, ...] = ()
    long_lines: tuple[Network, ...] = ()

    def of(self, address: str) -> Tolerance:
        """What is tolerated from one client."""
        if not (self.bare_line_ends or self.nul or self.long_lines):
            return STRICT
        return Tolerance(is_in(address, self.bare_line_ends), is_in(address, self.nul), is_in(address, self.long_lines))


@dataclass(frozen=True, slots=True)
class Rules:
    """What may change while sessions go on: new sessions take the new rules."""

    settings: Settings
    limits: NodeLimits = field(default_factory=NodeLimits)
    timeouts: Timeouts = Timeouts()
    tolerated: Tolerated = Tolerated()


@implementer(IPushProducer, IHandshakeListener)
class MailConnection(smtp.ESMTP):
    """One connection of a client."""

    _log = Logger()
    factory: MailFactory
    transport: Any  # Any: Twisted's interface for it lacks startTLS and abortConnection, which TCP and Unix have

    def __init__(self, factory: MailFactory) -> None:
        # ESMTP's own state would cost each idle session more than all of ours; no method that needs it is left.
        self.factory = factory
        self._rules = factory.rules
        self._session: Session | None = None
        self._proxy: ProxyHeaderParser | None = None  # while the header is awaited
        self._is_proxied = False
        self._source: tuple[str, int, str, int] | None = None  # from a PROXY header
        self._pending: Deferred[Any] | None = None  # what an action waits for; Any: of several types
        self._exchange: Exchange | None = None
        self._network: str | None = None  # set while this connection counts
        self._held_octets = 0
        self._replies = 0  # that had been given when the client last made progress
        self._is_advancing = self._is_paused = self._is_reading_paused = self._is_gone = False
        self._active_at = factory.clock.seconds()
        self._timer: IDelayedCall | None = None

    # ------------------------------------------------------------ the connection begins

    def connectionMade(self) -> None:
        """Begin with what comes first: a PROXY header, a handshake, or the greeting."""
        self.factory.connections.add(self)
        self._set_timer()
        self.transport.registerProducer(self, True)
        peer = _address_of(self.transport.getPeer())
        if self.factory.proxy_from and is_in(peer[0], self.factory.proxy_from):
            self._proxy, self._is_proxied = ProxyHeaderParser(), True
        else:
            self._identified(b"")

    def _identified(self, rest: bytes) -> None:
        """Who the client is, is known; `rest` is what it has sent already."""
        peer, host = self._addresses()
        limits = self._rules.limits
        network = client_network(peer[0], limits.ipv4_network_bits, limits.ipv6_network_bits)
        usage = self.factory.usage
        usage.opened(network)
        self._network = network
        if not self.factory.is_implicit_tls:
            self._begin(peer, host, network, None)
            if rest:
                self.dataReceived(rest)
        elif usage.sessions > limits.sessions:
            # In plain text there is nothing to say to a client that speaks TLS, and a handshake is dear.
            self.transport.abortConnection()
        else:
            self._start_tls()
            if rest:
                self.transport.protocol.dataReceived(rest)

    def _begin(self, peer: tuple[str, int], host: tuple[str, int], network: str, tls: TlsState | None) -> None:
        factory, rules = self.factory, self._rules
        view = SessionView(
            factory.ids.next(),
            factory.name,
            factory.role,
            peer[0],
            peer[1],
            network,
            host[0],
            host[1],
            factory.time(),
            tls=tls,
            authenticated=self._local_account(),
        )
        self._session = Session(view, rules.settings, factory.ids, factory.time, rules.tolerated.of(peer[0]))
        self._active_at = factory.clock.seconds()
        self._session.start()
        self._advance()

    def _local_account(self) -> str | None:
        """The account of a program that needs no password: of this machine, and over a Unix socket.

        Not where a proxy is at the other end, which may speak for anybody, also without saying for whom.
        """
        users = self.factory.local_users
        uid = _peer_uid(self.transport) if users is not None and not self._is_proxied else None
        return users.account_of(uid) if users is not None and uid is not None else None

    def _addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        if self._source is not None:
            return self._source[:2], self._source[2:]
        return _address_of(self.transport.getPeer()), _address_of(self.transport.getHost())

    # ------------------------------------------------------------ input

    def dataReceived(self, data: bytes) -> None:
        """Give octets to the session and do what it says."""
        session = self._session
        if session is None:
            if self._proxy is not None:
                self._proxy_received(data)
            return
        if session.state is State.CLOSED:
            return
        session.receive(data)
        if self._pending is None and not self._is_advancing:
            self._advance()
        if self._pending is not None and session.waiting_octets > _WAITING_OCTETS:
            self._pause_reading()
        # Part of a command is no progress: a command, a PROXY header and a handshake have to arrive whole in time.
        if session.replies != self._replies or session.state not in (State.COMMAND, State.AUTH):
            self._replies = session.replies
            self._active_at = self.factory.clock.seconds()

    def _proxy_received(self, data: bytes) -> None:
        parser = self._proxy
        assert parser is not None  # noqa: S101  # the caller has looked
        try:
            header = parser.feed(data)
        except ProxyError as error:
            self._log.warn("no PROXY header from {peer}: {error}", peer=self.transport.getPeer(), error=str(error))
            self.transport.abortConnection()
            return
        if header is None:
            return
        self._proxy = None
        if not header.is_local:
            source, destination = _plain(header.source_address), _plain(header.destination_address)
            self._source = (source, header.source_port, destination, header.destination_port)
        self._identified(header.remaining)

    # ------------------------------------------------------------ actions

    def _advance(self) -> None:
        """Do what the session asks for until it waits: for the client, or for somebody of ours."""
        factory, session = self.factory, self._session
        assert session is not None  # noqa: S101  # callers have one
        self._is_advancing = True
        try:
            # A client that doesn't read gets no more commands done; what has been decided already is done all the same.
            while (
                self._pending is None and (action := session.next_action(takes_input=not self._is_paused)) is not None
            ):
                match action:
                    case Decide(request=request):
                        decision = factory.chain.decide(request)
                        if isinstance(decision, Decision):
                            session.decided(decision)
                        else:
                            self._await(decision, session.decided, self._undecided)
                    case Store(message=message):
                        self._await(factory.writer.store(message), self._stored, self._not_stored)
                    case StartTls():
                        self._flush(session)
                        self._start_tls()
                    case Authenticate(mechanism=mechanism, response=response):
                        self._authenticate(session, mechanism, response)
                    case Yield():
                        self._flush(session)
                        self._await(deferLater(factory.clock, 0), _go_on, _cancelled)
                    case Close():
                        self._flush(session)
                        self._close()
                    case _:
                        assert_never(action)
        finally:
            self._is_advancing = False
        self._flush(session)
        self._report(session)
        self._account(session)
        if self._is_reading_paused and self._pending is None and not self._is_paused:
            self._is_reading_paused = False
            self.transport.resumeProducing()
        if factory.is_stopping and self._pending is None and session.may_be_shut_down:
            session.shut_down()
            self._advance()
            return
        self._hurry_timer(session)

    def _await(self, deferred: Deferred[_T], answer: Callable[[_T], None], failed: Callable[[Failure], None]) -> None:
        """Wait for somebody of ours. A result that is there already does not cost a round through the reactor."""
        self._pending = deferred
        deferred.addCallbacks(partial(self._answered, answer), partial(self._answered, failed))
        deferred.addErrback(self._broken)

    def _answered(self, answer: Callable[[_T], None], result: _T) -> None:
        self._pending = None
        answer(result)
        if self._is_gone:
            self._after_the_end()
        elif not self._is_advancing:
            self._active_at = self.factory.clock.seconds()
            self._advance()

    def _broken(self, failure: Failure) -> None:
        """A defect of ours: this session ends, no other notices."""
        self._log.failure("session {session} broke", failure=failure, session=self._session_id())
        if not self._is_gone:
            self.transport.abortConnection()

    @property
    def _asking(self) -> Session:
        """The session, in an answer to it."""
        session = self._session
        assert session is not None  # noqa: S101  # it asked
        return session

    def _undecided(self, failure: Failure) -> None:
        """We have given the decision up because the client is gone, or a policy has done so itself."""
        failure.trap(CancelledError)
        session = self._asking
        if not self._is_gone:
            self._log.error("a decision was given up in session {session}", session=encode_id(session.view.id))
            session.decided(_UNDECIDED)

    def _stored(self, stored: Stored) -> None:
        session = self._asking
        if stored.is_resend:
            self._log.info(
                "session {session} sent transaction {transaction} again",
                session=encode_id(session.view.id),
                transaction=encode_id(stored.transaction_id),
            )
        session.stored(stored.transaction_id)

    def _not_stored(self, failure: Failure) -> None:
        session = self._asking
        if failure.check(StorageUnavailable) is None:
            self._log.failure(
                "storing failed in session {session}", failure=failure, session=encode_id(session.view.id)
            )
        session.storage_failed()

    def _authenticate(self, session: Session, mechanism: str | None, response: bytes | None) -> None:
        authenticator = self.factory.authenticator
        try:
            if mechanism is not None:
                assert authenticator is not None  # noqa: S101  # no mechanism is offered without one
                self._exchange = authenticator.begin(mechanism, session.view)
            assert self._exchange is not None  # noqa: S101  # set by the first step
            answer = self._exchange.step(response)
        except Exception:
            self._log.failure("authentication failed to work in session {session}", session=encode_id(session.view.id))
            session.auth_refused(_AUTH_UNAVAILABLE)
            return
        if isinstance(answer, Deferred):
            self._await(answer, self._auth_answered, self._auth_failed)
        else:
            self._auth_answered(answer)

    def _auth_answered(self, answer: object) -> None:
        session = self._asking
        if isinstance(answer, bytes):
            session.auth_challenge(answer)
            return
        exchange, self._exchange = self._exchange, None
        if isinstance(answer, str):
            session.authenticated(answer)
        elif isinstance(answer, Reply):
            session.auth_refused(answer, getattr(exchange, "account", ""))
        else:
            self._log.error("an authenticator answered {answer!r}", answer=answer)
            session.auth_refused(_AUTH_UNAVAILABLE)

    def _auth_failed(self, failure: Failure) -> None:
        session = self._asking
        self._exchange = None
        if failure.check(CancelledError) is None:
            self._log.failure("authentication failed to work", failure=failure, session=encode_id(session.view.id))
        session.auth_refused(_AUTH_UNAVAILABLE)

    # ------------------------------------------------------------ output and reports

    def _flush(self, session: Session) -> None:
        output = session.take_output()
        if output and not self._is_gone:
            self._write(output)

    def _write(self, octets: bytes) -> None:
        """Send what the kernel takes now, and leave the rest to the transport.

        A transport waits until the reactor says that it may write, and that costs a reply three more system calls than
        it needs. Only where nothing waits in the transport, and nothing stands between it and the socket.
        """
        transport = self.transport
        if type(transport) is tcp.Server and not (
            transport.TLS or transport.dataBuffer or transport._tempDataBuffer or transport.disconnecting
        ):
            try:
                sent = transport.socket.send(octets)
            except OSError:  # no room, or no connection: the transport finds out which
                sent = 0
            if sent == len(octets):
                return
            octets = octets[sent:]
        transport.write(octets)

    def _report(self, session: Session) -> None:
        factory = self.factory
        for record in session.take_records():
            if isinstance(record, TransactionRecord):
                factory.journal.transaction_ended(record)
            else:
                factory.journal.session_ended(record)
        confirmed = session.take_confirmed()
        if confirmed:
            factory.writer.confirm(confirmed)

    def _account(self, session: Session) -> None:
        """Keep the count of octets in memory true, and give a message up where there is no memory for it."""
        held = session.held_octets
        if held == self._held_octets:
            return
        usage = self.factory.usage
        usage.held_octets += held - self._held_octets
        grows, self._held_octets = held > self._held_octets, held
        if (
            grows
            and usage.held_octets > self._rules.limits.memory_octets
            and session.state in (State.DATA, State.CHUNK)
        ):
            session.give_up_content()
            usage.held_octets -= held
            self._held_octets = 0

    def _close(self) -> None:
        """Close once the output has left, or without it after the grace."""
        self._cancel_timer()
        self._timer = self.factory.clock.callLater(self._rules.timeouts.goodbye, self._abort)
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _abort(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    # ------------------------------------------------------------ TLS

    def _start_tls(self) -> None:
        self.transport.startTLS(self.factory.tls)

    def handshakeCompleted(self) -> None:
        """Begin, or go on, inside TLS."""
        tls = describe(self.transport.getHandle())
        self._active_at = self.factory.clock.seconds()
        if self._session is None:
            peer, host = self._addresses()
            assert self._network is not None  # noqa: S101  # set by _identified, before any handshake
            self._begin(peer, host, self._network, tls)
        else:
            self._session.tls_started(tls)
            self._advance()

    # ------------------------------------------------------------ back-pressure: we are a push producer

    def pauseProducing(self) -> None:
        """The client doesn't read our replies: neither do we read what it sends."""
        self._is_paused = True
        self._pause_reading()

    def resumeProducing(self) -> None:
        """The client reads again."""
        self._is_paused = False
        if self._session is not None and self._pending is None and not self._is_advancing and not self._is_gone:
            self._advance()

    def stopProducing(self) -> None:
        """The connection is gone; connectionLost does the rest."""

    def _pause_reading(self) -> None:
        if not self._is_reading_paused:
            self._is_reading_paused = True
            self.transport.pauseProducing()

    # ------------------------------------------------------------ time

    def _due_in(self) -> float | None:
        """In how many seconds the client has taken too long; None while it waits for us."""
        timeouts, session = self._rules.timeouts, self._session
        idle = self.factory.clock.seconds() - self._active_at
        if session is None or session.state is State.TLS:
            return timeouts.handshake - idle
        match session.state:
            case State.COMMAND | State.AUTH:
                due = timeouts.command - idle
            case State.DATA | State.CHUNK:
                due = timeouts.data - idle
            case _:
                return None
        started_at = session.transaction_started_at
        if started_at is not None:
            due = min(due, timeouts.transaction - (self.factory.time() - started_at))
        return due

    def _set_timer(self) -> None:
        due = self._due_in()
        delay = self._rules.timeouts.command if due is None else max(due, 0.0)
        self._timer = self.factory.clock.callLater(delay, self._timer_fired)

    def _hurry_timer(self, session: Session) -> None:
        """Move the timer only where it would come too late; where it comes early, it sets itself again."""
        timer = self._timer
        if timer is None or session.state is State.CLOSED:
            return
        due = self._due_in()
        if due is not None and timer.getTime() - self.factory.clock.seconds() > due:
            timer.reset(max(due, 0.0))

    def _timer_fired(self) -> None:
        self._timer = None
        due = self._due_in()
        if due is None or due > 0:
            self._set_timer()
            return
        session = self._session
        if session is None or session.state is State.TLS:
            if self._proxy is None:
                self.factory.handshake_failures += 1
            self._log.info(
                "no handshake from {peer} in time ({count} failed on {listener})",
                peer=self.transport.getPeer(),
                count=self.factory.handshake_failures,
                listener=self.factory.name,
            )
            self.transport.abortConnection()
            return
        started_at = session.transaction_started_at
        is_transaction = started_at is not None and self.factory.time() - started_at >= self._rules.timeouts.transaction
        session.time_out(transaction=is_transaction)
        self._advance()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------ the connection ends

    def shut_down(self) -> None:
        """We stop: say 421 at once, or as soon as the message that is being received has been dealt with."""
        session = self._session
        if session is None:
            self.transport.abortConnection()
        elif session.may_be_shut_down and self._pending is None:
            session.shut_down()
            self._advance()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Give up what the client waited for, and report."""
        self._is_gone = True
        self._cancel_timer()
        factory, session = self.factory, self._session
        factory.connections.discard(self)
        if self._network is not None:
            factory.usage.closed(self._network)
            self._network = None
        is_handshake = reason.check(SSL.Error) is not None and (session is None or session.state is State.TLS)
        if is_handshake:
            factory.handshake_failures += 1
            self._log.info(
                "TLS handshake failed: {peer} {reason} ({count} failed on {listener})",
                peer=self.transport.getPeer(),
                reason=_reason(reason),
                count=factory.handshake_failures,
                listener=factory.name,
            )
        if session is not None:
            session.connection_lost(Ending.TLS_FAILED if is_handshake else Ending.LOST)
            pending, being_stored = self._pending, session.being_stored
            if being_stored is not None:
                factory.writer.connection_lost([being_stored])
            elif pending is not None:
                pending.cancel()
            self._after_the_end()
        factory.connection_ended()

    def _after_the_end(self) -> None:
        """Report what is left; also when storage answers after the client has gone."""
        session = self._session
        if session is None:
            return
        self._report(session)
        self._account(session)
        if session.unconfirmed:
            self.factory.writer.connection_lost(session.unconfirmed)
            session.unconfirmed.clear()

    def _session_id(self) -> str:
        return encode_id(self._session.view.id) if self._session is not None else "(not begun)"


class MailFactory(smtp.SMTPFactory):
    """Makes a MailConnection for each client of one listener."""

    noisy = False

    def __init__(
        self,
        *,
        name: str,
        role: Role,
        rules: Rules,
        chain: Decider,
        writer: Writer,
        journal: Recorder,
        ids: IdGenerator,
        clock: IReactorTime,
        time: Callable[[], float],
        usage: Usage,
        tls: IOpenSSLServerConnectionCreator | None = None,
        is_implicit_tls: bool = False,
        proxy_from: tuple[Network, ...] = (),
        authenticator: Authenticator | None = None,
        local_users: LocalUsers | None = None,
    ) -> None:
        """`time` gives seconds since the epoch; `usage` is shared by the listeners of a process."""
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's has no types
        self.name = name
        self.role = role
        self.rules = rules
        self.chain = chain
        self.writer = writer
        self.journal = journal
        self.ids = ids
        self.clock = clock
        self.time = time
        self.usage = usage
        self.tls = tls
        self.is_implicit_tls = is_implicit_tls
        self.proxy_from = proxy_from
        self.authenticator = authenticator
        self.local_users = local_users
        self.connections: set[MailConnection] = set()
        self.handshake_failures = 0
        self.is_stopping = False
        self._emptied: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> TwistedProtocol:
        """Make the connection's protocol."""
        return MailConnection(self)

    def shut_down(self, seconds: float) -> Deferred[None]:
        """End all sessions, those in the middle of a message after it; fires when none is left.

        Those that are left after `seconds` are aborted: their clients have not heard 250.
        """
        self.is_stopping = True
        for connection in tuple(self.connections):
            connection.shut_down()
        done: Deferred[None] = Deferred()
        if not self.connections:
            done.callback(None)
            return done
        self._emptied.append(done)
        timer = self.clock.callLater(seconds, self._abort_all)

        def finished(_result: object) -> None:
            if timer.active():
                timer.cancel()

        return done.addCallback(finished)

    def connection_ended(self) -> None:
        """A connection is gone; the last one lets `shut_down` finish."""
        if not self.connections:
            emptied, self._emptied = self._emptied, []
            for deferred in emptied:
                deferred.callback(None)

    def _abort_all(self) -> None:
        for connection in tuple(self.connections):
            connection.transport.abortConnection()


@lru_cache(maxsize=8192)
def _plain(address: str) -> str:
    """The address without its disguise as an IPv6 one, and without a zone."""
    if ":" in address:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
        return str(parsed.ipv4_mapped or parsed)
    return address


def _address_of(address: Any) -> tuple[str, int]:  # Any: an IAddress has no fields; these two have
    host = getattr(address, "host", None)
    return (_plain(host), address.port) if host is not None else (_UNKNOWN_CLIENT, 0)


def _peer_uid(transport: Any) -> int | None:  # Any: of a transport only its socket is looked at
    """The user of the process at the other end of a Unix socket, as the kernel tells it; None for any other socket."""
    connection = getattr(transport, "socket", None)
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    _pid, uid, _gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return int(uid)


def _go_on(_result: None) -> None:
    """Nothing is to be done with the answer."""


def _cancelled(failure: Failure) -> None:
    """The client is gone: others have their turn anyway."""
    failure.trap(CancelledError)


def _reason(failure: Failure) -> str:
    """OpenSSL's words for an error: its last and most specific one."""
    arguments = failure.value.args if failure.value is not None else ()
    details = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return str(details[-1][-1]) if details else failure.getErrorMessage() or "connection closed"
