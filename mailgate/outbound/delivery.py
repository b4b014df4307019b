"""Delivery to one destination: its connections, how many of them, which host of the route, and when to leave it alone.

A message goes to an idle connection, to one that takes a second message behind the first, or waits; while messages
wait, connections are opened, up to a limit that adapts: every message that gets through raises it, trouble lowers it.
A connection that has nothing to do is kept for a few seconds.

Hosts and their addresses are tried in the order of the route. One that makes trouble is avoided for a while, longer
each time, and the messages that it left untried go to the next. Decisions:

- Under opportunistic TLS, a host with which the handshake fails is asked once more, in plain text.
- A host whose greeting is 5xx ("no SMTP service here", RFC 5321 section 3.1) is no reason to bounce: many say so while
  something is wrong. The next host is tried, and in the end the mail waits until its time is over.
- Where a connection works and another one to the same address is refused, there are simply enough of them: for a
  minute no more are tried.
- A host that ends a connection between messages, after it has served some, is well: it takes no more of them on one.
- When no host is left, the destination is in trouble: one message is deferred with what was said last, the others are
  given back as if nobody had looked at them, and the destination is left alone (by all nodes, see `destination`).

Not here: which messages there are and what is written of them (`mailgate.outbound.runner`), the dialogue
(`mailgate.smtp.client`).

Standards: RFC 5321 section 5.1 (hosts in order, each address), section 4.5.4.1 (hosts that are down), section 4.5.4.2
(concurrency).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailgate.outbound.connection import HostUnusable
from mailgate.outbound.plan import (
    Delivery,
    Endpoint,
    RecipientOutcome,
    Result,
    TlsLevel,
    Trouble,
    TroubleKind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from mailgate.outbound.plan import Host, OutgoingMessage, Route, TlsUsed

_FIRST_AVOIDANCE_SECONDS = 60.0
_LONGEST_AVOIDANCE_SECONDS = 3600.0
_MAX_AVOIDED = 100
_ENDINGS = frozenset({TroubleKind.SHUTDOWN, TroubleKind.LOST})  # of a connection
_TOO_SLOW = Trouble(TroubleKind.TIMEOUT, "The host did not answer while other mail waited for the connection", "4.4.2")

log = Logger()


class Sender(Protocol):
    """A connection that carries messages: `mailgate.outbound.connection.MailSender`."""

    endpoint: Endpoint

    @property
    def tls(self) -> TlsUsed | None: ...  # noqa: D102
    @property
    def is_usable(self) -> bool: ...  # noqa: D102
    @property
    def outstanding(self) -> int: ...  # noqa: D102
    @property
    def max_outstanding(self) -> int: ...  # noqa: D102
    def send(self, message: OutgoingMessage) -> Deferred[Delivery]: ...  # noqa: D102
    async def quit(self) -> None: ...  # noqa: D102
    def abort(self) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a destination is used at a time."""

    first_connections: int = 5
    max_connections: int = 20
    messages_per_connection: int = 100
    messages_per_second: float = 0.0  # 0: as fast as it goes
    idle_seconds: float = 3.0


class Owner(Protocol):
    """Who hands out messages and hears what became of them."""

    def may_send(self) -> bool:
        """Whether another message may be begun; if not, `pump` is called when one may."""

    def may_connect(self) -> bool:
        """Whether there may be another connection, of all destinations."""

    def connection_ended(self) -> None:
        """There is one connection less."""

    def delivered(self, destination: Destination, message: OutgoingMessage, delivery: Delivery) -> None:
        """What became of the recipients that have an outcome."""

    def released(self, destination: Destination, message: OutgoingMessage) -> None:
        """Nothing was tried for these recipients, and nothing will be."""

    def is_in_trouble(self, destination: Destination, trouble: Trouble) -> None:
        """No host of it can be used now."""

    def is_well(self, destination: Destination) -> None:
        """A host of it has taken a message."""


