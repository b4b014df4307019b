"""What storage raises when its caller can't go on.

Expected outcomes (an unknown recipient, a resend) are values elsewhere; these two end what was begun.
"""

from __future__ import annotations


class StorageUnavailable(Exception):
    """The database can't be asked now, or it is unknown whether it did what was asked. Try again later."""


class DatabaseRefused(Exception):
    """mailgate must not work with this database until a person has changed something; the message says what."""
