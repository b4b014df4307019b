"""The runner: claims what is ready, hands it to destinations, and writes what became of it.

    claim     rows that are ready, in fair shares, as long as there is room in memory; at once when the queue is
              notified, and every few seconds
    route     by domain, remembered for a minute
    deliver   one transaction for the recipients of a message that share a route and options
    settle    outcomes are collected while the settlement before them is under way, and written in one statement; until
              then a row counts as held
    renew     leases, and those of instances that died

Any number of runners, on any nodes, share a queue; see `mailgate.storage.queue` for what is promised when one dies.
A stop is clean: nothing new is begun, what is under way gets a while, what came of it is written, and what has not been
tried is given back.

Not here: the rows that are held (`mailgate.outbound.holding`), what is left alone (`mailgate.outbound.backoff`),
connections and hosts (`mailgate.outbound.delivery`), what an outcome means (`mailgate.outbound.settling`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import psycopg2
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailgate.outbound.backoff import BackOffs
from mailgate.outbound.delivery import Destination, Limits
from mailgate.outbound.holding import Holding
from mailgate.outbound.plan import (
    Delivery,
    Endpoint,
    NoRoute,
    OutgoingMessage,
    RecipientOutcome,
    Result,
    Route,
)
from mailgate.outbound.schedule import Overdue, Schedule, overdue
from mailgate.outbound.settler import Settler, Telling, Writing
from mailgate.outbound.settling import Decided, decide, decide_done, decide_overdue, waiting_of
from mailgate.outbound.slots import Slots
from mailgate.outbound.transactions import transactions_of
from mailgate.storage.errors import StorageUnavailable, reason_of
from mailgate.storage.queue import CHANNEL
from mailgate.storage.settlement import Kept, Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
    from random import Random
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from mailgate.outbound.content import Content
    from mailgate.outbound.delivery import Sender
    from mailgate.outbound.holding import Held
    from mailgate.outbound.plan import Host, Trouble
    from mailgate.storage.queue import DestinationState, QueuedRow

_CLAIM_ROWS = 500
_POLL_SECONDS = 5.0
_TICK_SECONDS = 15.0
_STEADY_SECONDS = 60.0  # between two renewals of leases: the database was there all the time
_PAUSED_SECONDS = 60.0  # how long rows wait that can't be tried for a reason that has no end
_OVERDUE_ROWS = 100
_GRACE_SECONDS = 900.0  # after a start, before anyone is told of a delay: what has waited for us is tried first
_ROUTE_SECONDS = 60.0
_MAX_ROUTES = 5000

log = Logger()


class Rows(Writing, Protocol):
    """The queue in the database: `mailgate.storage.queue.Queue`."""

    async def claim(  # noqa: D102
        self,
        claim: int,
        *,
        at_most: int,
        per_destination: int,
        skipped: Collection[str] = (),
        skipped_senders: Collection[str] = (),
        after_sender: str = "",
        after_domains: Mapping[str, str] | None = None,
    ) -> list[QueuedRow]: ...
    async def claim_overdue(  # noqa: D102
        self, claim: int, *, delay_seconds: float, give_up_seconds: float, at_most: int
    ) -> list[QueuedRow]: ...
    async def renew(  # noqa: D102
        self, claims: Collection[int], dead: Collection[int], *, is_steady: bool
    ) -> list[int]: ...
    async def destinations(self) -> list[DestinationState]: ...  # noqa: D102
    async def piece(self, message_id: int, number: int) -> bytes: ...  # noqa: D102


class Routes(Protocol):
    """Who knows where mail goes: `mailgate.outbound.route.Router`."""

    async def route(  # noqa: D102
        self, domain: str, *, requires_tls: bool = False, tls_is_optional: bool = False
    ) -> Route | NoRoute: ...


class Numbers(Protocol):
    """Makes numbers that are never the same twice: `mailgate.ids.IdGenerator`."""

    def next(self) -> int: ...  # noqa: D102


class Listening(Protocol):
    """What hears notifications: `mailgate.storage.pool.Connection`."""

    def listen(self, channel: str, observer: Callable[[str], None]) -> None: ...  # noqa: D102
    def on_reconnect(self, observer: Callable[[], None]) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What an operator has to say."""

    schedule: Schedule = field(default_factory=Schedule)
    max_connections: int = 200
    back_off_first_seconds: float = 60.0
    back_off_longest_seconds: float = 3600.0


