"""Checks of passwords that need not be made again for a few minutes.

A mail program that logs in for each message would have its password hashed each time; one that was left with an old
password tries it for weeks, and would get its whole network banned. So the outcome of a check is kept for a short
while, under a keyed hash of network, account and password, whose key never leaves the process. All of it is dropped as
soon as any password or mailbox changes, somebody makes a ban, or we might not hear of that. A ban that failures have
led to does not end what was right from the same network a moment before.

What this costs: for those minutes memory holds what lets a password be tested, to whoever can read our memory; that one
could read passwords as they arrive.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable


class Remembered:
    """Outcomes of checks, the newest ones."""

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        hears_changes: Callable[[], bool] = lambda: True,
        maximum_age_seconds: float = 300.0,
        maximum_entries: int = 10_000,
    ) -> None:
        """`seconds` is a clock's; while `hears_changes` is false nothing is kept, and nothing that was kept counts."""
        self._seconds = seconds
        self._hears_changes = hears_changes
        self._maximum_age_seconds = maximum_age_seconds
        self._maximum_entries = maximum_entries
        self._secret = secrets.token_bytes(32)
        self._outcomes: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()
        self.generation = 0

    def key(self, network: str, name: str, password: bytes) -> bytes:
        """What an outcome is kept under."""
        parts = (network.encode(), name.encode("utf-8", "replace"), password)
        octets = b"".join(b"%d:%s" % (len(part), part) for part in parts)
        return hashlib.blake2b(octets, key=self._secret, digest_size=32).digest()

    def outcome(self, key: bytes) -> tuple[str | None] | None:
        """The account's name, or None for a wrong password, in a tuple; None where nothing is known."""
        found = self._outcomes.get(key)
        if found is None or not self._hears_changes():
            return None
        account, expires_at = found
        if self._seconds() >= expires_at:
            del self._outcomes[key]
            return None
        return (account,)

    def keep(self, key: bytes, account: str | None, generation: int) -> None:
        """Keep what a check found, unless something has changed since the generation in which it began."""
        if generation != self.generation or not self._hears_changes():
            return
        self._outcomes[key] = (account, self._seconds() + self._maximum_age_seconds)
        self._outcomes.move_to_end(key)
        if len(self._outcomes) > self._maximum_entries:
            self._outcomes.popitem(last=False)

    def forget(self) -> None:
        """Something has changed."""
        self._outcomes.clear()
        self.generation += 1
