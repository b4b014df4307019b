"""Keeps the database from growing without end: what is older than it is kept goes, a bounded piece at a time.

- The record (sessions, transactions, recipients): whole monthly partitions, after `record_days`. The partitions of the
  coming months are made here too.
- The DNS answers that only the record of those months can name.
- Deliveries: by folder, after so many days; a folder that is not named keeps its mail. Then messages that nobody has.
- What makes a resend known: after an hour.

Every node does this, at its start and then hourly; locks in the database see to it that only one is at it. Nothing here
is urgent: whatever fails is tried again an hour later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailgate.ids import first_id_at
from mailgate.repeated import Repeated
from mailgate.storage import literal
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.interfaces import IReactorTime

    from mailgate.storage.pool import Connection, Pool, Row

INTERVAL_SECONDS = 3600.0
MONTHS_AHEAD = 2
_DAY_SECONDS = 86400.0
_AT_MOST_DELIVERIES = 500
_AT_MOST_ANSWERS = 5000
_AT_MOST_MESSAGES = 5000
_MAX_STEPS = 2000  # in a row, of one kind
_BREATH_SECONDS = 0.05  # between steps, in which accepted mail has the disk to itself

log = Logger()


class Retention:
    """Prunes in the background."""

    def __init__(
        self,
        clock: IReactorTime,
        pool: Pool | Connection,
        *,
        record_days: int,
        folder_days: Mapping[str, int],
        time: Callable[[], float],
    ) -> None:
        """`time` gives seconds since the epoch; `pool` is not the writer's, and its setup is `literal.settle`."""
        self._clock = clock
        self._pool = pool
        self._record_days = record_days
        self._folder_days = dict(folder_days)
        self._time = time
        self._looked_at = 0  # the last message that was looked at by `_remove_unused_messages`
        self._repeated = Repeated(clock, self.prune, lambda: INTERVAL_SECONDS, what="retention", is_first_at_once=True)

    def start(self) -> None:
        """Prune now and then every hour, until `stop`."""
        self._repeated.start()

    async def stop(self) -> None:
        """Stop; what is under way in the database is one bounded step, and ends by itself."""
        self._repeated.stop()

    async def prune(self) -> None:
        """Do all that is due now. Failures are logged and left for the next time."""
        for step in (
            self._keep_partitions,
            self._remove_old_answers,
            self._forget_unconfirmed,
            self._expire_deliveries,
            self._remove_unused_messages,
        ):
            try:
                await step()
            except StorageUnavailable as error:
                log.info("retention waits an hour: {reason}", reason=str(error))
            except psycopg2.Error as error:
                log.warn("retention: {reason}", reason=" ".join(str(error).split()))

    async def _keep_partitions(self) -> None:
        now = self._time()
        rows = await self._execute(
            "keep_partitions",
            now=repr(now),
            months_ahead=str(MONTHS_AHEAD),
            before=repr(now - self._record_days * _DAY_SECONDS),
        )
        if rows:
            log.info("partitions made or dropped: {names}", names=", ".join(row[0] for row in rows))

    async def _remove_old_answers(self) -> None:
        before = repr(self._time() - self._record_days * _DAY_SECONDS)
        for _ in range(_MAX_STEPS):
            rows = await self._execute("remove_old_answers", before=before, at_most=str(_AT_MOST_ANSWERS))
            if rows[0][0] != _AT_MOST_ANSWERS:
                break
            await deferLater(self._clock, _BREATH_SECONDS)

    async def _forget_unconfirmed(self) -> None:
        await self._execute("forget_unconfirmed")

    async def _expire_deliveries(self) -> None:
        for folder, days in self._folder_days.items():
            before = repr(self._time() - days * _DAY_SECONDS)
            for _ in range(_MAX_STEPS):
                rows = await self._execute(
                    "expire_deliveries", folder=literal.text(folder), before=before, at_most=str(_AT_MOST_DELIVERIES)
                )
                if rows[0][0] != _AT_MOST_DELIVERIES:
                    break
                await deferLater(self._clock, _BREATH_SECONDS)

    async def _remove_unused_messages(self) -> None:
        """Go on where the last time ended; begin anew at the end. Messages of the last hour are let alone."""
        before = str(first_id_at(self._time() - 3600))
        for _ in range(_MAX_STEPS):
            rows = await self._execute(
                "remove_unused_messages", after=str(self._looked_at), before=before, at_most=str(_AT_MOST_MESSAGES)
            )
            if rows[0][0] is None:
                self._looked_at = 0
                return
            self._looked_at = rows[0][0]
            await deferLater(self._clock, _BREATH_SECONDS)

    async def _execute(self, name: str, **values: str) -> list[Row]:
        parameters = {key.encode("ascii"): literal.encoded(value) for key, value in values.items()}
        return await self._pool.execute(QUERIES[name] % parameters, timeout_seconds=60.0)
