"""The keys of our domains: kept in the database encrypted, asked for by domain, and remembered by the node.

A domain without keys of its own is signed for by the nearest domain above it that has some: to DMARC that is the same
organization (relaxed alignment). What is remembered is forgotten when the database tells of a change
(`NOTIFY dkim_key`), and whenever the connection that listens was lost or is back.

Not here: how keys are made and become active (`mailgate.cli.dkim`), how they sign (`mailgate.auth.signer`).

Standards: RFC 6376 section 3.1 (several selectors a domain); RFC 9989 section 4.4 (alignment).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from mailgate.auth.private_key import PrivateKey, load_private_key
from mailgate.sealing import MasterKey, UnusableKey
from mailgate.storage import literal
from mailgate.storage.queries import QUERIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from twisted.python.failure import Failure

    from mailgate.storage.pool import Connection, Pool, Row

CHANNEL = "dkim_key"

_TIMEOUT_SECONDS = 5.0

Keys = tuple[PrivateKey, ...]


def purpose_of(domain: str, selector: str) -> str:
    """What a key is sealed for: one that is moved to another row does not open there."""
    return f"the DKIM key {selector}._domainkey.{domain}"


def open_key(
    master_key: MasterKey | None, domain: str, selector: str, sealed_key: bytes, master_key_id: str
) -> PrivateKey:
    """The key of a row of dkim_key. @raises UnusableKey: this master key, or none, does not open it."""
    purpose = purpose_of(domain, selector)
    if master_key is None:
        raise UnusableKey(f"{purpose} needs the master key {master_key_id}: name its file in signing.master_key_file")
    if master_key.id != master_key_id:
        raise UnusableKey(
            f"{purpose} was sealed with the master key {master_key_id}, and {master_key.source} holds {master_key.id}"
        )
    try:
        return load_private_key(domain, selector, master_key.open(sealed_key, purpose))
    except ValueError as error:
        raise UnusableKey(f"{purpose} can't be read: {error}") from error


class SigningKeys:
    """The active keys, by domain."""

    def __init__(
        self, pool: Pool, listener: Connection, master_key: MasterKey | None, *, max_entries: int = 5_000
    ) -> None:
        """`listener` hears of changes."""
        self._pool = pool
        self._master_key = master_key
        self._max_entries = max_entries
        self._known: OrderedDict[str, Keys] = OrderedDict()
        self._waiting: dict[str, list[Deferred[Keys]]] = {}
        listener.listen(CHANNEL, lambda _: self.forget())
        listener.on_reconnect(self.forget)
        listener.on_lost(self.forget)

    def keys_for(self, domain: str) -> Keys | Deferred[Keys]:
        """The keys that sign for that domain (A-form, lower case), those for RSA first; () where it has none.

        At once where they are known, else a Deferred that may be cancelled. It fails with StorageUnavailable where the
        database can't be asked, and with UnusableKey where the master key does not open what it holds.
        """
        known = self._known.get(domain)
        if known is not None:
            self._known.move_to_end(domain)
            return known
        waiter: Deferred[Keys] = Deferred()
        waiters = self._waiting.get(domain)
        if waiters is not None:
            waiters.append(waiter)
            return waiter
        waiters = self._waiting[domain] = [waiter]
        statement = QUERIES["find_signing_keys"] % {b"domains": literal.encoded(literal.text_array(_upwards(domain)))}
        asked = Deferred.fromCoroutine(self._pool.execute(statement, timeout_seconds=_TIMEOUT_SECONDS))
        asked.addCallback(self._answered, domain, waiters)
        asked.addErrback(self._failed, domain, waiters)
        return waiter

    async def check(self) -> None:
        """Return if the master key opens every key that signs.

        @raises UnusableKey: it does not open one of them.
        @raises StorageUnavailable: the database can't be asked.
        """
        for domain, selector, master_key_id in await self._pool.execute(
            QUERIES["foreign_signing_keys"] % self._own_id()
        ):
            open_key(self._master_key, domain, selector, b"", master_key_id)

    def forget(self) -> None:
        """Ask the database again for everything, what is under way included."""
        self._known.clear()
        self._waiting.clear()  # those who wait are still answered; whoever comes now asks anew

    def _own_id(self) -> dict[bytes, bytes]:
        own = "" if self._master_key is None else self._master_key.id
        return {b"master_key_id": literal.encoded(literal.text(own))}

    def _opened(self, rows: Sequence[Row]) -> Keys:
        return tuple(
            open_key(self._master_key, domain, selector, bytes(sealed_key), master_key_id)
            for domain, selector, sealed_key, master_key_id in rows
        )

    def _answered(self, rows: Sequence[Row], domain: str, waiters: list[Deferred[Keys]]) -> None:
        keys = self._opened(rows)
        if self._waiting.get(domain) is waiters:
            del self._waiting[domain]
            while len(self._known) >= self._max_entries:
                self._known.popitem(last=False)
            self._known[domain] = keys
        for waiter in _listening(waiters):
            waiter.callback(keys)

    def _failed(self, failure: Failure, domain: str, waiters: list[Deferred[Keys]]) -> None:
        if self._waiting.get(domain) is waiters:
            del self._waiting[domain]
        for waiter in _listening(waiters):
            waiter.errback(failure.value)


def _listening(waiters: Iterable[Deferred[Keys]]) -> list[Deferred[Keys]]:
    return [waiter for waiter in waiters if not waiter.called]


def _upwards(domain: str) -> list[str]:
    """The domain and those above it that somebody could sign for."""
    labels = domain.split(".")
    return [".".join(labels[start:]) for start in range(max(len(labels) - 1, 1))]
