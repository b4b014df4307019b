"""What is on record of mail that was forwarded: where its failures are to go.

Standards: none; `mailgate.auth.srs` says when a rewritten reverse-path names a transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from mailgate.storage.pool import Execute

_TIMEOUT_SECONDS = 5.0


async def reverse_path_of(execute: Execute, transaction_id: int) -> str | None:
    """The reverse-path of an accepted transaction, as its client gave it; None where the record has it no more.

    @raises StorageUnavailable: the database can't be asked.
    """
    statement = QUERIES["find_reverse_path"] % {b"id": b"%d" % transaction_id}
    rows = await execute(statement, timeout_seconds=_TIMEOUT_SECONDS)
    return str(rows[0][0]) if rows else None
