"""Writes what was decided of rows: many in a statement, with the notices that tell of them.

What is decided while a settlement is under way is written by the next one. What can't be written waits in memory, and
its rows stay leased: a statement whose answer was lost is repeated as it was, and changes nothing if it was done. Until
a settlement is committed its rows count as held.

A notice is made from all that was decided of a message in one settlement, so that its sender hears once.

Not here: what is decided (`mailgate.outbound.settling`), what a notice says (`mailgate.outbound.dsn`).

Standards: RFC 3461 section 6.2 (one notification for the recipients of a message).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import psycopg2
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailgate.ids import encode_id
from mailgate.outbound.content import beginning_of
from mailgate.outbound.dsn import MAX_RETURNED_HEADER_OCTETS, MAX_RETURNED_OCTETS
from mailgate.outbound.notice import Action, OriginalMessage
from mailgate.storage.errors import StorageUnavailable, reason_of
from mailgate.storage.settlement import Ended, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from mailgate.outbound.content import Content
    from mailgate.outbound.notice import RecipientStatus
    from mailgate.outbound.settling import Decided
    from mailgate.storage.queue import QueuedRow, Settled
    from mailgate.storage.settlement import DestinationNews, Kept, Lease, Notice

_DELAY_SECONDS = 0.02  # what is decided in that time is written together
_MAX_ROWS = 500  # in a statement
_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 10.0
_SLOW_SECONDS = 5.0  # a statement takes some milliseconds

log = Logger()


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


class Writing(Protocol):
    """Who writes settlements: `mailgate.storage.queue.Queue`."""

    async def settle(self, settlement: Settlement) -> Settled: ...  # noqa: D102


class Settler:
    """Collects decisions, and writes them."""

    def __init__(
        self,
        clock: IReactorTime,
        rows: Writing,
        telling: Telling,
        *,
        original: Callable[[int], tuple[QueuedRow, Content]],
        settled: Callable[[Sequence[Lease]], object],
        usage: Callable[[int, int], object],
    ) -> None:
        """`original` gives a row that is held, and its content, by the row's id.

        `settled` is called with rows that are ours no longer, `usage` with mailbox id and octets used where a notice
        went to a mailbox of ours.
        """
        self._clock = clock
        self._rows = rows
        self._telling = telling
        self._original = original
        self._settled = settled
        self._usage = usage
        self._decided: deque[Decided] = deque()
        self._news: dict[str, DestinationNews] = {}
        self._unsettled: Settlement | None = None  # its statement is under way, or the answer to it was lost
        self._running: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._drained: list[Deferred[None]] = []
        self.rows_per_second = 0.0  # that ended lately, about
        self._is_failing = False
        self._began_at: float | None = None  # the statement that is under way

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to write."""
        return not self._decided and not self._news and self._unsettled is None and self._running is None

    @property
    def is_behind(self) -> bool:
        """Whether the database doesn't answer; `settled` is called when it does again."""
        return self._is_failing or (
            self._began_at is not None and self._clock.seconds() - self._began_at > _SLOW_SECONDS
        )

    def decided(self, decided: Decided) -> None:
        """Write this soon."""
        self._decided.append(decided)
        if self._timer is None and self._running is None:
            self._timer = self._clock.callLater(_DELAY_SECONDS, self._begin)

    def destination(self, news: DestinationNews) -> None:
        """Write this soon; of one destination, the newest counts."""
        self._news[news.name] = news
        if self._timer is None and self._running is None:
            self._timer = self._clock.callLater(_DELAY_SECONDS, self._begin)

    async def drain(self, seconds: float) -> bool:
        """Return when all has been written, or after that time; whether it has."""
        if self.is_idle:
            return True
        if self._timer is not None:
            self._timer.reset(0)
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        late = self._clock.callLater(seconds, self._say_drained)
        await drained
        if late.active():
            late.cancel()
        is_drained = self.is_idle
        if self._running is not None:
            self._running.cancel()
        return is_drained

    # ------------------------------------------------------------ settlements

    def _begin(self) -> None:
        self._timer = None
        running = Deferred.fromCoroutine(self._settle_all())
        if not running.called:
            self._running = running
        running.addErrback(self._failed)
        running.addBoth(self._over)

    def _over(self, _: object) -> None:
        self._running = None
        if self._decided or self._news or self._unsettled is not None:
            self._timer = self._clock.callLater(_FIRST_PAUSE_SECONDS, self._begin)
        else:
            self._say_drained()

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            log.failure("what became of mail could not be written", failure)

    def _say_drained(self) -> None:
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            waiter.callback(None)

    async def _settle_all(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while self._unsettled is not None or self._decided or self._news:
            try:
                if self._unsettled is None:
                    self._unsettled = await self._settlement()
                await self._settle(self._unsettled)
            except StorageUnavailable as error:
                self._is_failing = True
                log.info("what became of mail waits for the database: {reason}", reason=str(error))
                await deferLater(self._clock, pause)
                pause = min(pause * 2, _LAST_PAUSE_SECONDS)
            else:
                self._unsettled = None
                pause = _FIRST_PAUSE_SECONDS

    async def _settlement(self) -> Settlement:
        """All that has been decided, with the notices that tell of it.

        @raises StorageUnavailable: a notice can't be made now; what was decided waits.
        """
        count = min(len(self._decided), _MAX_ROWS)
        taken = [self._decided[index] for index in range(count)]
        settlement = Settlement()
        told: dict[tuple[int, bool, bool], list[Decided]] = {}
        for decided in taken:
            row = decided.row
            if isinstance(row, Ended):
                settlement.ended.append(row)
            else:
                settlement.kept.append(row)
            if decided.attempt is not None:
                settlement.attempts.append(decided.attempt)
            if decided.told is not None:
                message_id = self._original(row.lease.queue_id)[0].message_id
                is_of_success = isinstance(row, Ended) and row.is_delivered
                key = (message_id, is_of_success, decided.told.action is Action.DELAYED)
                told.setdefault(key, []).append(decided)
        for (message_id, is_of_success, _), some in told.items():
            try:
                notice = await self._notice(some, is_of_success=is_of_success)
            except (StorageUnavailable, CancelledError):
                raise
            except Exception:  # whatever is wrong with one message must not keep the others
                log.failure("no notice could be made of message {message}", message=encode_id(message_id))
                continue
            if notice is not None:
                settlement.notices.append(notice)
        for _ in range(count):
            self._decided.popleft()
        settlement.destinations, self._news = self._news, {}
        return settlement

    async def _notice(self, some: Sequence[Decided], *, is_of_success: bool) -> Notice | None:
        row, content = self._original(some[0].row.lease.queue_id)
        is_whole = row.ret == "FULL" and content.own_octets <= MAX_RETURNED_OCTETS
        octets = await beginning_of(content, MAX_RETURNED_OCTETS if is_whole else MAX_RETURNED_HEADER_OCTETS)
        original = OriginalMessage(
            row.original_path, row.created_at, octets, content.own_octets, row.ret, row.envid, row.requires_tls
        )
        recipients = [each.told for each in some if each.told is not None]
        about = tuple(each.row.lease for each in some)
        return await self._telling.notice(original, recipients, about, is_of_success=is_of_success)

    async def _settle(self, settlement: Settlement) -> None:
        """Write it. What the database refuses is divided until it is clear which row it refuses.

        @raises StorageUnavailable: it is unknown whether it was written.
        """
        began = self._began_at = self._clock.seconds()
        try:
            settled = await self._rows.settle(settlement)
        except psycopg2.Error as error:
            self._is_failing = False  # it answers
            await self._settle_refused(settlement, error)
            return
        finally:
            self._began_at = None
        self._is_failing = False
        for mailbox_id, octets in settled.usage:
            self._usage(mailbox_id, octets)
        for notice in settled.disowned:
            log.warn("the notice {notice} was not made: another node has the row", notice=encode_id(notice))
        self._settled(settlement.leases())
        seconds = max(self._clock.seconds() - began, _DELAY_SECONDS)
        self.rows_per_second += (len(settlement.ended) / seconds - self.rows_per_second) * 0.3

    async def _settle_refused(self, settlement: Settlement, error: psycopg2.Error) -> None:
        """Leave out what may be the reason, the least important first."""
        leases = settlement.leases()
        if len(leases) > 1:
            for half in _halves(settlement):
                await self._settle(half)
        elif settlement.notices:
            log.error("a notice can't be written: {reason}", reason=reason_of(error))
            settlement.notices.clear()
            await self._settle(settlement)
        elif settlement.attempts or settlement.destinations:
            log.error("an attempt can't be recorded: {reason}", reason=reason_of(error))
            settlement.attempts.clear()
            settlement.destinations.clear()
            await self._settle(settlement)
        else:
            log.error("what became of a row can't be written: {reason}", reason=reason_of(error))
            self._settled(leases)


def _halves(settlement: Settlement) -> tuple[Settlement, Settlement]:
    """The settlement in two; a notice goes with the rows that it is about, which stay together."""
    rows: list[Ended | Kept] = [*settlement.ended, *settlement.kept]
    ids = [each.lease.queue_id for each in rows]
    bound = {lease.queue_id: notice.message_id for notice in settlement.notices for lease in notice.about}
    ids.sort(key=lambda each: bound.get(each, 0))
    middle = len(ids) // 2
    while middle < len(ids) - 1 and bound.get(ids[middle], 0) and bound.get(ids[middle]) == bound.get(ids[middle - 1]):
        middle += 1
    first = set(ids[:middle])
    halves = (Settlement(destinations=settlement.destinations), Settlement())
    for each in settlement.ended:
        halves[each.lease.queue_id not in first].ended.append(each)
    for kept in settlement.kept:
        halves[kept.lease.queue_id not in first].kept.append(kept)
    for attempt in settlement.attempts:
        halves[attempt.queue_id not in first].attempts.append(attempt)
    for notice in settlement.notices:
        halves[notice.about[0].queue_id not in first].notices.append(notice)
    return halves
