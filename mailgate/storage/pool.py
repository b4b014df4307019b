"""Connections to PostgreSQL that come back by themselves, one query at a time each, with a deadline on every query.

The only module that imports txpostgres. A connection that is lost, times out or is in doubt is never repaired but
replaced by a new one; txpostgres' own pool and dead-connection detector don't do that in every case. What was running
on it fails with `StorageUnavailable`, because nobody knows whether it was done. What was waiting gets a short while to
meet the next connection.

Not here: transactions over several round trips. The simple query protocol carries several statements in one string as
one implicit transaction; that is all that mailgate needs.

Host names are looked up by libpq, and that blocks the reactor at each (re)connect: name addresses or a socket's folder
in the DSN, or have the names in /etc/hosts. Nothing is resolved here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import SystemRandom
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Cooperator
from twisted.logger import Logger
from twisted.python.failure import Failure
from txpostgres import txpostgres

from mailgate.storage import migrate
from mailgate.storage.errors import DatabaseRefused, StorageUnavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime

    class _Reactor(IReactorFDSet, IReactorTime):
        """Two interfaces in one, for the type checker alone."""


__all__ = ["Connection", "DatabaseRefused", "Execute", "Pool", "Row", "StorageUnavailable", "check_server"]

Row = tuple[Any, ...]  # what PostgreSQL sends is typed by the statement, not by us
Execute = Callable[..., Awaitable[list[Row]]]
_T = TypeVar("_T")

FIRST_BACKOFF_SECONDS = 0.05
LAST_BACKOFF_SECONDS = 5.0
AWAITED_BACKOFF_SECONDS = 0.25  # the longest pause between two attempts while someone waits
PATIENCE_SECONDS = 2.0  # how long a query waits for a connection, at most
_STEADY_SECONDS = 2.0  # a connection that lived that long was a good one
_OLDEST_SERVER = 150000

# SQLSTATE classes and codes that tell of the server's state rather than of the statement.
_SERVER_CLASSES = ("08", "53", "57", "58", "XX", "40")
_SERVER_CODES = ("25006", "55P03")  # read_only_sql_transaction (a former primary), lock_not_available
_LOST_STATES = ("08", "57P", "25006")  # after these another connection is needed

# What the kernel and libpq do about a server that has silently gone. Only for hosts that are reached over TCP.
_TCP_DEFAULTS = {
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}

log = Logger()
_random = SystemRandom()


class _Query:
    """A query that waits or runs. `done` may be cancelled: a waiting query is dropped, a running one goes on."""

    __slots__ = ("deadline", "done", "parameters", "sql", "timer")

    def __init__(self, sql: str | bytes, parameters: Sequence[object] | None, deadline: float) -> None:
        self.sql = sql
        self.parameters = parameters
        self.deadline = deadline  # the timer may go off earlier, while there is no connection
        self.done: Deferred[list[Row]] = Deferred()
        self.timer: IDelayedCall | None = None

    def succeed(self, rows: list[Row]) -> None:
        self.forget_timer()
        if not self.done.called:
            self.done.callback(rows)

    def fail(self, error: Exception | Failure) -> None:
        self.forget_timer()
        if not self.done.called:
            self.done.errback(error)

    def forget_timer(self) -> None:
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()


class _Cursor(txpostgres.Cursor):  # type: ignore[misc]  # the base class has no types
    """A cursor of txpostgres that tells a query that the server has cancelled from a Deferred that we have."""

    def execute(self, query: str | bytes, params: Sequence[object] | None = None) -> Deferred[_Cursor]:
        """Send a statement; the Deferred fires when all of its answer is here.

        Where the server has gone, libpq notices while it sends, and closes the socket. The reactor must have let go of
        it by then: the next connection of anybody gets the same descriptor, and the reactor would not watch that one.
        """
        wire = self._connection
        wire.reactor.removeReader(wire)
        sent: Deferred[_Cursor] = super().execute(query, params)
        wire.go_on_without(self)
        return sent

    def _handleCancellation(self, failure: Failure) -> Failure:  # noqa: N802 - txpostgres calls it
        return failure


class _Wire(txpostgres.Connection):  # type: ignore[misc]  # the base class has no types
    """One connection of txpostgres; says when it is lost instead of logging a traceback."""

    cursorFactory = _Cursor  # txpostgres' name

    def __init__(
        self, reactor: _Reactor, lost: Callable[[Exception], None], notified: Callable[[str, str], None]
    ) -> None:
        # The cooperator would be the global reactor's; notifications go straight to their observers here anyway.
        super().__init__(reactor, Cooperator(scheduler=lambda call: reactor.callLater(0, call), started=False))
        self._lost = lost
        self._notified = notified

    def doRead(self) -> None:
        """Something has come while no query runs: a notification, or the end."""
        self.reactor.removeReader(self)
        if self._connection.closed:
            return
        try:
            self.continuePolling()
        except (psycopg2.Error, txpostgres.UnexpectedPollResult) as error:
            self._lost(error)
            return
        self.checkForNotifies()
        if not self._cursors:
            self._watch()

    def cursorFinished(self, cursor: _Cursor) -> None:  # noqa: N802 - txpostgres calls it
        """A query has ended: listen for notifications again."""
        self._cursors.discard(cursor)
        if not self._connection.closed:
            self.checkForNotifies()
            self._watch()

    def go_on_without(self, cursor: _Cursor) -> None:
        """Listen for notifications again if that query was not even sent."""
        if cursor not in self._cursors:
            self._watch()

    def _watch(self) -> None:
        if self._connection.closed:
            return
        # Refused while it was being made, or ended right behind an answer: libpq has given the socket up, and psycopg2
        # has not noticed yet.
        if self.fileno() < 0:
            self.reactor.callLater(0, self._lost, psycopg2.OperationalError("the server closed the connection"))
            return
        self.reactor.addReader(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has seen the socket's end."""
        super().connectionLost(reason)
        self._lost(psycopg2.OperationalError("the connection was closed"))

    def checkForNotifies(self) -> None:  # noqa: N802 - txpostgres calls it
        """Hand on what NOTIFY brought."""
        notifies = self._connection.notifies
        while notifies:
            notify = notifies.pop(0)
            self._notified(notify.channel, notify.payload)

    def close(self) -> None:
        """Close the socket; what runs fails."""
        if self._connection is not None:
            super().close()


