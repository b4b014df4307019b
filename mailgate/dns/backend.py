"""dnspython's sockets, on Twisted's reactor.

dnspython builds, sends, checks and reads DNS messages; this module only carries them. Every UDP query has a socket of
its own, bound to a port that the kernel picks at random and connected to the server, so that datagrams from elsewhere
never reach us and a closed port is known at once. What a peer sends is bounded before dnspython reads it.

A cancelled Deferred ends the look-up that waits for it: `Abandoned` is no Exception, for dnspython takes any of those
as a reason to try the next server. Every socket is closed when its look-up ends, however it ends.

Not here: DNS over TLS or HTTPS, for which dnspython wants an ssl.SSLContext; a resolver on this machine can do that.

Standards: RFC 1035 section 4.2 (UDP and TCP), RFC 5452 section 9 (ports and ids), RFC 7766 (TCP).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import dns.asyncbackend
import dns.exception
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from zope.interface import implementer

from mailgate.dns.guard import is_affordable

if TYPE_CHECKING:
    from twisted.python.failure import Failure

_T = TypeVar("_T")

MAX_DATAGRAM_OCTETS: Final = 4096  # we say 1232 in EDNS; what is longer than this is cut, and so no answer
MAX_DATAGRAMS: Final = 16  # taken for one query: a flood of forgeries costs the query, and no more of our time
MAX_CANDIDATES: Final = 4  # of those, read for the answer
_HEADER_OCTETS: Final = 12
_LENGTH_OCTETS: Final = 2  # of the number before a message on a stream
_MAX_STREAM_OCTETS: Final = _LENGTH_OCTETS + 65_535


class Abandoned(BaseException):
    """Whoever waited for this look-up cancelled it, or its time is over."""


class TwistedBackend(dns.asyncbackend.Backend):  # type: ignore[name-defined,misc]  # re-exported, but not said so
    """Gives dnspython sockets, sleep and time-outs on that reactor."""

    def __init__(self, reactor: Any) -> None:  # Any: one object with more interfaces than a type can name
        """Open nothing yet."""
        self._reactor = reactor
        self.open_sockets = 0

    def name(self) -> str:
        """What dnspython calls it."""
        return "twisted"

    def datagram_connection_required(self) -> bool:
        """Have make_socket told where a datagram goes."""
        return True

    async def make_socket(
        self,
        af: int,
        socktype: int,
        proto: int = 0,
        source: tuple[str, int] | None = None,
        destination: tuple[str, int] | None = None,
        timeout: float | None = None,
        ssl_context: object = None,
        server_hostname: str | None = None,
    ) -> DatagramSocket | StreamSocket:
        """A socket to that address.

        @raises OSError: there is no way there, or no room for a socket.
        @raises dns.exception.Timeout: no connection came about in time.
        """
        if destination is None or source is not None or ssl_context is not None:
            raise NotImplementedError("only plain sockets to a known address, from one that the kernel picks")
        if socktype == socket.SOCK_DGRAM:
            return DatagramSocket(self, af, destination)
        stream = StreamSocket(self, af)
        endpoint_class = TCP6ClientEndpoint if af == socket.AF_INET6 else TCP4ClientEndpoint
        factory = Factory.forProtocol(lambda: stream.protocol)
        factory.noisy = False
        endpoint = endpoint_class(self._reactor, destination[0], destination[1])
        try:
            await self.within(timeout, endpoint.connect(factory))
        except ConnectError as error:
            raise ConnectionRefusedError(f"no connection: {error}") from error
        return stream

    async def sleep(self, interval: float) -> None:
        """Return after that many seconds."""
        await self.within(None, deferLater(self._reactor, interval))

    async def wait_for(self, awaitable: Awaitable[_T], timeout: float | None) -> _T:
        """What the awaitable comes to.

        @raises dns.exception.Timeout: not within that many seconds.
        """
        return await self.within(timeout, ensureDeferred(_awaited(awaitable)))

    async def within(self, timeout: float | None, deferred: Deferred[_T]) -> _T:
        """What the Deferred fires with.

        @raises dns.exception.Timeout: not within that many seconds.
        @raises Abandoned: it was cancelled.
        """
        if timeout is not None:
            deferred.addTimeout(timeout, self._reactor, onTimeoutCancel=_timed_out)
        try:
            return await deferred
        except (CancelledError, ConnectingCancelledError):
            raise Abandoned from None

    def add_reader(self, reader: DatagramSocket) -> None:
        """Have the reactor tell that socket when there is something to read."""
        self._reactor.addReader(reader)

    def remove_reader(self, reader: DatagramSocket) -> None:
        """Take that back."""
        self._reactor.removeReader(reader)


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


def _timed_out(_result: object, timeout: float) -> NoReturn:
    raise dns.exception.Timeout(timeout=timeout)  # type: ignore[no-untyped-call]  # dnspython's


@implementer(IReadDescriptor)
class DatagramSocket(dns.asyncbackend.DatagramSocket):  # type: ignore[name-defined,misc]  # as above
    """A UDP socket for one query.

    It isn't made by listenUDP, which writes two lines to the log for each port that it opens.
    """

    def __init__(self, backend: TwistedBackend, family: int, destination: tuple[str, int]) -> None:
        """Connect, and so bind.

        @raises OSError: there is no way there, or no room for a socket.
        """
        super().__init__(family, socket.SOCK_DGRAM)
        self._backend = backend
        self._id = b""  # of the query
        self._arrived: deque[bytes] = deque()
        self._seen = 0
        self._candidates = 0
        self._waiting: Deferred[None] | None = None
        self._error: OSError | None = None
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(destination)
        except OSError:
            self._socket.close()
            raise
        backend.open_sockets += 1
        backend.add_reader(self)

    async def sendto(self, what: bytes, destination: object, timeout: float | None) -> int:
        """Send to where the socket is connected to."""
        self._id = what[:2]
        self._destination = destination
        return self._socket.send(what)

    async def recvfrom(self, size: int, timeout: float | None) -> tuple[bytes, object]:
        """The next datagram that can be the answer, and where it comes from."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            self._waiting = Deferred()
            await self._backend.within(timeout, self._waiting)
        return self._arrived.popleft(), self._destination

    async def close(self) -> None:
        """Give the port back."""
        if self._socket.fileno() != -1:
            self._backend.open_sockets -= 1
            self._backend.remove_reader(self)
            self._socket.close()

    def fileno(self) -> int:
        """What the reactor polls."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What the reactor calls it."""
        return "dns"

    def doRead(self) -> None:
        """Keep what bears the query's id, as long as there were not too many before."""
        while self._seen < MAX_DATAGRAMS:
            try:
                datagram = self._socket.recv(MAX_DATAGRAM_OCTETS)
            except BlockingIOError:
                break
            except OSError as error:
                self._error = error
                break
            self._seen += 1
            if datagram[:2] == self._id and len(datagram) >= _HEADER_OCTETS and is_affordable(datagram):
                self._arrived.append(datagram)
                self._candidates += 1
                if self._candidates == MAX_CANDIDATES:
                    self._seen = MAX_DATAGRAMS
        if self._seen >= MAX_DATAGRAMS:
            self._backend.remove_reader(self)
        self._wake()

    def connectionLost(self, reason: Failure) -> None:
        """Note why it is useless, as where nobody listens there. Some reactors say it so, and have stopped reading."""
        if self._socket.fileno() != -1:  # else we have closed it, which they don't expect while they read from it
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._error = OSError(code, os.strerror(code))
            self._wake()

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and (self._arrived or self._error is not None):
            self._waiting = None
            waiting.callback(None)


