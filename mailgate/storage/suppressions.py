"""Suppressed addresses in the database: what was counted against an address, for all nodes.

Addresses are compared with their domain in A-form and lower case; the local part is another mail system's business.
Failures are collected and written a little later: a node that dies forgets some, and nobody is the worse for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
from twisted.logger import Logger

from mailgate.outbound.suppression import Suppressed, key_of, tells_of_the_address
from mailgate.repeated import Repeated
from mailgate.storage import literal
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IReactorTime

    from mailgate.storage.pool import Connection, Pool, Row

INTERVAL_SECONDS = 2.0
_FORGET_EVERY = 1800  # intervals
_MAX_WAITING = 10_000
_TIMEOUT_SECONDS = 5.0

log = Logger()


class SuppressionStore:
    """The table `suppression`."""

    def __init__(self, pool: Pool | Connection, *, days: int, threshold: int, time: Callable[[], float]) -> None:
        """`days` is how long an address is refused, `threshold` how many failures within that time lead to it.

        `time` gives seconds since the epoch; the pool's setup is `literal.settle`.
        """
        self._pool = pool
        self._days = days
        self._threshold = threshold
        self._time = time

    async def failed(self, failures: Iterable[tuple[str, str]]) -> None:
        """Count these addresses, each with the reply. @raises StorageUnavailable: the database can't be asked."""
        by_address = {key_of(address): reply for address, reply in failures}
        if by_address:
            await self._execute(
                "note_failure",
                addresses=literal.text_array(by_address),
                replies=literal.text_array(by_address.values()),
                days=str(self._days),
                threshold=str(self._threshold),
                now=repr(self._time()),
            )

    async def find(self, address: str) -> Suppressed | None:
        """Whether that address is refused now. @raises StorageUnavailable: the database can't be asked."""
        rows = await self._execute("find_suppression", address=literal.text(key_of(address)), now=repr(self._time()))
        return Suppressed(*rows[0]) if rows else None

    async def forget(self) -> None:
        """Remove what is long past. @raises StorageUnavailable: the database can't be asked."""
        await self._execute("forget_suppressions", days=str(self._days), now=repr(self._time()))

    async def _execute(self, name: str, **values: str) -> list[Row]:
        parameters = {key.encode("ascii"): literal.encoded(value) for key, value in values.items()}
        return await self._pool.execute(QUERIES[name] % parameters, timeout_seconds=_TIMEOUT_SECONDS)


class SuppressionWriter:
    """Counts failures behind the back of delivery."""

    def __init__(self, clock: IReactorTime, store: SuppressionStore) -> None:
        """Nothing is written before `start`."""
        self._store = store
        self._waiting: dict[str, str] = {}
        self._rounds = 0
        self._repeated = Repeated(clock, self._round, lambda: INTERVAL_SECONDS, what="counting failed addresses")

    def failed(self, address: str, status: str, reply: str) -> None:
        """The other host has refused that address for good, with that status and reply."""
        if tells_of_the_address(status) and len(self._waiting) < _MAX_WAITING:
            self._waiting[address] = reply

    def start(self) -> None:
        """Write every few seconds, until `stop`."""
        self._repeated.start()

    async def stop(self) -> None:
        """Write what there is, and stop."""
        self._repeated.stop()
        await self.write()

    async def write(self) -> None:
        """Write what there is now. What can't be written is not counted."""
        waiting, self._waiting = self._waiting, {}
        try:
            if waiting:
                await self._store.failed(waiting.items())
        except (StorageUnavailable, psycopg2.Error) as error:
            log.info("failed addresses are not counted: {reason}", reason=" ".join(str(error).split()))

    async def _round(self) -> None:
        await self.write()
        self._rounds += 1
        if self._rounds % _FORGET_EVERY == 0:
            await self._forget()

    async def _forget(self) -> None:
        try:
            await self._store.forget()
        except (StorageUnavailable, psycopg2.Error) as error:
            log.info("suppressed addresses wait: {reason}", reason=" ".join(str(error).split()))
