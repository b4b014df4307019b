"""Suppressed addresses in the database: what was counted against an address, for all nodes.

Addresses are compared with their domain in A-form and lower case; the local part is another mail system's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.outbound.suppression import Suppressed, key_of
from mailgate.storage import literal
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mailgate.storage.pool import Connection, Pool, Row

_TIMEOUT_SECONDS = 5.0


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

    async def delivered(self, addresses: Iterable[str]) -> None:
        """Forget what was counted against these. @raises StorageUnavailable: the database can't be asked."""
        await self._execute("note_success", addresses=literal.text_array(map(key_of, addresses)))

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