class _Stream(Protocol):
    """What arrives on one TCP connection, as much of it as one message may have."""

    transport: Any  # Any: the interface lacks what a connection can do

    def __init__(self, socket: StreamSocket) -> None:
        self._socket = socket
        self.arrived = bytearray()
        self.is_over = False
        self.wanted = 0
        self.waiting: Deferred[None] | None = None

    def makeConnection(self, transport: Any) -> None:  # Any: Protocol's own has ITransport
        """Count the socket as open."""
        super().makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted's
        self._socket.opened()

    def dataReceived(self, data: bytes) -> None:
        """Keep it; wake who waits for as much as there is."""
        self.arrived += data
        if len(self.arrived) > _MAX_STREAM_OCTETS:
            self.transport.pauseProducing()
        if len(self.arrived) >= self.wanted:
            self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Wake who waits for more: nothing will come."""
        self.is_over = True
        self._socket.closed()
        self._wake()

    def _wake(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(None)


class StreamSocket(dns.asyncbackend.StreamSocket):  # type: ignore[name-defined,misc]  # as above
    """A TCP connection for one query and its answer."""

    def __init__(self, backend: TwistedBackend, family: int) -> None:
        """Make its protocol; who makes it connects that."""
        super().__init__(family, socket.SOCK_STREAM)
        self._backend = backend
        self._is_open = False
        self.protocol = _Stream(self)

    def opened(self) -> None:
        """Note that the connection is there."""
        self._is_open = True
        self._backend.open_sockets += 1

    def closed(self) -> None:
        """Note that it is gone."""
        if self._is_open:
            self._is_open = False
            self._backend.open_sockets -= 1

    async def getpeername(self) -> tuple[str, int]:
        """Where the connection leads to."""
        peer: Any = self.protocol.transport.getPeer()  # Any: an IAddress says nothing of host and port
        return peer.host, peer.port

    async def sendall(self, what: bytes, timeout: float | None) -> None:
        """Send; a query fits any buffer."""
        self.protocol.transport.write(what)

    async def recv(self, size: int, timeout: float | None) -> bytes:
        """As many octets as were asked for; fewer, and at last none, where the peer has closed.

        A message is read in one go, so that one octet at a time costs the peer more than us.
        """
        protocol = self.protocol
        protocol.wanted = size
        while len(protocol.arrived) < size and not protocol.is_over:
            protocol.waiting = Deferred()
            await self._backend.within(timeout, protocol.waiting)
        found = bytes(protocol.arrived[:size])
        del protocol.arrived[:size]
        if len(found) > _LENGTH_OCTETS and not is_affordable(found):
            raise dns.exception.FormError("it would take too long to read")  # type: ignore[no-untyped-call]  # dnspython's
        return found

    async def close(self) -> None:
        """Drop the connection."""
        if self._is_open:
            self.protocol.transport.abortConnection()
