"""How passwords are kept and checked: argon2id for PLAIN and LOGIN, a SCRAM verifier for SCRAM.

A password is hashed when it is set, and once at each check, whoever the account is and however many passwords it has:
an app password is picked out by its selector, and where there is nothing to check, a hash of nobody's password is
checked instead. So neither the time nor the work tells whether an account exists.

The parameters of argon2id are those that OWASP asks for at least: 19 MiB, two passes, one lane; about 22 ms here. The
second choice of RFC 9106 (64 MiB, three passes, four lanes) takes 165 ms of processor time, and mail programs log in
for each message and each folder: on two processors twelve logins a second would be all, and a few clients with a wrong
password would use them up. What is kept by other parameters is hashed again at its next use.

Everything here takes its time, and is called in a thread (`mailgate.accounts.hashing`) or where nobody waits.

Standards: RFC 9106 (Argon2), RFC 5802 (verifiers), RFC 4013 (the form that is hashed).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from mailgate.sasl.saslprep import Unprepared, saslprep
from mailgate.sasl.scram import SALT_OCTETS, Verifier, make_verifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailgate.storage.credentials import Credential

_SELECTOR_OCTETS = 8
_APP_PASSWORD_GROUPS, _APP_PASSWORD_GROUP_CHARS = 6, 4
# Without letters and digits that look alike; 30 characters, 24 of them: 117 bits.
_APP_PASSWORD_ALPHABET = "23456789abcdefghjkmnpqrstvwxyz"  # noqa: S105  # what it is made of

hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)


class UnusablePassword(ValueError):
    """Nobody can have this as a password; the message is for people."""


def prepared_password(text: str) -> bytes:
    """The octets that are hashed. @raises UnusablePassword: mail programs would not agree on them."""
    try:
        octets = saslprep(text, is_stored=True).encode("utf-8")
    except Unprepared as error:
        raise UnusablePassword(f"that can't be a password: {error}") from None
    if not octets:
        raise UnusablePassword("a password can't be empty")
    return octets


def make_app_password() -> str:
    """A new random password, in groups that a person can type: "k7dm-3xqa-...", 117 bits."""
    return "-".join(
        "".join(secrets.choice(_APP_PASSWORD_ALPHABET) for _ in range(_APP_PASSWORD_GROUP_CHARS))
        for _ in range(_APP_PASSWORD_GROUPS)
    )


def selector_of(password: bytes) -> bytes:
    """What an app password is found by; see the column's comment."""
    return hashlib.sha256(password).digest()[:_SELECTOR_OCTETS]


def salt_of(secret: bytes, account: str) -> bytes:
    """The SCRAM salt of an account, whether it exists or not: a client is told it before it has proved anything."""
    return hmac.digest(secret, b"scram salt\0" + account.encode("utf-8", "replace"), "sha256")[:SALT_OCTETS]


def hash_password(password: bytes, salt: bytes) -> tuple[str, Verifier]:
    """What is kept of a prepared password: argon2id, and the verifier with that salt. Takes 50 ms."""
    return hasher.hash(password), make_verifier(password, salt)


def credential_for(credentials: Sequence[Credential], password: bytes) -> Credential | None:
    """The one credential that this password can be: the app password with its selector, else the account's own."""
    selector = selector_of(password)
    own = None
    for credential in credentials:
        if credential.selector is None:
            own = credential
        elif hmac.compare_digest(credential.selector, selector):
            return credential
    return own


def verify(argon2: str, password: bytes) -> bool:
    """Whether this is the password; one argon2id. A hash that is none is nobody's."""
    try:
        return hasher.verify(argon2, password)
    except (VerificationError, InvalidHashError):
        return False