class _Connection:
    """An open connection."""

    __slots__ = ("has_served", "idle", "in_flight", "sender", "sent")

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.sent = 0
        self.in_flight = 0
        self.has_served = False  # a message came to its end on it
        self.idle: IDelayedCall | None = None


class _Avoided:
    """An address that made trouble."""

    __slots__ = ("times", "trouble", "until")

    def __init__(self, trouble: Trouble, times: int, until: float) -> None:
        self.trouble = trouble
        self.times = times
        self.until = until


class Destination:
    """Where messages of one route go, now."""

    def __init__(
        self,
        clock: IReactorTime,
        route: Route,
        *,
        connect: Callable[[Route, Host, str], Coroutine[Deferred[Any], Any, Sender]],
        owner: Owner,
        limits: Limits,
        time: Callable[[], float],
    ) -> None:
        """`connect` raises HostUnusable and nothing else. `time` gives seconds since the epoch."""
        self.route = route  # the newest; may be changed at any time
        self.held = 0  # recipients, for whoever counts them
        self.completed = 0  # messages, likewise
        self._clock = clock
        self._connect = connect
        self._owner = owner
        self._limits = limits
        self._time = time
        self._pending: deque[OutgoingMessage] = deque()
        self._connections: list[_Connection] = []
        self._opening: set[Deferred[_Connection | None]] = set()
        self._attempts: dict[Deferred[Sender], float] = {}  # to connect, and when they began
        self._limit = float(min(limits.first_connections, limits.max_connections))
        self._has_met_trouble = False
        self._is_enough_until = 0.0  # hosts have refused more connections than there are
        self._avoided: dict[tuple[str, str], _Avoided] = {}
        self._tokens = 1.0
        self._tokens_at = clock.seconds()
        self._rate_timer: IDelayedCall | None = None
        self._is_stopping = False
        self._stopped: list[Deferred[None]] = []

    # ------------------------------------------------------------ for the owner

    @property
    def is_idle(self) -> bool:
        """Whether there is neither a message nor a connection."""
        return not self._pending and not self._connections and not self._opening

    @property
    def connections(self) -> int:
        """How many there are, those included that are being opened."""
        return len(self._connections) + len(self._opening)

    @property
    def first_waiting(self) -> OutgoingMessage | None:
        """The message that is next."""
        return self._pending[0] if self._pending else None

    @property
    def waiting(self) -> int:
        """How many messages have not been handed to a connection."""
        return len(self._pending)

    def add(self, message: OutgoingMessage) -> None:
        """Deliver a message; the owner hears of each of its recipients once."""
        self._pending.append(message)

    def pump(self) -> None:
        """Give messages to connections, and open more where messages are left."""
        for depth in (1, 2):
            for connection in self._connections:
                if not self._pending:
                    return
                self._fill(connection, depth)
        self._open_more()

    def _open_more(self) -> None:
        while (
            self._pending
            and not self._is_stopping
            and len(self._opening) < len(self._pending)
            and self.connections < int(self._limit)
            and self._owner.may_send()
            and self._has_token()
            and self._owner.may_connect()
            and self._open()
        ):
            pass

    def _fill(self, connection: _Connection, depth: int) -> None:
        """Have so many messages under way on a connection, if it takes as many."""
        sender = connection.sender
        while (
            connection.in_flight < depth
            and self._pending
            and connection.sent < self._limits.messages_per_connection
            and sender.is_usable
            and connection.in_flight < sender.max_outstanding
            and self._owner.may_send()
            and self._has_token()
        ):
            self._send(connection)

    def forgive(self) -> None:
        """Avoid no host any longer."""
        self._avoided.clear()

    def lose_patience(self, seconds: float) -> None:
        """End what has tried for so long to connect, as if the host had timed out."""
        began_before = self._clock.seconds() - seconds
        for attempt, began in tuple(self._attempts.items()):
            if began <= began_before:
                del self._attempts[attempt]
                attempt.cancel()

    def give_back(self) -> None:
        """Release what waits."""
        while self._pending:
            self._owner.released(self, self._pending.popleft())

    async def stop(self) -> None:
        """Give back what waits, and return when what is under way has ended."""
        self._is_stopping = True
        self.give_back()
        for opening in tuple(self._opening):
            opening.cancel()
        for connection in tuple(self._connections):
            if not connection.in_flight:
                self._close(connection)
        if not self.is_idle:
            stopped: Deferred[None] = Deferred()
            self._stopped.append(stopped)
            await stopped

    def abort(self) -> None:
        """Drop all connections; what is under way ends as if the host had dropped it."""
        for connection in tuple(self._connections):
            connection.sender.abort()

    # ------------------------------------------------------------ messages

    def _send(self, connection: _Connection) -> None:
        message = self._pending.popleft()
        if connection.idle is not None:
            connection.idle.cancel()
            connection.idle = None
        connection.sent += 1
        connection.in_flight += 1
        if self._limits.messages_per_second:
            self._tokens -= 1
        ended = connection.sender.send(message)
        ended.addCallback(self._delivered, connection, message)
        ended.addErrback(self._lost_track, connection, message)

    def _delivered(self, delivery: Delivery, connection: _Connection, message: OutgoingMessage) -> None:
        connection.in_flight -= 1
        trouble = delivery.trouble
        if trouble is None and len(delivery.outcomes) == len(message.recipients):
            untried = None
        else:
            untried = _rest_of(message, delivery)
        if delivery.outcomes:
            self.completed += 1
            self._owner.delivered(self, message, delivery)
        if trouble is None:
            connection.has_served = True
        elif connection.has_served and not delivery.outcomes and trouble.kind in _ENDINGS:
            pass  # it takes so many messages on a connection, and no more
        else:
            self._meet(connection.sender.endpoint, trouble, connection)
        if any(outcome.result is Result.DELIVERED for outcome in delivery.outcomes):
            self._prosper(connection.sender.endpoint)
        if untried is not None:
            if self._is_stopping:
                self._owner.released(self, untried)
            else:
                self._pending.appendleft(untried)
        if not connection.sender.is_usable or connection.sent >= self._limits.messages_per_connection:
            if not connection.in_flight:
                self._close(connection)
        else:
            self._fill(connection, 2)
            if not connection.in_flight:
                self._rest(connection)
        self._open_more()
        self._check_stopped()

    def _lost_track(self, failure: Failure, connection: _Connection, message: OutgoingMessage) -> None:
        """A fault of ours: recipients of whom nothing is known are tried again, later and on another connection."""
        self._failed(failure)
        connection.sender.abort()
        self._owner.released(self, message)

    def _failed(self, failure: Failure) -> None:
        log.failure("delivery to {destination} failed", failure, destination=self.route.key)

    def _prosper(self, endpoint: Endpoint) -> None:
        if self._clock.seconds() >= self._is_enough_until:
            more = 1 / self._limit if self._has_met_trouble else 1.0
            self._limit = min(self._limit + more, float(self._limits.max_connections))
        if self._avoided:
            self._avoided.pop((endpoint.host, endpoint.address), None)
        self._owner.is_well(self)

    # ------------------------------------------------------------ rate

    def _has_token(self) -> bool:
        """Whether a message may go now; if not, `pump` is called when one may."""
        rate = self._limits.messages_per_second
        if not rate:
            return True
        now = self._clock.seconds()
        self._tokens = min(self._tokens + (now - self._tokens_at) * rate, max(rate, 1.0))
        self._tokens_at = now
        if self._tokens >= 1 - 1e-9:
            return True
        if self._rate_timer is None:
            self._rate_timer = self._clock.callLater((1 - self._tokens) / rate, self._rate_is_over)
        return False

    def _rate_is_over(self) -> None:
        self._rate_timer = None
        self.pump()

    # ------------------------------------------------------------ connections

    def _open(self) -> bool:
        """Begin another connection; whether there may be one. Where not, another try has to wait for what comes."""
        opening = Deferred.fromCoroutine(self._open_one())
        if not opening.called:
            self._opening.add(opening)
            opening.addBoth(self._opened_later, opening)
            return True
        is_open: list[bool] = []
        opening.addBoth(lambda result: is_open.append(self._opened(result)))
        return is_open == [True]

    def _opened_later(self, result: _Connection | Failure | None, opening: Deferred[_Connection | None]) -> None:
        self._opening.discard(opening)
        self._opened(result)
        self._open_more()
        self._check_stopped()

    def _opened(self, result: _Connection | Failure | None) -> bool:
        """Use the connection; whether there is one."""
        if isinstance(result, _Connection):
            self._connections.append(result)
            self._fill(result, 2)
            if not result.in_flight:
                self._rest(result)
            return True
        self._owner.connection_ended()
        if isinstance(result, Failure) and not result.check(CancelledError):
            self._failed(result)
            self.give_back()
        return False

    async def _open_one(self) -> _Connection | None:
        """A new connection to the first host that gives one; None where that is not to be had."""
        trouble: Trouble | None = None
        endpoint = Endpoint(self.route.key, "", 0)
        started_at = self._time()
        for host, address in self._candidates():
            try:
                return _Connection(await self._connect_to(host, address))
            except HostUnusable as error:
                trouble, endpoint = error.trouble, error.endpoint
                log.info(
                    "{host} [{address}]: {reply}", host=endpoint.host, address=endpoint.address, reply=trouble.reply
                )
                if self._meet(endpoint, trouble, None):
                    return None
        if self._connections or self._is_stopping:
            return None
        if trouble is None or _is_final(trouble):
            trouble, endpoint = self._known_trouble()
        if endpoint.address:
            self._despair(trouble, endpoint, started_at)
        else:
            self._refuse(trouble, endpoint, started_at)
        return None

    async def _connect_to(self, host: Host, address: str) -> Sender:
        try:
            return await self._attempt(host, address)
        except HostUnusable as error:
            if error.trouble.kind is not TroubleKind.TLS or host.tls.level is not TlsLevel.OPPORTUNISTIC:
                raise
        return await self._attempt(replace(host, tls=replace(host.tls, level=TlsLevel.NONE)), address)

    async def _attempt(self, host: Host, address: str) -> Sender:
        attempt = Deferred.fromCoroutine(self._connect(self.route, host, address))
        self._attempts[attempt] = self._clock.seconds()
        try:
            return await attempt
        except CancelledError:
            if attempt in self._attempts:
                raise
            raise HostUnusable(_TOO_SLOW, Endpoint(host.name, address, host.port)) from None
        finally:
            self._attempts.pop(attempt, None)

    def _candidates(self) -> Iterator[tuple[Host, str]]:
        now = self._clock.seconds()
        for host in self.route.hosts:
            if host.trouble is not None:
                continue
            for address in (host.unix_path,) if host.unix_path else host.addresses:
                avoided = self._avoided.get((host.name, address))
                if avoided is None or avoided.until <= now:
                    yield host, address

    def _known_trouble(self) -> tuple[Trouble, Endpoint]:
        """Why no host will do: what may pass comes before what is final."""
        known = list(self._known_troubles())
        if not known:
            return Trouble(TroubleKind.CONNECT, "451 4.4.4 There is no host to send to", "4.4.4"), Endpoint("", "", 0)
        return next((each for each in known if not _is_final(each[0])), known[0])

    def _known_troubles(self) -> Iterator[tuple[Trouble, Endpoint]]:
        for host in self.route.hosts:
            for address in (host.unix_path,) if host.unix_path else host.addresses:
                avoided = self._avoided.get((host.name, address))
                if avoided is not None:
                    yield avoided.trouble, Endpoint(host.name, address, host.port)
        for host in self.route.hosts:
            if host.trouble is not None:
                said = host.trouble
                trouble = Trouble(TroubleKind.CONNECT, said.text(), said.enhanced or f"{said.code // 100}.4.0")
                yield trouble, Endpoint(host.name, "", host.port)

    def _meet(self, endpoint: Endpoint, trouble: Trouble, connection: _Connection | None) -> bool:
        """Take note of trouble; whether that is only because there are enough connections to that address."""
        self._has_met_trouble = True
        others = sum(
            each is not connection and each.sender.is_usable and each.sender.endpoint == endpoint
            for each in self._connections
        )
        if others:
            self._limit = float(others)
            self._is_enough_until = self._clock.seconds() + _FIRST_AVOIDANCE_SECONDS
            return True
        self._limit = max(self._limit / 2, 1.0)
        key = (endpoint.host, endpoint.address)
        before = self._avoided.pop(key, None)
        times = 0 if before is None else before.times + 1
        seconds = min(_FIRST_AVOIDANCE_SECONDS * 2.0**times, _LONGEST_AVOIDANCE_SECONDS)
        self._avoided[key] = _Avoided(trouble, times, self._clock.seconds() + seconds)
        while len(self._avoided) > _MAX_AVOIDED:
            del self._avoided[next(iter(self._avoided))]
        return False

    def _despair(self, trouble: Trouble, endpoint: Endpoint, started_at: float) -> None:
        """No host is left: one message has been tried, the others have not."""
        if _is_final(trouble):
            # What the hosts lack is lacked by these messages (REQUIRETLS); others may do without.
            self._refuse(trouble, endpoint, started_at)
            return
        self._owner.is_in_trouble(self, trouble)
        if self._pending:
            self._end(self._pending.popleft(), trouble, endpoint, started_at)
        self.give_back()

    def _refuse(self, trouble: Trouble, endpoint: Endpoint, started_at: float) -> None:
        """There is nobody to ask: that holds for all messages."""
        while self._pending:
            self._end(self._pending.popleft(), trouble, endpoint, started_at)

    def _end(self, message: OutgoingMessage, trouble: Trouble, endpoint: Endpoint, started_at: float) -> None:
        result = Result.FAILED if _is_final(trouble) else Result.DEFERRED
        outcomes = tuple(
            RecipientOutcome(each.queue_id, result, trouble.reply, trouble.status, trouble.is_remote)
            for each in message.recipients
        )
        delivery = Delivery(message.message_id, endpoint, None, started_at, self._time(), outcomes, trouble)
        self._owner.delivered(self, message, delivery)

    def _rest(self, connection: _Connection) -> None:
        """Keep a connection that has nothing to do for a while."""
        if self._is_stopping or not connection.sender.is_usable:
            self._close(connection)
        elif connection.idle is None:
            connection.idle = self._clock.callLater(self._limits.idle_seconds, self._idled, connection)

    def _idled(self, connection: _Connection) -> None:
        connection.idle = None
        self._close(connection)

    def _close(self, connection: _Connection) -> None:
        if connection.idle is not None:
            connection.idle.cancel()
            connection.idle = None
        if connection in self._connections:
            self._connections.remove(connection)
            self._owner.connection_ended()
            Deferred.fromCoroutine(connection.sender.quit()).addBoth(self._closed)

    def _closed(self, _: object) -> None:
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._is_stopping and self.is_idle:
            waiters, self._stopped = self._stopped, []
            for waiter in waiters:
                waiter.callback(None)


def _is_final(trouble: Trouble) -> bool:
    """Whether it bounces mail: no refusal of a host as such does, only what it lacks."""
    return trouble.status.startswith("5") and not trouble.is_remote


def _rest_of(message: OutgoingMessage, delivery: Delivery) -> OutgoingMessage | None:
    """The message to those recipients that have no outcome; None where all have one."""
    known = {outcome.queue_id for outcome in delivery.outcomes}
    left = tuple(recipient for recipient in message.recipients if recipient.queue_id not in known)
    return replace(message, recipients=left) if left else None
