"""A way to PostgreSQL that can be cut at a chosen moment: between a query and its answer."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2.extensions import make_dsn, parse_dsn
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IListeningPort
    from twisted.python.failure import Failure


class UnreliableWay:
    """A Unix socket that leads to a server's. `dsn` goes that way."""

    def __init__(self, reactor: Any, dsn: str) -> None:  # Any: Twisted types the reactor as less than it is
        given = parse_dsn(dsn)
        self._reactor = reactor
        self._folder = Path(tempfile.mkdtemp(prefix="mailgate-way-"))
        name = f".s.PGSQL.{given.get('port', '5432')}"
        self._server = str(Path(given["host"]) / name)
        self.dsn = make_dsn(dsn, host=str(self._folder))
        self.is_open = True  # whether new connections get through
        self.cuts = 0
        self._marker: bytes | None = None
        self._waits_for_answer = True
        self._ends: list[_Client] = []
        self._port: IListeningPort = reactor.listenUNIX(str(self._folder / name), _WayFactory(self))

    def cut_at(self, marker: bytes, *, before_answer_is_known: bool = False, stay_closed: bool = False) -> None:
        """Cut the connection on which the next query with these octets comes.

        The query gets through. It is cut when the server answers, which is after COMMIT; or at once, while the server
        may still be at it. No new connection gets through where `stay_closed` is set.
        """
        self._marker = marker
        self._waits_for_answer = not before_answer_is_known
        self._stay_closed = stay_closed

    async def close(self) -> None:
        """Close it all."""
        for end in list(self._ends):
            end.cut()
        stopped = self._port.stopListening()
        if stopped is not None:
            await stopped
        shutil.rmtree(self._folder, ignore_errors=True)

    def client_said(self, end: _Client, data: bytes) -> None:
        """Look for the marker."""
        if self._marker is not None and self._marker in data:
            self._marker = None
            end.is_marked = True
            if not self._waits_for_answer:
                self._cut(end)

    def server_said(self, end: _Client, data: bytes) -> bool:
        """Whether the client may have it."""
        if end.is_marked:
            self._cut(end)
            return False
        return True

    def _cut(self, end: _Client) -> None:
        self.cuts += 1
        if self._stay_closed:
            self.is_open = False
        # What was written to the server goes out first: loseConnection.
        self._reactor.callLater(0, end.cut)


class _WayFactory(Factory):
    def __init__(self, way: UnreliableWay) -> None:
        self.way = way

    def buildProtocol(self, addr: IAddress | None) -> _Client:
        return _Client(self.way)


class _Client(Protocol):
    """The client's end."""

    def __init__(self, way: UnreliableWay) -> None:
        self.way = way
        self.is_marked = False
        self._server: _Server | None = None
        self._early: list[bytes] = []

    def connectionMade(self) -> None:
        self.way._ends.append(self)
        if not self.way.is_open:
            self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
            return
        self.way._reactor.connectUNIX(self.way._server, _ServerFactory(self))

    def dataReceived(self, data: bytes) -> None:
        if self._server is None:
            self._early.append(data)
            return
        self._server.transport.write(data)  # type: ignore[union-attr]  # it is connected
        self.way.client_said(self, data)

    def server_is_there(self, server: _Server) -> None:
        self._server = server
        for data in self._early:
            server.transport.write(data)  # type: ignore[union-attr]  # it is connected

    def server_said(self, data: bytes) -> None:
        if self.way.server_said(self, data):
            self.transport.write(data)  # type: ignore[union-attr]  # it is connected

    def cut(self) -> None:
        if self._server is not None:
            self._server.transport.loseConnection()  # type: ignore[union-attr]  # it is connected
        self.transport.abortConnection()  # type: ignore[union-attr]  # it is connected

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self in self.way._ends:
            self.way._ends.remove(self)
        if self._server is not None:
            self._server.transport.loseConnection()  # type: ignore[union-attr]  # it is connected


class _ServerFactory(ClientFactory):
    noisy = False

    def __init__(self, client: _Client) -> None:
        self.client = client

    def buildProtocol(self, addr: IAddress | None) -> _Server:
        return _Server(self.client)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self.client.cut()


class _Server(Protocol):
    """The server's end."""

    def __init__(self, client: _Client) -> None:
        self.client = client

    def connectionMade(self) -> None:
        self.client.server_is_there(self)

    def dataReceived(self, data: bytes) -> None:
        self.client.server_said(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.client.cut()