class _Work:
    """The queries that wait for one of several connections."""

    def __init__(self, reactor: _Reactor) -> None:
        self.reactor = reactor
        self.waiting: deque[_Query] = deque()
        self.connections: list[Connection] = []
        self.is_stopped = False

    def submit(self, sql: str | bytes, parameters: Sequence[object] | None, timeout_seconds: float) -> _Query:
        query = _Query(sql, parameters, self.reactor.seconds() + timeout_seconds)
        if self.is_stopped:
            query.fail(StorageUnavailable("shutting down"))
            return query
        connected = False
        for connection in self.connections:
            if connection.is_connected:
                connected = True
                if connection.is_idle:
                    query.timer = self.reactor.callLater(timeout_seconds, connection.give_up, query)
                    connection.run(query)
                    return query
        bound = timeout_seconds if connected else min(timeout_seconds, PATIENCE_SECONDS)
        query.timer = self.reactor.callLater(bound, self._give_up, query)
        self.waiting.append(query)
        if not connected:
            for connection in self.connections:
                connection.hurry()
        return query

    def next(self, connection: Connection) -> None:
        """That connection is free."""
        while self.waiting:
            query = self.waiting.popleft()
            if query.done.called:  # cancelled
                query.forget_timer()
            else:
                if query.timer is not None and query.timer.getTime() < query.deadline:
                    query.timer.reset(max(query.deadline - self.reactor.seconds(), 0))
                connection.run(query)
                return

    def connection_lost(self) -> None:
        """Let those that wait do so for a short while only."""
        if any(connection.is_connected for connection in self.connections):
            return
        latest = self.reactor.seconds() + PATIENCE_SECONDS
        for query in self.waiting:
            if query.timer is not None and query.timer.active() and query.timer.getTime() > latest:
                query.timer.reset(PATIENCE_SECONDS)

    def stop(self) -> None:
        self.is_stopped = True
        while self.waiting:
            self.waiting.popleft().fail(StorageUnavailable("shutting down"))

    def _give_up(self, query: _Query) -> None:
        query.timer = None
        for connection in self.connections:
            if connection.is_running(query):
                connection.give_up(query)
                return
        if query in self.waiting:
            self.waiting.remove(query)
        reasons = {connection.trouble for connection in self.connections if not connection.is_connected}
        query.fail(StorageUnavailable("; ".join(sorted(reasons)) or "all database connections are busy"))


