"""What storage raises when its caller can't go on.

Expected outcomes (an unknown recipient, a resend) are values elsewhere; these two end what was begun.
"""

from __future__ import annotations

import psycopg2

_REASON_CHARS = 300


class StorageUnavailable(Exception):
    """The database can't be asked now, or it is unknown whether it did what was asked. Try again later."""


class DatabaseRefused(Exception):
    """mailgate must not work with this database until a person has changed something; the message says what."""


def reason_of(error: Exception) -> str:
    """Why something can't be written, as one line for the log.

    What PostgreSQL says beyond its first message is left out: the statement and its context are kilobytes, and the row
    has text from strangers.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, psycopg2.Error):
        text = f"{error.diag.message_primary or error} (SQLSTATE {error.pgcode or 'unknown'})"
    line = " ".join(text.split())
    return line if len(line) <= _REASON_CHARS else line[: _REASON_CHARS - 1] + "…"
