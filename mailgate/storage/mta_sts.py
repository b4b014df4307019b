"""Keeps MTA-STS policies in the database: what one node has fetched, all of them go by, and a restart forgets none.

Standards: RFC 8461 section 5.1 (a cached policy holds until it expires).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2

from mailgate.outbound.mta_sts import InvalidPolicy, read_policy
from mailgate.outbound.mta_sts_fetch import KeptPolicy
from mailgate.storage import literal
from mailgate.storage.errors import StorageUnavailable
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from mailgate.storage.pool import Connection, Pool, Row


class MtaStsTable:
    """The table mta_sts_policy."""

    def __init__(self, pool: Pool | Connection) -> None:
        """`pool` has `literal.settle` as its setup."""
        self._pool = pool

    async def get(self, domain: str) -> KeptPolicy | None:
        """What is kept for the domain, expired or not. @raises StorageUnavailable: it can't be asked."""
        rows = await self._execute("find_mta_sts_policy", domain=literal.text(domain))
        if not rows:
            return None
        identifier, text, fetched_at = rows[0]
        try:
            return KeptPolicy(read_policy(text.encode("utf-8")), identifier, float(fetched_at))
        except InvalidPolicy:  # written by a version that read policies otherwise
            return None

    async def put(self, domain: str, kept: KeptPolicy) -> None:
        """Keep the policy in place of one that was fetched earlier. @raises StorageUnavailable: it can't be."""
        await self._execute(
            "keep_mta_sts_policy",
            domain=literal.text(domain),
            policy_id=literal.text(kept.policy_id),
            mode=literal.text(kept.policy.mode.value),
            mx=literal.text_array(kept.policy.mx),
            policy_text=literal.text(kept.policy.text),
            fetched_at=repr(kept.fetched_at),
            expires_at=repr(kept.expires_at),
        )

    async def _execute(self, name: str, **values: str) -> list[Row]:
        parameters = {key.encode("ascii"): literal.encoded(value) for key, value in values.items()}
        try:
            return await self._pool.execute(QUERIES[name] % parameters)
        except psycopg2.Error as error:  # what is kept must not come between a message and its host
            raise StorageUnavailable(" ".join(str(error).split())) from error
