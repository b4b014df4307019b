"""mailgate's own checker for twisted.cred: an account is a mailbox with a password, in the database.

Unknown and disabled accounts are refused like wrong passwords, after the same work: one look-up, one argon2id for a
password; for SCRAM the same salt each time, and the comparison with a verifier that nobody has.

Not here: failures and bans, which count whoever the checker is (`mailgate.accounts.authenticator`).

Standards: RFC 5802 section 9 (what a server should not tell of accounts).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailgate.accounts.hashing import Overloaded, PasswordThreads
from mailgate.accounts.passwords import credential_for, hasher, salt_of
from mailgate.envelope import Address
from mailgate.interfaces import IScramChecker, IScramProof
from mailgate.sasl.scram import ITERATIONS, Proof, Verifier
from mailgate.smtp.grammar import GrammarError, domain_key, local_key, parse_mailbox
from mailgate.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from argon2 import PasswordHasher

    from mailgate.policy.stage import SessionView
    from mailgate.storage.credentials import Credential, Credentials

_NOBODYS_VERIFIER = Verifier(ITERATIONS, b"\0", secrets.token_bytes(32), secrets.token_bytes(32))

_log = Logger()


@implementer(IUsernamePassword)
class Password:
    """Credentials: a name and a password, both prepared, in UTF-8; and the session in which they came."""

    def __init__(self, username: bytes, password: bytes, session: SessionView) -> None:
        self.username = username
        self.password = password
        self.session = session

    def checkPassword(self, password: bytes) -> bool:
        """For checkers that know passwords themselves."""
        return secrets.compare_digest(self.password, password)


@dataclass(frozen=True, slots=True)
class ScramStart:
    """What a SCRAM exchange begins with: salt and count for the client, and the verifiers that may match."""

    salt: bytes
    iterations: int
    verifiers: tuple[tuple[Verifier, int | None], ...]  # each with the id of its credential, None where it has none


@implementer(IScramProof)
class ScramProof:
    """Credentials: a client's proof."""

    def __init__(self, username: bytes, start: ScramStart, proof: Proof, session: SessionView) -> None:
        self.username = username
        self.start = start
        self.proof = proof
        self.session = session
        self.matched: Verifier | None = None


def account_name(text: str) -> str:
    """The name under which an account is known, whatever capitals and form of domain the client used.

    What is no address is nobody's name, and is counted as it is, but for its case.
    """
    address = _address(text)
    return text.casefold() if address is None else str(address)


def _address(name: str) -> Address | None:
    try:
        address = parse_mailbox(name)
        return Address(local_key(address.local), domain_key(address.domain))
    except GrammarError:
        return None


@implementer(IScramChecker)
class DatabaseChecker:
    """Knows the passwords that `mailgate mailbox` sets."""

    credentialInterfaces = (IUsernamePassword, IScramProof)

    def __init__(self, credentials: Credentials, threads: PasswordThreads, hasher: PasswordHasher = hasher) -> None:
        """`hasher` has the parameters that passwords are to be kept by."""
        self._credentials = credentials
        self._threads = threads
        self._hasher = hasher

    def requestAvatarId(self, credentials: Password | ScramProof) -> Deferred[bytes | tuple[()]]:
        """The account's name.

        @raises UnauthorizedLogin: the credentials are nobody's.
        @raises StorageUnavailable: the database can't be asked now.
        @raises Overloaded: too many wait for their passwords to be hashed.
        """
        if isinstance(credentials, ScramProof):
            return Deferred.fromCoroutine(self._check_proof(credentials))
        return Deferred.fromCoroutine(self._check_password(credentials))

    def start_scram(self, name: str) -> Deferred[ScramStart]:
        """Salt and count for that name, and the verifiers of the account's passwords, if it exists."""
        return Deferred.fromCoroutine(self._start_scram(name))

    async def _start_scram(self, name: str) -> ScramStart:
        secret = await self._credentials.salt_secret()
        salt, iterations = salt_of(secret, account_name(name)), ITERATIONS
        known = [(each.verifier, each.id) for each in await self._of(name)]
        if known:
            # One account's verifiers are made with one salt; where the count has changed since, the oldest's is told.
            salt, iterations = known[0][0].salt, known[0][0].iterations
        fitting = [
            (verifier, id_) for verifier, id_ in known if (verifier.salt, verifier.iterations) == (salt, iterations)
        ]
        return ScramStart(salt, iterations, tuple(fitting or [(_NOBODYS_VERIFIER, None)]))

    async def _check_proof(self, credentials: ScramProof) -> bytes | tuple[()]:
        for verifier, id_ in credentials.start.verifiers:
            if credentials.proof.matches(verifier) and id_ is not None:
                credentials.matched = verifier
                await self._credentials.used(id_, credentials.session.client_address)
                return credentials.username
        raise UnauthorizedLogin

    async def _check_password(self, credentials: Password) -> bytes | tuple[()]:
        found = credential_for(await self._of(credentials.username.decode("utf-8")), credentials.password)
        is_right = await self._threads.verify(None if found is None else found.argon2, credentials.password)
        if found is None or not is_right:
            raise UnauthorizedLogin
        await self._credentials.used(found.id, credentials.session.client_address)
        if self._hasher.check_needs_rehash(found.argon2):
            await self._rehash(found, credentials.password)
        return credentials.username

    async def _of(self, name: str) -> tuple[Credential, ...]:
        address = _address(name)
        # Where there is no such address the database is asked all the same.
        return await self._credentials.of(Address("", "") if address is None else address)

    async def _rehash(self, credential: Credential, password: bytes) -> None:
        """Keep it by the present parameters; if that can't be done now, then the next time."""
        try:
            argon2 = await self._threads.run(lambda: self._hasher.hash(password))
            await self._credentials.rehashed(credential, argon2)
        except (StorageUnavailable, Overloaded) as error:
            _log.warn("a password could not be kept by newer parameters: {reason}", reason=repr(error))
