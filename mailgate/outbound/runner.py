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

Not here: connections and hosts (`mailgate.outbound.delivery`), what an outcome means (`mailgate.outbound.settling`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import psycopg2
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailgate.outbound.content import Content, StoredContent, WholeContent, beginning_of
from mailgate.outbound.delivery import Destination, Limits
from mailgate.outbound.dsn import MAX_RETURNED_HEADER_OCTETS, MAX_RETURNED_OCTETS
from mailgate.outbound.notice import Action, OriginalMessage
from mailgate.outbound.plan import (
    Delivery,
    Endpoint,
    NoRoute,
    OutgoingMessage,
    OutgoingRecipient,
    RecipientOutcome,
    Result,
    Route,
)
from mailgate.outbound.schedule import Schedule
from mailgate.outbound.settling import Decided, decide, decide_done, decide_overdue, notify_of
from mailgate.storage.errors import StorageUnavailable, reason_of
from mailgate.storage.queue import CHANNEL
from mailgate.storage.settlement import DestinationNews, Ended, Kept, Lease, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
    from random import Random
    from typing import Any

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from mailgate.outbound.delivery import Sender
    from mailgate.outbound.notice import RecipientStatus
    from mailgate.outbound.plan import Host, Trouble
    from mailgate.storage.queue import QueuedRow, Settled
    from mailgate.storage.settlement import Notice

MAX_RECIPIENTS = 100  # of one transaction: RFC 5321 section 4.5.3.1.8 has every host take as many
_MAX_HELD = 2000  # rows in memory
_CLAIM_ROWS = 500
_FIRST_PER_DESTINATION = 100
_POLL_SECONDS = 5.0
_TICK_SECONDS = 15.0
_OVERDUE_ROWS = 100
_GRACE_SECONDS = 900.0  # after a start, before anyone is told of a delay: what has waited for us is tried first
_ROUTE_SECONDS = 60.0
_MAX_ROUTES = 5000
_MAX_ROUNDS = 1000  # senders of whom we know which destination was the last
_SETTLE_SECONDS = 0.02  # outcomes of that time are written together
_MAX_SETTLED = 500  # rows in a statement
_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 10.0

log = Logger()


class Rows(Protocol):
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
    async def settle(self, settlement: Settlement) -> Settled: ...  # noqa: D102
    async def renew(self, claims: Collection[int], dead: Collection[int]) -> list[int]: ...  # noqa: D102
    async def piece(self, message_id: int, number: int) -> bytes: ...  # noqa: D102


class Routes(Protocol):
    """Who knows where mail goes: `mailgate.outbound.route.Router`."""

    async def route(  # noqa: D102
        self, domain: str, *, requires_tls: bool = False, tls_is_optional: bool = False
    ) -> Route | NoRoute: ...


class Telling(Protocol):
    """Who makes notices: `mailgate.outbound.origin.Originator`."""

    async def notice(  # noqa: D102
        self,
        original: OriginalMessage,
        recipients: Sequence[RecipientStatus],
        about: tuple[Lease, ...],
        *,
        is_of_success: bool,
    ) -> Notice | None: ...


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


class _Held:
    """A row that is ours."""

    __slots__ = ("content", "destination", "lease", "row", "sender")

    def __init__(self, row: QueuedRow, lease: Lease, content: Content) -> None:
        self.row = row
        self.lease = lease
        self.content = content
        self.destination: str | None = None  # what it counts against; None while its route is looked for


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
        the address, status and reply of recipients that failed for good.
        """
        self._clock = clock
        self._rows = rows
        self._router = router
        self._connect = connect
        self._telling = telling
        self._claims = claims
        self._limits = limits
        self._settings = settings
        self._random = random
        self._time = time
        self._usage = usage
        self._failed_for_good = failed

        self._held: dict[int, _Held] = {}
        self._alive_claims: dict[int, int] = {}  # claims, and how many of their rows are held
        self._per_domain: dict[str, int] = {}  # rows held
        self._per_sender: dict[str, int] = {}
        self._destinations: dict[_Way, Destination] = {}
        self._connections = 0
        self._routes: OrderedDict[_Way, tuple[float, Route | NoRoute]] = OrderedDict()
        self._after_sender = ""
        self._after_domains: OrderedDict[str, str] = OrderedDict()
        self._backed_off: dict[str, tuple[float, str]] = {}  # by route key: until when, and why
        self._trouble_times: dict[str, int] = {}
        self._decided: deque[Decided] = deque()
        self._destination_news: dict[str, DestinationNews] = {}
        self._unsettled: Settlement | None = None  # its statement is under way, or its answer was lost
        self._settled_rate = 0.0
        self._is_claiming = False
        self._is_woken = False
        self._is_settling = False
        self._is_stopping = False
        self._started_at = 0.0
        self._poll: IDelayedCall | None = None
        self._settle_timer: IDelayedCall | None = None
        self._ticking: Deferred[None] | None = None
        self._routing: set[Deferred[None]] = set()
        self._dead: list[int] = []
        self._drained: list[Deferred[None]] = []

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
        for timer in (self._poll,):
            if timer is not None and timer.active():
                timer.cancel()
        if self._ticking is not None:
            self._ticking.cancel()
        for routing in tuple(self._routing):
            routing.cancel()
        deadline = self._clock.seconds() + seconds
        stopping = [Deferred.fromCoroutine(each.stop()) for each in self._destinations.values()]
        patience = self._clock.callLater(seconds * 0.7, self._abort)
        for stopped in stopping:
            await stopped
        if patience.active():
            patience.cancel()
        for held in [each for each in self._held.values() if each.destination is None]:
            self._let_go(held)
        self._settle_soon()
        if self._decided or self._is_settling or self._unsettled is not None:
            drained: Deferred[None] = Deferred()
            self._drained.append(drained)
            left = max(deadline - self._clock.seconds(), 1.0)
            late = self._clock.callLater(left, self._give_up_draining)
            await drained
            if late.active():
                late.cancel()

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
        if payload.startswith("destination "):  # an operator has paused or resumed it
            self._backed_off.pop(payload.removeprefix("destination "), None)
        self.wake()

    def _abort(self) -> None:
        for destination in tuple(self._destinations.values()):
            destination.abort()

    def _give_up_draining(self) -> None:
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            waiter.callback(None)

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            log.failure("the queue's runner failed", failure)

    # ------------------------------------------------------------ claims

    async def _claim_all(self) -> None:
        """Claim until there is nothing more, or no room."""
        try:
            while self._is_woken and not self._is_stopping:
                room = _MAX_HELD - len(self._held)
                if room < _CLAIM_ROWS // 2:
                    break  # whoever makes room wakes us
                if not await self._claim(min(room, _CLAIM_ROWS)):
                    self._is_woken = False
        except StorageUnavailable as error:
            log.info("the queue waits for the database: {reason}", reason=str(error))
            self._is_woken = False
        finally:
            self._is_claiming = False
            self._poll_later()

    async def _claim(self, at_most: int) -> bool:
        """Whether there may be more."""
        number = self._new_claim()
        self._is_woken = False
        bound = self._per_destination()
        try:
            rows = await self._rows.claim(
                number,
                at_most=at_most,
                per_destination=bound,
                skipped=[domain for domain, held in self._per_domain.items() if held >= bound],
                skipped_senders=[sender for sender, held in self._per_sender.items() if held >= _MAX_HELD * 3 // 4],
                after_sender=self._after_sender,
                after_domains=self._after_domains,
            )
        except BaseException:
            del self._alive_claims[number]
            raise
        if rows:
            self._is_woken = True
        self._take(number, rows)
        self._move_on(rows)
        self._hand_over(rows)
        return bool(rows)

    def _new_claim(self) -> int:
        number = self._claims.next()
        self._alive_claims[number] = 0
        return number

    def _per_destination(self) -> int:
        """How many rows of one destination may be held: what is served in about a second, of the fastest."""
        return int(min(max(_FIRST_PER_DESTINATION, 2 * self._settled_rate), _MAX_HELD * 3 / 4))

    def _move_on(self, rows: Sequence[QueuedRow]) -> None:
        """The next claim begins behind this one."""
        after, round_of = self._after_sender, self._after_domains
        last: dict[str, tuple[bool, str]] = {}
        for row in rows:
            # Behind where the claim began, or in its second round.
            place = (row.domain <= round_of.get(row.sender, ""), row.domain)
            if row.sender not in last or place > last[row.sender]:
                last[row.sender] = place
        for sender, (_, domain) in last.items():
            round_of[sender] = domain
            round_of.move_to_end(sender)
        while len(round_of) > _MAX_ROUNDS:
            round_of.popitem(last=False)
        if last:
            self._after_sender = max((sender <= after, sender) for sender in last)[1]

    def _take(self, claim: int, rows: Sequence[QueuedRow]) -> None:
        contents: dict[int, Content] = {}
        for row in rows:
            content = contents.get(row.message_id)
            if content is None:
                content = contents[row.message_id] = self._content_of(row)
            self._held[row.id] = _Held(row, Lease(row.id, claim), content)
            self._per_domain[row.domain] = self._per_domain.get(row.domain, 0) + 1
            self._per_sender[row.sender] = self._per_sender.get(row.sender, 0) + 1
        if rows:
            self._alive_claims[claim] = len(rows)
        else:
            del self._alive_claims[claim]

    def _content_of(self, row: QueuedRow) -> Content:
        trace = bytes(row.trace or b"")
        if row.content is not None:
            return WholeContent(trace, row.content)
        message_id = row.message_id

        async def read(number: int) -> bytes:
            return await self._rows.piece(message_id, number)

        return StoredContent(trace, row.size_octets, read)

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
            if row.done is not None:
                held = self._held[row.id]
                self._note(decide_done(row, held.lease, self._time()))
                continue
            by_way.setdefault((row.domain, row.requires_tls, row.tls_is_optional), []).append(row)
        known: dict[_Way, tuple[Route, list[QueuedRow]]] = {}
        now = self._clock.seconds()
        for way, some in by_way.items():
            remembered = self._routes.get(way)
            if remembered is not None and remembered[0] > now:
                self._sort(way, remembered[1], some, known)
            else:
                routing = Deferred.fromCoroutine(self._find_route(way, some))
                if not routing.called:
                    self._routing.add(routing)
                routing.addErrback(self._ended)
                routing.addBoth(lambda _, each: self._routing.discard(each), routing)
        self._deliver(known)

    async def _find_route(self, way: _Way, rows: Sequence[QueuedRow]) -> None:
        domain, requires_tls, tls_is_optional = way
        route = await self._router.route(domain, requires_tls=requires_tls, tls_is_optional=tls_is_optional)
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
            self._note_outcome(self._held[row.id], outcome, delivery)

    def _deliver(self, known: Mapping[_Way, tuple[Route, Sequence[QueuedRow]]]) -> None:
        for way, (route, rows) in known.items():
            backed_off = self._backed_off.get(route.key)
            if backed_off is not None:
                if backed_off[0] > self._time():
                    for row in rows:
                        self._postpone(self._held[row.id], backed_off[0])
                    continue
                del self._backed_off[route.key]
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
            for row in rows:
                self._held[row.id].destination = route.key
            for message in self._messages(rows):
                destination.add(message)
            destination.pump()

    def _messages(self, rows: Sequence[QueuedRow]) -> list[OutgoingMessage]:
        """The rows as transactions: one for the recipients that share all but their addresses."""
        groups: dict[tuple[object, ...], list[QueuedRow]] = {}
        for row in rows:
            key = (row.message_id, row.reverse_path, row.is_smtputf8, row.ret, row.envid, row.deliver_by)
            groups.setdefault(key, []).append(row)
        return [
            self._message(group[start : start + MAX_RECIPIENTS])
            for group in groups.values()
            for start in range(0, len(group), MAX_RECIPIENTS)
        ]

    def _message(self, rows: Sequence[QueuedRow]) -> OutgoingMessage:
        first = rows[0]
        return OutgoingMessage(
            first.message_id,
            first.reverse_path,
            tuple([OutgoingRecipient(row.id, row.recipient, notify_of(row), row.orcpt) for row in rows]),
            self._held[first.id].content,
            first.is_eight_bit,
            first.is_smtputf8,
            first.ret,
            first.envid,
            first.requires_tls,
            first.tls_is_optional,
            first.deliver_by,
            first.deliver_by_mode or "",
        )

    # ------------------------------------------------------------ what destinations say

    def may_connect(self) -> bool:
        """Whether there may be another connection; it counts from now on."""
        if self._connections >= self._settings.max_connections:
            return False
        self._connections += 1
        return True

    def connection_ended(self) -> None:
        """There is one connection less: another destination may have one."""
        self._connections -= 1
        if self._connections == self._settings.max_connections - 1:
            for destination in tuple(self._destinations.values()):
                if destination.waiting:
                    destination.pump()

    def delivered(self, destination: Destination, message: OutgoingMessage, delivery: Delivery) -> None:
        """Take note of outcomes."""
        is_final = destination.route.protocol == "lmtp"
        for outcome in delivery.outcomes:
            held = self._held.get(outcome.queue_id)
            if held is not None:
                self._note_outcome(held, outcome, delivery, is_final=is_final)

    def released(self, destination: Destination, message: OutgoingMessage) -> None:
        """Let go of rows that were not tried; where their destination is left alone, until that is over."""
        backed_off = self._backed_off.get(destination.route.key)
        for recipient in message.recipients:
            held = self._held.get(recipient.queue_id)
            if held is None:
                continue
            if backed_off is None:
                self._let_go(held)
            else:
                self._postpone(held, backed_off[0])

    def is_in_trouble(self, destination: Destination, trouble: Trouble) -> None:
        """Leave the destination alone for a while."""
        settings = self._settings
        key = destination.route.key
        times = self._trouble_times.get(key, 0)
        self._trouble_times[key] = times + 1
        seconds = min(settings.back_off_first_seconds * 2.0 ** min(times, 30), settings.back_off_longest_seconds)
        self._backed_off[key] = (self._time() + seconds, trouble.reply)
        self._destination_news[key] = DestinationNews(
            key, trouble.reply, settings.back_off_first_seconds, settings.back_off_longest_seconds
        )
        log.info(
            "{destination} is left alone for {seconds} s: {reply}",
            destination=key,
            seconds=round(seconds),
            reply=trouble.reply,
        )
        self._settle_soon()

    def is_well(self, destination: Destination) -> None:
        """A host has taken a message."""
        key = destination.route.key
        if key in self._trouble_times:
            del self._trouble_times[key]
            self._backed_off.pop(key, None)
            self._destination_news[key] = DestinationNews(key, None)
            self._settle_soon()

    # ------------------------------------------------------------ outcomes

    def _note_outcome(
        self, held: _Held, outcome: RecipientOutcome, delivery: Delivery, *, is_final: bool = False
    ) -> None:
        decided = decide(
            held.row, held.lease, outcome, delivery, self._settings.schedule, self._random, is_final=is_final
        )
        if outcome.result is Result.FAILED:
            self._failed_for_good(held.row.recipient, outcome.status, outcome.reply)
        self._note(decided)

    def _let_go(self, held: _Held) -> None:
        self._note(Decided(Kept(held.lease)))

    def _postpone(self, held: _Held, due_at: float) -> None:
        """Wait until the destination is tried again; what would be late by then is dealt with by `_tick`."""
        if held.row.domain == held.destination or held.destination is None:
            # All nodes know of it (see `destination`): the row stays ready, and nobody takes it.
            self._let_go(held)
        else:
            self._note(Decided(Kept(held.lease, due_at)))

    def _note(self, decided: Decided) -> None:
        self._decided.append(decided)
        self._settle_soon()

    def _settle_soon(self) -> None:
        if self._is_settling or self._settle_timer is not None:
            return
        if not self._decided and not self._destination_news and self._unsettled is None:
            return
        self._settle_timer = self._clock.callLater(0 if self._is_stopping else _SETTLE_SECONDS, self._settle_now)

    def _settle_now(self) -> None:
        self._settle_timer = None
        self._is_settling = True
        Deferred.fromCoroutine(self._settle_all()).addErrback(self._ended)

    async def _settle_all(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        try:
            while self._unsettled is not None or self._decided or self._destination_news:
                try:
                    if self._unsettled is None:
                        self._unsettled = await self._settlement()
                    await self._settle(self._unsettled)
                    self._unsettled = None
                    pause = _FIRST_PAUSE_SECONDS
                except StorageUnavailable as error:
                    log.info("what became of mail waits for the database: {reason}", reason=str(error))
                    if self._is_stopping and not self._drained:
                        return
                    await deferLater(self._clock, pause)
                    pause = min(pause * 2, _LAST_PAUSE_SECONDS)
        finally:
            self._is_settling = False
            if not self._decided and self._unsettled is None:
                self._give_up_draining()

    async def _settle(self, settlement: Settlement) -> None:
        """Write it. What the database refuses is divided until it is clear which row it refuses.

        @raises StorageUnavailable: it is unknown whether it was written.
        """
        began = self._clock.seconds()
        try:
            settled = await self._rows.settle(settlement)
        except psycopg2.Error as error:
            await self._settle_refused(settlement, error)
            return
        for mailbox_id, octets in settled.usage:
            self._usage(mailbox_id, octets)
        for notice in settled.disowned:
            log.warn("a notice was not made, another node has the row: {notice}", notice=notice)
        self._forget(settlement)
        seconds = max(self._clock.seconds() - began, _SETTLE_SECONDS)
        self._settled_rate += (len(settlement.ended) / seconds - self._settled_rate) * 0.3

    async def _settle_refused(self, settlement: Settlement, error: psycopg2.Error) -> None:
        if settlement.notices:
            log.error("a notice can't be written: {reason}", reason=reason_of(error))
            settlement.notices.clear()
            await self._settle(settlement)
            return
        leases = settlement.leases()
        if len(leases) <= 1:
            log.error("what became of a row can't be written: {reason}", reason=reason_of(error))
            if settlement.attempts or settlement.destinations:
                settlement.attempts.clear()
                settlement.destinations.clear()
                await self._settle(settlement)
            else:
                self._forget(settlement)
            return
        for half in _halves(settlement):
            await self._settle(half)

    def _forget(self, settlement: Settlement) -> None:
        """These rows are ours no longer."""
        for lease in settlement.leases():
            held = self._held.pop(lease.queue_id, None)
            if held is None:
                continue
            row = held.row
            _count_down(self._per_domain, row.domain)
            _count_down(self._per_sender, row.sender)
            _count_down(self._alive_claims, lease.claim)
        if len(self._held) <= _MAX_HELD - _CLAIM_ROWS // 2:
            self.wake()

    async def _settlement(self) -> Settlement:
        """All that has been decided, with the notices that tell of it.

        @raises StorageUnavailable: a notice can't be made now; what was decided waits.
        """
        count = min(len(self._decided), _MAX_SETTLED)
        taken = [self._decided[index] for index in range(count)]
        settlement = Settlement()
        for decided in taken:
            if isinstance(decided.row, Ended):
                settlement.ended.append(decided.row)
            else:
                settlement.kept.append(decided.row)
            if decided.attempt is not None:
                settlement.attempts.append(decided.attempt)
        told: dict[tuple[int, bool, bool], list[Decided]] = {}
        for decided in taken:
            if decided.told is not None:
                held = self._held[decided.row.lease.queue_id]
                is_of_success = isinstance(decided.row, Ended) and decided.row.is_delivered
                key = (held.row.message_id, is_of_success, decided.told.action is Action.DELAYED)
                told.setdefault(key, []).append(decided)
        for (_, is_of_success, _), some in told.items():
            notice = await self._notice(some, is_of_success=is_of_success)
            if notice is not None:
                settlement.notices.append(notice)
        for _ in range(count):
            self._decided.popleft()
        settlement.destinations, self._destination_news = self._destination_news, {}
        return settlement

    async def _notice(self, some: Sequence[Decided], *, is_of_success: bool) -> Notice | None:
        held = self._held[some[0].row.lease.queue_id]
        row = held.row
        is_whole = row.ret == "FULL" and row.size_octets <= MAX_RETURNED_OCTETS
        octets = await beginning_of(held.content, MAX_RETURNED_OCTETS if is_whole else MAX_RETURNED_HEADER_OCTETS)
        original = OriginalMessage(
            row.original_path,
            row.created_at,
            octets,
            row.size_octets - len(row.trace or b"") if row.content is None else len(row.content),
            row.ret,
            row.envid,
        )
        recipients = [each.told for each in some if each.told is not None]
        about = tuple(each.row.lease for each in some)
        return await self._telling.notice(original, recipients, about, is_of_success=is_of_success)

    # ------------------------------------------------------------ what goes by time

    async def _tick(self) -> None:
        while True:
            try:
                self._dead = await self._rows.renew(list(self._alive_claims), self._dead)
                await self._claim_overdue()
            except StorageUnavailable as error:
                log.info("leases wait for the database: {reason}", reason=str(error))
            except psycopg2.Error as error:
                log.warn("leases can't be renewed: {reason}", reason=reason_of(error))
            self._prune()
            await deferLater(self._clock, _TICK_SECONDS)

    async def _claim_overdue(self) -> None:
        if self._clock.seconds() - self._started_at < _GRACE_SECONDS:
            return
        schedule = self._settings.schedule
        while not self._is_stopping and len(self._held) < _MAX_HELD:
            number = self._new_claim()
            try:
                rows = await self._rows.claim_overdue(
                    number,
                    delay_seconds=schedule.delay_seconds,
                    give_up_seconds=schedule.give_up_seconds,
                    at_most=_OVERDUE_ROWS,
                )
            except BaseException:
                del self._alive_claims[number]
                raise
            self._take(number, rows)
            for row in rows:
                backed_off = self._backed_off.get(row.domain)
                reason = None if backed_off is None else backed_off[1]
                held = self._held[row.id]
                self._note(decide_overdue(row, held.lease, schedule, self._time(), reason))
            if len(rows) < _OVERDUE_ROWS:
                return

    def _prune(self) -> None:
        """Forget destinations that have nothing to do, and back-offs that are over."""
        for way, destination in tuple(self._destinations.items()):
            if destination.is_idle:
                del self._destinations[way]
        now = self._time()
        for key, (until, _) in tuple(self._backed_off.items()):
            if until + self._settings.back_off_longest_seconds < now:
                del self._backed_off[key]
                self._trouble_times.pop(key, None)


def _count_down(counts: dict[str, int] | dict[int, int], key: str | int) -> None:
    left = counts[key] - 1  # type: ignore[index]  # one of the two kinds of keys
    if left:
        counts[key] = left  # type: ignore[index]  # likewise
    else:
        del counts[key]  # type: ignore[arg-type]  # likewise


def _halves(settlement: Settlement) -> tuple[Settlement, Settlement]:
    rows: list[Ended | Kept] = [*settlement.ended, *settlement.kept]
    first = {each.lease.queue_id for each in rows[: len(rows) // 2]}
    halves = (Settlement(destinations=settlement.destinations), Settlement())
    for each in settlement.ended:
        halves[each.lease.queue_id not in first].ended.append(each)
    for kept in settlement.kept:
        halves[kept.lease.queue_id not in first].kept.append(kept)
    for attempt in settlement.attempts:
        halves[attempt.queue_id not in first].attempts.append(attempt)
    return halves