_Way = tuple[str, bool, bool]  # domain or route key, requires_tls, tls_is_optional


class QueueRunner:
    """Delivers what is in the queue. It is the owner of its destinations."""

    def __init__(
        self,
        clock: IReactorTime,
        rows: Rows,
        *,
        router: Routes,
        connect: Callable[[Route, Host, str], Coroutine[Deferred[Any], Any, Sender]],
        telling: Telling,
        claims: Numbers,
        limits: Callable[[Route], Limits],
        settings: RunnerSettings,
        random: Random,
        time: Callable[[], float],
        usage: Callable[[int, int], object] = lambda _mailbox_id, _octets: None,
        failed: Callable[[str, str, str], object] = lambda _address, _status, _reply: None,
    ) -> None:
        """`connect` raises HostUnusable and nothing else; `limits` says how much of a destination may be used.

        `usage` is called with mailbox id and octets used where a notice went to a mailbox of ours, and `failed` with
        the address, status and reply of recipients that another host has refused for good.
        """
        self._clock = clock
        self._rows = rows
        self._router = router
        self._connect = connect
        self._claims = claims
        self._limits = limits
        self._settings = settings
        self._random = random
        self._time = time
        self._failed = failed

        self._held = Holding(rows.piece)
        self._destinations: dict[_Way, Destination] = {}
        self._slots = Slots(
            clock, settings.max_connections, destinations=self._destinations.values, sender_of=self._sender_of
        )
        self._routes: OrderedDict[_Way, tuple[float, Route | NoRoute]] = OrderedDict()
        self._back_offs = BackOffs(
            time,
            first_seconds=settings.back_off_first_seconds,
            longest_seconds=settings.back_off_longest_seconds,
        )
        self._settler = Settler(clock, rows, telling, original=self._original, settled=self._forget, usage=usage)
        self._is_sending_wanted = False  # whether a destination was refused another message
        self._is_claiming = False
        self._is_woken = False
        self._is_stopping = False
        self._started_at = 0.0
        self._renewed_at = -math.inf
        self._poll: IDelayedCall | None = None
        self._ticking: Deferred[None] | None = None
        self._background: set[Deferred[None]] = set()
        self._dead: list[int] = []

    # ------------------------------------------------------------ start and stop

    def start(self, listener: Listening | None = None) -> None:
        """Run until `stop`. `listener` hears that there is something to do."""
        self._started_at = self._clock.seconds()
        if listener is not None:
            listener.listen(CHANNEL, self._notified)
            listener.on_reconnect(self.wake)
        self._ticking = Deferred.fromCoroutine(self._tick())
        self._ticking.addErrback(self._ended)
        self.wake()

    async def stop(self, seconds: float) -> None:
        """Begin nothing new; give what is under way so many seconds, and write what came of it."""
        self._is_stopping = True
        self._slots.stop()
        if self._poll is not None and self._poll.active():
            self._poll.cancel()
        if self._ticking is not None:
            self._ticking.cancel()
        for doing in tuple(self._background):
            doing.cancel()
        deadline = self._clock.seconds() + seconds
        stopping = [Deferred.fromCoroutine(each.stop()) for each in self._destinations.values()]
        patience = self._clock.callLater(seconds * 0.7, self._abort)
        for stopped in stopping:
            await stopped
        if patience.active():
            patience.cancel()
        for held in self._held:
            if held.destination is None:
                self._let_go(held)
        if not await self._settler.drain(max(deadline - self._clock.seconds(), 1.0)):
            log.warn("{count} rows of the queue stay leased: the database did not answer", count=len(self._held))

    def use(self, limits: Callable[[Route], Limits]) -> None:
        """Look for routes anew, and use new destinations within these limits."""
        self._limits = limits
        self._routes.clear()

    def wake(self) -> None:
        """There may be something to claim."""
        if self._is_stopping:
            return
        self._is_woken = True
        if not self._is_claiming:
            self._is_claiming = True
            Deferred.fromCoroutine(self._claim_all()).addErrback(self._ended)

    @property
    def held(self) -> int:
        """How many rows are ours now."""
        return len(self._held)

    def _notified(self, payload: str) -> None:
        if payload == "destination" and not self._is_stopping:  # an operator has paused or resumed one
            self._own(self._look_at_destinations())
        else:
            self.wake()

    def _own(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        """Do that in the background; a stop cancels it."""
        doing = Deferred.fromCoroutine(work)
        if not doing.called:
            self._background.add(doing)
        doing.addErrback(self._ended)
        doing.addBoth(lambda _: self._background.discard(doing))

    def _abort(self) -> None:
        for destination in tuple(self._destinations.values()):
            destination.abort()

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            log.failure("the queue's runner failed", failure)

    # ------------------------------------------------------------ claims

    async def _claim_all(self) -> None:
        """Claim until there is nothing more, or no room."""
        try:
            while self._is_woken and not self._is_stopping:
                room = self._held.room
                if not self._has_room:
                    break  # whoever makes room wakes us
                await self._claim(min(room, _CLAIM_ROWS))
        except StorageUnavailable as error:
            log.info("the queue waits for the database: {reason}", reason=str(error))
            self._is_woken = False
        finally:
            self._is_claiming = False
            self._poll_later()

    async def _claim(self, at_most: int) -> None:
        """Claim once; we stay awake while there may be more."""
        number = self._new_claim()
        self._is_woken = False
        turns = self._held.turns
        bound = turns.per_destination(self._settler.rows_per_second)
        try:
            rows = await self._rows.claim(
                number,
                at_most=at_most,
                per_destination=bound,
                skipped=[*turns.full_destinations(bound), *self._back_offs.left_alone()],
                skipped_senders=turns.full_senders(),
                after_sender=turns.after_sender,
                after_domains=turns.after_domains,
            )
        except BaseException:
            self._held.give_up(number)
            raise
        if rows:
            self._is_woken = True
        self._hand_over(self._held.take(number, rows, is_in_turn=True))

    def _new_claim(self) -> int:
        number = self._claims.next()
        self._held.begin(number)
        return number

    @property
    def _has_room(self) -> bool:
        """Whether it is worth while to claim."""
        return self._held.room >= _CLAIM_ROWS // 2 and self._held.turns.has_room_for_contents

    def _poll_later(self) -> None:
        if self._is_stopping:
            return
        if self._poll is not None and self._poll.active():
            self._poll.reset(_POLL_SECONDS)
        else:
            self._poll = self._clock.callLater(_POLL_SECONDS, self.wake)

    # ------------------------------------------------------------ routes

    def _hand_over(self, rows: Sequence[QueuedRow]) -> None:
        """Give rows to their destinations, those first whose route is known."""
        by_way: dict[_Way, list[QueuedRow]] = {}
        for row in rows:
            if self._is_stopping:
                self._let_go(self._held[row.id])
                continue
            if row.done is not None:
                held = self._held[row.id]
                self._decide(held, decide_done(row, held.lease, self._time()))
                continue
            by_way.setdefault((row.domain, row.requires_tls, row.tls_is_optional), []).append(row)
        known: dict[_Way, tuple[Route, list[QueuedRow]]] = {}
        now = self._clock.seconds()
        for way, some in by_way.items():
            remembered = self._routes.get(way)
            if remembered is not None and remembered[0] > now:
                self._sort(way, remembered[1], some, known)
            else:
                self._own(self._find_route(way, some))
        self._deliver(known)

    async def _find_route(self, way: _Way, rows: Sequence[QueuedRow]) -> None:
        domain, requires_tls, tls_is_optional = way
        try:
            route = await self._router.route(domain, requires_tls=requires_tls, tls_is_optional=tls_is_optional)
        except CancelledError:
            raise  # a stop gives the rows back
        except Exception:  # a fault of ours: no row must stay held for it
            log.failure("no route could be looked for: {domain!r}", domain=domain)
            for row in rows:
                self._postpone(self._held[row.id], self._time() + _PAUSED_SECONDS)
            return
        self._routes[way] = (self._clock.seconds() + _ROUTE_SECONDS, route)
        self._routes.move_to_end(way)
        while len(self._routes) > _MAX_ROUTES:
            self._routes.popitem(last=False)
        known: dict[_Way, tuple[Route, list[QueuedRow]]] = {}
        self._sort(way, route, rows, known)
        self._deliver(known)

    def _sort(
        self,
        way: _Way,
        route: Route | NoRoute,
        rows: Sequence[QueuedRow],
        known: dict[_Way, tuple[Route, list[QueuedRow]]],
    ) -> None:
        """Put rows where their route is; where there is none, that is their outcome."""
        if isinstance(route, Route):
            known.setdefault((route.key, *way[1:]), (route, []))[1].extend(rows)
            return
        now = self._time()
        said = route.reply
        result = Result.DEFERRED if said.is_transient else Result.FAILED
        for row in rows:
            outcome = RecipientOutcome(row.id, result, said.text(), said.enhanced or "5.4.4", is_remote=False)
            delivery = Delivery(row.message_id, Endpoint("", "", 0), None, now, now, (outcome,))
            self._outcome(self._held[row.id], outcome, delivery)

    def _deliver(self, known: Mapping[_Way, tuple[Route, Sequence[QueuedRow]]]) -> None:
        for way, (route, rows) in known.items():
            for row in rows:
                self._held[row.id].destination = route.key
            until = self._back_offs.until(route.key)
            if self._is_stopping:
                for row in rows:
                    self._let_go(self._held[row.id])
                continue
            if until is not None:
                for row in rows:
                    self._postpone(self._held[row.id], until)
                continue
            destination = self._destinations.get(way)
            if destination is None:
                destination = self._destinations[way] = Destination(
                    self._clock,
                    route,
                    connect=self._connect,
                    owner=self,
                    limits=self._limits(route),
                    time=self._time,
                )
            destination.route = route
            for message in transactions_of(rows, lambda row: self._held[row.id].content):
                destination.add(message)
            destination.pump()

    # ------------------------------------------------------------ what destinations say

    def may_send(self) -> bool:
        """Whether another message may be begun: not while what came of those before can't be written.

        A node that is cut off from the database is taken for dead after a while: what it sent by then is sent twice.
        """
        if self._settler.is_behind:
            self._is_sending_wanted = True
            return False
        return True

    def may_connect(self) -> bool:
        """Whether there may be another connection; it counts from now on."""
        return self._slots.take()

    def connection_ended(self) -> None:
        """There is one connection less: another destination may have one."""
        self._slots.give()

    def _sender_of(self, destination: Destination) -> str:
        first = destination.first_waiting
        held = None if first is None else self._held.get(first.recipients[0].queue_id)
        return "" if held is None else held.row.sender

    def delivered(self, destination: Destination, message: OutgoingMessage, delivery: Delivery) -> None:
        """Take note of outcomes."""
        is_final = destination.route.protocol == "lmtp"
        for outcome in delivery.outcomes:
            held = self._held.get(outcome.queue_id)
            if held is not None:
                self._outcome(held, outcome, delivery, is_final=is_final)

    def released(self, destination: Destination, message: OutgoingMessage) -> None:
        """Have rows wait that were not tried, until their destination is."""
        until = self._back_offs.until(destination.route.key) or self._time() + _PAUSED_SECONDS
        for recipient in message.recipients:
            held = self._held.get(recipient.queue_id)
            if held is None:
                continue
            if self._is_stopping:
                self._let_go(held)
            else:
                self._postpone(held, until)

    def is_in_trouble(self, destination: Destination, trouble: Trouble) -> None:
        """Leave the destination alone for a while."""
        key = destination.route.key
        seconds, news = self._back_offs.fail(key, trouble.reply)
        self._settler.destination(news)
        log.info(
            "{destination} is left alone for {seconds} s: {reply}",
            destination=key,
            seconds=round(seconds),
            reply=trouble.reply,
        )

    def is_well(self, destination: Destination) -> None:
        """A host has taken a message."""
        news = self._back_offs.recover(destination.route.key)
        if news is not None:
            self._settler.destination(news)

    # ------------------------------------------------------------ outcomes

    def _outcome(self, held: Held, outcome: RecipientOutcome, delivery: Delivery, *, is_final: bool = False) -> None:
        schedule = self._settings.schedule
        self._decide(held, decide(held.row, held.lease, outcome, delivery, schedule, self._random, is_final=is_final))
        if outcome.result is Result.FAILED and outcome.is_remote:
            self._failed(held.row.recipient, outcome.status, outcome.reply)

    def _decide(self, held: Held, decided: Decided) -> None:
        """What becomes of a row is known; once only."""
        if not held.is_decided:
            held.is_decided = True
            self._settler.decided(decided)

    def _let_go(self, held: Held) -> None:
        self._decide(held, Decided(Kept(held.lease)))

    def _postpone(self, held: Held, due_at: float) -> None:
        """Have a row wait until its destination is tried again, or give it up where its time is over."""
        row, lease, now = held.row, held.lease, self._time()
        key = held.destination or ""
        is_left_alone = self._back_offs.until(key) is not None
        schedule = self._settings.schedule
        if is_left_alone and row.domain == key:
            self._let_go(held)  # it stays ready; nobody claims it meanwhile, and `_claim_overdue` sees to its end
        elif is_left_alone and not self._is_in_grace and overdue(schedule, waiting_of(row), now) is Overdue.EXPIRED:
            self._decide(held, decide_overdue(row, lease, schedule, now, self._back_offs.reason(key)))
        else:
            longest = now + self._settings.back_off_longest_seconds
            self._decide(held, Decided(Kept(lease, min(due_at, longest))))

    def _original(self, queue_id: int) -> tuple[QueuedRow, Content]:
        held = self._held[queue_id]
        return held.row, held.content

    def _forget(self, leases: Sequence[Lease]) -> None:
        """These rows are ours no longer."""
        for lease in leases:
            self._held.drop(lease)
        if self._has_room:
            self.wake()
        if self._is_sending_wanted and not self._settler.is_behind:
            self._is_sending_wanted = False
            for destination in tuple(self._destinations.values()):
                if destination.waiting:
                    destination.pump()

    # ------------------------------------------------------------ what goes by time

    async def _tick(self) -> None:
        while True:
            try:
                began = self._clock.seconds()
                is_steady = began - self._renewed_at < _STEADY_SECONDS
                self._dead = await self._rows.renew(self._held.claims, self._dead, is_steady=is_steady)
                self._renewed_at = began
                await self._look_at_destinations()
                await self._claim_overdue()
            except StorageUnavailable as error:
                log.info("leases wait for the database: {reason}", reason=str(error))
            except psycopg2.Error as error:
                log.warn("leases can't be renewed: {reason}", reason=reason_of(error))
            self._prune()
            await deferLater(self._clock, _TICK_SECONDS)

    async def _look_at_destinations(self) -> None:
        """What other nodes and operators say of destinations counts here too."""
        before = self._back_offs.left_alone()
        self._back_offs.adopt(await self._rows.destinations())
        left_alone = self._back_offs.left_alone()
        for way, destination in tuple(self._destinations.items()):
            if way[0] in left_alone:
                destination.give_back()
            elif way[0] in before:
                destination.forgive()  # an operator wants it tried, or another node has found it well
        self.wake()

    @property
    def _is_in_grace(self) -> bool:
        return self._clock.seconds() - self._started_at < _GRACE_SECONDS

    async def _claim_overdue(self) -> None:
        if self._is_in_grace:
            return
        schedule = self._settings.schedule
        while not self._is_stopping and self._held.room > 0:
            number = self._new_claim()
            try:
                rows = await self._rows.claim_overdue(
                    number,
                    delay_seconds=schedule.delay_seconds,
                    give_up_seconds=schedule.give_up_seconds,
                    at_most=_OVERDUE_ROWS,
                )
            except BaseException:
                self._held.give_up(number)
                raise
            for row in self._held.take(number, rows, is_in_turn=False):
                held = self._held[row.id]
                reason = self._back_offs.reason(row.domain)
                self._decide(held, decide_overdue(row, held.lease, schedule, self._time(), reason))
            if len(rows) < _OVERDUE_ROWS:
                return

    def _prune(self) -> None:
        """Forget destinations that have nothing to do, and back-offs that are over."""
        for way, destination in tuple(self._destinations.items()):
            if destination.is_idle:
                del self._destinations[way]
        self._back_offs.prune()