class Connection:
    """One connection to the database, replaced by a new one whenever it is lost or in doubt."""

    def __init__(
        self,
        reactor: _Reactor,
        dsn: str,
        *,
        name: str,
        setup: Callable[[Execute], Awaitable[None]] | None = None,
        connect_timeout_seconds: float = 5.0,
        _work: _Work | None = None,
    ) -> None:
        """`setup` runs after each (re)connect, before anyone else's query. `name` is for logs and pg_stat_activity."""
        self.name = name
        self.trouble = "not connected yet"  # why there is no connection, for people
        self._reactor = reactor
        self._dsn = _complete(dsn, name)
        self._setup = setup
        self._connect_timeout_seconds = connect_timeout_seconds
        self._work = _work if _work is not None else _Work(reactor)
        self._work.connections.append(self)
        self._wire: _Wire | None = None  # set up and open to everyone
        self._running: _Query | None = None
        self._owner: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None  # fires when the present connection is lost
        self._pause: IDelayedCall | None = None
        self._paused: Deferred[None] | None = None
        self._connected_waiters: list[Deferred[None]] = []
        self._observers: dict[str, list[Callable[[str], None]]] = {}
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_lost: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ for everyone

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._wire is not None

    def start(self) -> None:
        """Connect, and stay connected until `stop`."""
        if self._owner is None:
            self._owner = Deferred.fromCoroutine(self._stay_connected())
            self._owner.addErrback(self._owner_failed)

    async def stop(self) -> None:
        """Close the connection; what runs or waits fails with StorageUnavailable."""
        owner, self._owner = self._owner, None
        self._work.stop()
        if owner is not None:
            owner.cancel()
        self.trouble = "shutting down"
        wire, self._wire = self._wire, None
        if wire is not None:
            self._drop(wire, StorageUnavailable("shutting down"))
        self._fire_connected(StorageUnavailable("shutting down"))

    async def connected(self, timeout_seconds: float) -> None:
        """Return once there is a connection.

        @raises StorageUnavailable: there was none in that time; the message says why.
        """
        if self._wire is not None:
            return
        waiter: Deferred[None] = Deferred()
        self._connected_waiters.append(waiter)
        timer = self._reactor.callLater(timeout_seconds, lambda: waiter.errback(StorageUnavailable(self.trouble)))
        self.hurry()
        try:
            await waiter
        finally:
            if timer.active():
                timer.cancel()
            if waiter in self._connected_waiters:
                self._connected_waiters.remove(waiter)

    async def execute(
        self, sql: str | bytes, parameters: Sequence[object] | None = None, *, timeout_seconds: float = 10.0
    ) -> list[Row]:
        """The rows of the last statement; empty where it has none.

        With `parameters` None the text is sent as it is: several statements are one round trip and one implicit
        transaction. Cancelling takes nothing back: what runs, runs to its end.

        @raises StorageUnavailable: it is unknown whether it was done (or it surely was not: nobody answers).
        @raises psycopg2.Error: the statement itself was refused, and nothing was done.
        """
        return await self._work.submit(sql, parameters, timeout_seconds).done

    def listen(self, channel: str, observer: Callable[[str], None]) -> None:
        """Call `observer` with the payload of each notification on that channel, after every reconnect too.

        Notifications are lost while there is no connection: `on_reconnect` tells when that may have happened.
        """
        known = channel in self._observers
        self._observers.setdefault(channel, []).append(observer)
        if not known and self._wire is not None:
            listening = self._work.submit(f'LISTEN "{channel}"', None, 10.0).done
            listening.addErrback(self._listen_failed)

    def on_reconnect(self, observer: Callable[[], None]) -> None:
        """Call `observer` after every connect, the first included, once the channels are listened to."""
        self._on_reconnect.append(observer)

    def on_lost(self, observer: Callable[[], None]) -> None:
        """Call `observer` whenever the connection was lost."""
        self._on_lost.append(observer)

    # ------------------------------------------------------------------ for _Work

    @property
    def is_idle(self) -> bool:
        """Whether there is a connection on which nothing runs."""
        return self._wire is not None and self._running is None

    def is_running(self, query: _Query) -> bool:
        """Whether that query runs here."""
        return self._running is query

    def run(self, query: _Query) -> None:
        """Run a query now; the connection is idle."""
        wire = self._wire
        if wire is None:
            query.fail(StorageUnavailable(self.trouble))
            return
        self._running = query
        Deferred.addCallbacks(
            _send(wire, query.sql, query.parameters),
            self._finished,
            self._refused,
            callbackArgs=(wire, query),
            errbackArgs=(wire, query),
        )

    def give_up(self, query: _Query) -> None:
        """The time of a running query is over: the connection is replaced; the server ends the query by itself."""
        query.timer = None
        wire = self._wire
        if wire is not None and self._running is query:
            self._replace(wire, StorageUnavailable("the database did not answer in time"))
        query.fail(StorageUnavailable("the database did not answer in time"))

    def hurry(self) -> None:
        """Someone waits: shorten the pause before the next attempt to connect."""
        if self._pause is not None and self._pause.active():
            left = self._pause.getTime() - self._reactor.seconds()
            if left > AWAITED_BACKOFF_SECONDS:
                self._pause.reset(AWAITED_BACKOFF_SECONDS * _random.uniform(0.5, 1.0))

    # ------------------------------------------------------------------ queries

    def _finished(self, rows: list[Row], wire: _Wire, query: _Query) -> None:
        self._free(wire, query)
        query.succeed(rows)

    def _refused(self, failure: Failure, wire: _Wire, query: _Query) -> None:
        error = failure.value
        if not isinstance(error, psycopg2.Error) or _is_lost(error):
            query.fail(StorageUnavailable(_sentence(error)))
            if self._wire is wire:
                self._replace(wire, StorageUnavailable(_sentence(error)))
            return
        self._free(wire, query)
        query.fail(StorageUnavailable(_sentence(error)) if _is_of_the_server(error) else failure)

    def _free(self, wire: _Wire, query: _Query) -> None:
        """Go on to who has waited longest, before the one who has just been served can ask again."""
        if self._running is query:
            self._running = None
        if self.is_idle and self._wire is wire and self._work.waiting:
            self._work.next(self)

    # ------------------------------------------------------------------ the life of connections

    async def _stay_connected(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        attempt = 0
        while True:
            try:
                wire = await self._connect(attempt)
            except StorageUnavailable as error:
                if self.trouble != str(error):
                    log.warn("{name}: no database: {reason}", name=self.name, reason=str(error))
                self.trouble = str(error)
                attempt += 1
                await self._wait(backoff)
                backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)
                continue
            since = self._reactor.seconds()
            ended = self._ended
            self._open(wire)
            if ended is not None:
                await ended
            if (
                self._work.is_stopped
            ):  # by someone whom `_open` has called: a coroutine can't be cancelled while it runs
                return
            if self._reactor.seconds() - since >= _STEADY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
                attempt = 0
            else:  # a server that accepts and drops: don't go round in circles at full speed
                await self._wait(backoff)
                backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)

    async def _connect(self, attempt: int) -> _Wire:
        """A connection that is set up, with its channels listened to."""
        ended: Deferred[None] = Deferred()
        self._ended = ended
        wire: _Wire

        def lost(error: Exception) -> None:
            self._wire_lost(wire, ended, error)

        wire = _Wire(self._reactor, lost, self._notify)
        is_late = False

        def too_late() -> None:
            nonlocal is_late
            is_late = True
            wire.close()

        timer = self._reactor.callLater(self._connect_timeout_seconds, too_late)
        try:
            await _closing_if_cancelled(wire, wire.connect(_rotated(self._dsn, attempt)))

            def execute(
                sql: str | bytes, parameters: Sequence[object] | None = None, *, timeout_seconds: float = 10.0
            ) -> Deferred[list[Row]]:
                # The time for all of it is connect_timeout_seconds.
                return _closing_if_cancelled(wire, _send(wire, sql, parameters))

            # A server ends a query whose client has gone at once, not when it comes to answer.
            await execute("SELECT set_config('client_connection_check_interval', '1s', false)")
            if self._setup is not None:
                await self._set_up(self._setup, execute)
            for channel in self._observers:
                await execute(f'LISTEN "{channel}"')
        except CancelledError:
            wire.close()
            if is_late:
                raise StorageUnavailable("the database did not answer in time") from None
            raise
        except Exception as error:
            wire.close()
            if is_late:
                raise StorageUnavailable("the database did not answer in time") from error
            raise StorageUnavailable(_sentence(error)) from error
        finally:
            if timer.active():
                timer.cancel()
        if ended.called:
            raise StorageUnavailable("the connection was lost at once")
        return wire

    async def _set_up(self, setup: Callable[[Execute], Awaitable[None]], execute: Execute) -> None:
        try:
            await setup(execute)
        except (CancelledError, psycopg2.Error, ConnectionDone):  # a stop, or the database's affair; else it is ours
            raise
        except Exception:
            log.failure("{name}: setting up the connection failed", name=self.name)
            raise

    def _open(self, wire: _Wire) -> None:
        self._wire = wire
        self.trouble = ""
        log.debug("{name}: connected", name=self.name)
        _call_all(self._on_reconnect)
        self._fire_connected(None)
        if self.is_idle:
            self._work.next(self)

    def _wire_lost(self, wire: _Wire, ended: Deferred[None], error: Exception) -> None:
        if self._wire is wire:
            self._replace(wire, StorageUnavailable(_sentence(error)))
        elif not ended.called:
            ended.callback(None)

    def _replace(self, wire: _Wire, reason: StorageUnavailable) -> None:
        self._wire = None
        self.trouble = str(reason)
        log.warn("{name}: the database connection was lost: {reason}", name=self.name, reason=str(reason))
        self._drop(wire, reason)
        self._work.connection_lost()
        _call_all(self._on_lost)
        ended = self._ended
        if ended is not None and not ended.called:
            ended.callback(None)

    def _drop(self, wire: _Wire, reason: StorageUnavailable) -> None:
        query, self._running = self._running, None
        if query is not None:
            query.fail(reason)
        wire.close()

    async def _wait(self, backoff_seconds: float) -> None:
        self._paused = Deferred(lambda _: self._end_pause())
        self._pause = self._reactor.callLater(backoff_seconds * _random.uniform(0.5, 1.0), self._resume)
        if self._work.waiting or self._connected_waiters:
            self.hurry()
        await self._paused

    def _resume(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.callback(None)

    def _end_pause(self) -> None:
        if self._pause is not None and self._pause.active():
            self._pause.cancel()

    def _fire_connected(self, error: Exception | None) -> None:
        waiters, self._connected_waiters = self._connected_waiters, []
        for waiter in waiters:
            if error is None:
                waiter.callback(None)
            else:
                waiter.errback(error)

    def _notify(self, channel: str, payload: str) -> None:
        for observer in self._observers.get(channel, ()):
            try:
                observer(payload)
            except Exception:
                log.failure("an observer of {channel} failed", channel=channel)

    def _listen_failed(self, failure: Failure) -> None:
        failure.trap(StorageUnavailable)  # the reconnect listens again

    def _owner_failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self.trouble = "mailgate's own fault: see the log"
            log.failure("{name}: gave up on the database", failure, name=self.name)


class Pool:
    """Several connections that share one queue."""

    def __init__(
        self,
        reactor: _Reactor,
        dsn: str,
        *,
        size: int,
        name: str,
        setup: Callable[[Execute], Awaitable[None]] | None = None,
        connect_timeout_seconds: float = 5.0,
    ) -> None:
        """`size` is the number of connections, all opened at once. The rest is as for `Connection`."""
        self._work = _Work(reactor)
        self._connections = [
            Connection(
                reactor,
                dsn,
                name=f"{name}-{number}",
                setup=setup,
                connect_timeout_seconds=connect_timeout_seconds,
                _work=self._work,
            )
            for number in range(1, size + 1)
        ]

    @property
    def is_connected(self) -> bool:
        """Whether at least one connection is there."""
        return any(connection.is_connected for connection in self._connections)

    def start(self) -> None:
        """Connect, and stay connected until `stop`."""
        for connection in self._connections:
            connection.start()

    async def stop(self) -> None:
        """Close all connections; what runs or waits fails with StorageUnavailable."""
        for connection in self._connections:
            await connection.stop()

    async def connected(self, timeout_seconds: float) -> None:
        """Return once all connections are there. @raises StorageUnavailable: not in that time."""
        deadline = self._work.reactor.seconds() + timeout_seconds
        for connection in self._connections:
            await connection.connected(max(deadline - self._work.reactor.seconds(), 0))

    async def execute(
        self, sql: str | bytes, parameters: Sequence[object] | None = None, *, timeout_seconds: float = 10.0
    ) -> list[Row]:
        """As `Connection.execute`, on a connection that is free; the time includes the wait for one."""
        return await self._work.submit(sql, parameters, timeout_seconds).done


async def check_server(connection: Connection | Pool, *, allow_unsafe_durability: bool) -> None:
    """Return if mailgate may work with this server and the schema in it.

    @raises DatabaseRefused: it must not; the message says what to change.
    @raises StorageUnavailable: it can't be asked, or takes no writes now (a standby).
    """
    rows = await connection.execute(
        "SELECT current_setting('server_version_num')::integer, current_setting('server_version'),"
        " pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes'),"
        " current_setting('synchronous_commit'), current_setting('server_encoding'),"
        " to_regclass('mailgate.schema_version') IS NOT NULL"
    )
    number, name, is_standby, fsync, full_page_writes, synchronous_commit, encoding, has_schema = rows[0]
    if number < _OLDEST_SERVER:
        raise DatabaseRefused(f"the database server is PostgreSQL {name}: mailgate needs 15 or newer")
    if is_standby:
        raise StorageUnavailable(
            "the database server is a standby and takes no writes: name all hosts in database.dsn, with "
            "target_session_attrs=read-write"
        )
    if encoding != "UTF8":
        raise DatabaseRefused(f"the database's encoding is {encoding}: mailgate needs UTF8")
    unsafe = [
        setting
        for setting, value in (
            ("fsync", fsync),
            ("full_page_writes", full_page_writes),
            ("synchronous_commit", synchronous_commit),
        )
        if value == "off"
    ]
    if unsafe and not allow_unsafe_durability:
        raise DatabaseRefused(
            f"{' and '.join(unsafe)} {'is' if len(unsafe) == 1 else 'are'} off in the database server: mail that was "
            "answered with 250 could be lost. Turn it on, or accept that in words with database.accept_data_loss"
        )
    version = None
    if has_schema:
        rows = await connection.execute("SELECT max(version) FROM mailgate.schema_version")
        version = rows[0][0]
    if why := migrate.refusal(version):
        raise DatabaseRefused(why)


def _closing_if_cancelled(wire: _Wire, waiting: Deferred[_T]) -> Deferred[_T]:
    """The Deferred, in a form that can be cancelled: that ends the connection. txpostgres' own raises in `cancel`."""
    is_cancelled = False

    def cancel(_: Deferred[_T]) -> None:
        nonlocal is_cancelled
        is_cancelled = True
        wire.close()

    answer: Deferred[_T] = Deferred(cancel)
    waiting.addCallbacks(
        lambda value: None if is_cancelled else answer.callback(value),
        lambda failure: None if is_cancelled else answer.errback(failure),
    )
    return answer


def _send(wire: _Wire, sql: str | bytes, parameters: Sequence[object] | None) -> Deferred[list[Row]]:
    cursor = wire.cursor()
    sent: Deferred[list[Row]] = cursor.execute(sql, parameters)
    return sent.addCallback(_rows)


def _rows(cursor: Any) -> list[Row]:  # Any: txpostgres has no types
    return cursor.fetchall() if cursor.description is not None else []


def _is_lost(error: psycopg2.Error) -> bool:
    """Whether the connection is gone or in doubt."""
    code = error.pgcode
    if code is not None:
        return code.startswith(_LOST_STATES)
    # libpq's own errors have no SQLSTATE. ProgrammingError is one of our statements, unless psycopg2 believes that an
    # earlier one still runs: "execute cannot be used while an asynchronous query is underway".
    if isinstance(error, psycopg2.ProgrammingError | psycopg2.DataError | psycopg2.NotSupportedError):
        return "underway" in str(error)
    return True


def _is_of_the_server(error: psycopg2.Error) -> bool:
    """Whether the error tells of the server's state rather than of the statement."""
    code = error.pgcode or ""
    return code.startswith(_SERVER_CLASSES) or code in _SERVER_CODES


def _sentence(error: BaseException | None) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _call_all(observers: Sequence[Callable[[], None]]) -> None:
    for observer in tuple(observers):
        try:
            observer()
        except Exception:
            log.failure("an observer of the database connection failed")


def _complete(dsn: str, name: str) -> str:
    """The DSN with our name in it, and with what finds dead TCP peers, unless it says otherwise itself."""
    given = parse_dsn(dsn)
    added = {"application_name": name}
    hosts = [*given.get("host", "").split(","), *given.get("hostaddr", "").split(",")]
    if any(host and not host.startswith(("/", "@")) for host in hosts):
        added |= _TCP_DEFAULTS
    return str(make_dsn(dsn, **{key: value for key, value in added.items() if key not in given}))


def _rotated(dsn: str, places: int) -> str:
    """The DSN with its hosts moved round by that many places.

    libpq goes through the hosts in order, but its connect_timeout does nothing on an asynchronous connection: a first
    host that swallows packets would use up our time at every attempt, and the others would never have their turn.
    """
    given = parse_dsn(dsn)
    count = max((len(given[key].split(",")) for key in ("host", "hostaddr", "port") if key in given), default=1)
    if count < 2 or places % count == 0:
        return dsn
    places %= count
    for key in ("host", "hostaddr", "port"):
        values = given.get(key, "").split(",")
        if len(values) == count:
            given[key] = ",".join(values[places:] + values[:places])
    return str(make_dsn(**given))
