"""Passwords of accounts, failures and bans, as the database has them.

One round trip a question, on connections of their own: a flood of guesses must not hold up the look-ups of recipients.

Not here: what a password is checked with (`mailgate.accounts.passwords`), and what failures lead to
(`mailgate.accounts.bans`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailgate.sasl.scram import Verifier, parse_verifier
from mailgate.storage import literal
from mailgate.storage.queries import QUERIES
from mailgate.storage.secret import shared_secret

if TYPE_CHECKING:
    from mailgate.envelope import Address
    from mailgate.storage.pool import Execute, Row

CHANNEL = "credential"  # notified where a password or a ban has changed
_SALT_SECRET = "scram-salt"  # noqa: S105  # its name
_SUBJECT_CHARS = 320  # a local part of 64, a domain of 255
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Credential:
    """One password of an account, as it is kept."""

    id: int
    selector: bytes | None  # of an app password; None: the account's own
    argon2: str = field(repr=False)
    verifier: Verifier = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many failures within which time lead to a ban, and to how long a one, in seconds."""

    failures_per_network: int = 10
    failures_per_account: int = 50
    counted_seconds: float = 900.0
    ban_seconds: float = 900.0
    maximum_ban_seconds: float = 86_400.0


@dataclass(frozen=True, slots=True)
class Admission:
    """Who is banned now."""

    is_network_banned: bool
    is_account_banned: bool


@dataclass(frozen=True, slots=True)
class Count:
    """Failures within the time that counts, this one included, and whether they have led to a ban."""

    network: int
    account: int
    is_network_banned: bool
    is_account_banned: bool


class Credentials:
    """The passwords. Every method raises StorageUnavailable where the database can't be asked."""

    def __init__(self, execute: Execute) -> None:
        """`execute` is that of a Pool whose setup is `literal.settle`."""
        self._execute = execute
        self._salt_secret: bytes | None = None

    async def of(self, account: Address) -> tuple[Credential, ...]:
        """The passwords of an enabled account; none where there is no such account. Both parts are keys."""
        rows = await self._run("find_credentials", domain=_text(account.domain), local_part=_text(account.local))
        return tuple(
            Credential(id_, None if selector is None else bytes(selector), argon2, parse_verifier(verifier))
            for id_, selector, argon2, verifier in rows
        )

    async def salt_secret(self) -> bytes:
        """What salts are derived from, the same for every node."""
        if self._salt_secret is None:
            self._salt_secret = await shared_secret(self._execute, _SALT_SECRET)
        return self._salt_secret

    async def used(self, credential_id: int, client_address: str) -> None:
        """Note that a password was used from there."""
        await self._run("credential_used", id=b"%d" % credential_id, address=_text(client_address))

    async def rehashed(self, credential: Credential, argon2: str) -> None:
        """Keep a password by newer parameters, unless it has been changed meanwhile."""
        await self._run(
            "rehash_credential", id=b"%d" % credential.id, argon2=_text(argon2), old=_text(credential.argon2)
        )

    async def _run(self, name: str, **values: bytes) -> list[Row]:
        return await _run(self._execute, name, values)


class Failures:
    """What failed authentication has led to. Every method raises StorageUnavailable as above."""

    def __init__(self, execute: Execute) -> None:
        """`execute` is that of a Pool whose setup is `literal.settle`."""
        self._execute = execute

    async def admission(self, address: str, network: str, account: str) -> Admission:
        """Whether the client's network, or the account as seen from there, is banned now."""
        values = {"address": _text(address), "network": _text(network), "account": _subject(account)}
        ((is_network_banned, is_account_banned),) = await _run(self._execute, "admission", values)
        return Admission(bool(is_network_banned), bool(is_account_banned))

    async def count(self, network: str, account: str, bounds: Bounds) -> Count:
        """Count a failure, and ban whichever has had enough."""
        rows = await _run(
            self._execute,
            "count_failure",
            {
                "network": _text(network),
                "account": _subject(account),
                "window": _seconds(bounds.counted_seconds),
                "network_failures": b"%d" % bounds.failures_per_network,
                "account_failures": b"%d" % bounds.failures_per_account,
                "ban": _seconds(bounds.ban_seconds),
                "maximum_ban": _seconds(bounds.maximum_ban_seconds),
            },
        )
        found = {kind: (failures, is_banned) for kind, failures, is_banned in rows}
        # A row may have been lifted by somebody in the same moment; of a banned network only its own is counted.
        network_failures, is_network_banned = found.get("network", (1, False))
        account_failures, is_account_banned = found.get("account", (1, False))
        return Count(network_failures, account_failures, is_network_banned, is_account_banned)

    async def succeeded(self, network: str, account: str, keep_seconds: float) -> None:
        """Remember that the account has been used from there."""
        values = {"network": _text(network), "account": _subject(account), "keep": _seconds(keep_seconds)}
        await _run(self._execute, "know_network", values)


async def _run(execute: Execute, name: str, values: dict[str, bytes]) -> list[Row]:
    statement = QUERIES[name] % {key.encode("ascii"): value for key, value in values.items()}
    return await execute(statement, timeout_seconds=_TIMEOUT_SECONDS)


def _text(value: str) -> bytes:
    return literal.encoded(literal.text(value))


def _subject(account: str) -> bytes:
    # Strangers choose it, and it is kept.
    return _text(account[:_SUBJECT_CHARS])


def _seconds(value: float) -> bytes:
    assert math.isfinite(value)  # noqa: S101  # the configuration has bounds
    return b"%f" % value
