"""Secrets that all nodes share: random octets by name, made by whichever node first needs them.

They lie open in the database: whoever can read it can read the mail anyway, and has no use for them elsewhere. Keys
that are worth something outside are sealed (`mailgate.sealing`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mailgate.storage import literal
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from mailgate.storage.pool import Execute

SECRET_OCTETS = 32


async def shared_secret(execute: Execute, name: str) -> bytes:
    """The secret of that name, the same for every node. @raises StorageUnavailable: the database can't be asked."""
    values = {
        b"name": literal.encoded(literal.text(name)),
        b"octets": literal.encoded(f"'\\x{os.urandom(SECRET_OCTETS).hex()}'"),
    }
    await execute(QUERIES["make_secret"] % values)
    ((octets,),) = await execute(QUERIES["find_secret"] % values)
    return bytes(octets)
