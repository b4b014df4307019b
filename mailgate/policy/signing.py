"""Signing a message as it is accepted: with the keys of its author's domain, without holding the reactor up.

No policy itself: the policy of submission, and whoever writes messages of our own, asks it for the fields to put on
top. What a signature is, is `mailgate.auth.signer`.

Standards: RFC 6376 section 5 (the signer); RFC 9989 section 4.4 (the author's domain signs, so that it aligns).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from mailgate.auth.author import author_domain, authors_of
from mailgate.auth.canonical import MalformedHeader
from mailgate.auth.results import AuthorFault
from mailgate.auth.signer import BODY_FORM, sign
from mailgate.policy.body_hashing import hash_body

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from mailgate.auth.canonical import BodyHashes
    from mailgate.auth.private_key import PrivateKey
    from mailgate.message import MessageContent
    from mailgate.storage.signing_keys import SigningKeys


@dataclass(frozen=True, slots=True)
class Signed:
    """What signing came to."""

    fields: bytes  # DKIM-Signature fields, each ending in CRLF; b"" where it is not signed
    domain: str = ""  # who signed
    problem: str = ""  # why nobody did; "" also where the domain has no keys


class Signing:
    """Signs with the keys of this installation."""

    def __init__(self, keys: SigningKeys, clock: IReactorTime) -> None:
        """`clock` tells seconds since the epoch, as the reactor does."""
        self._keys = keys
        self._clock = clock

    def sign(self, content: MessageContent, header: bytes | None = None) -> Signed | Deferred[Signed]:
        """The fields for a message by the author in its From; at once where keys are known and the body is small.

        `header` is the header section that will be sent, where it is another than the content's. The Deferred may be
        cancelled, and fails as `SigningKeys.keys_for` does.
        """
        section = content.header() if header is None else header
        authors = authors_of(section)
        domain = authors if isinstance(authors, AuthorFault) else author_domain(authors)
        if isinstance(domain, AuthorFault):
            return Signed(b"", problem=domain.problem)
        keys = self._keys.keys_for(domain)
        if isinstance(keys, Deferred):
            return Deferred.fromCoroutine(self._sign_later(content, section, keys))
        if not keys:
            return Signed(b"")
        hashes = hash_body(content, (BODY_FORM,), self._clock)
        if isinstance(hashes, Deferred):
            return hashes.addCallback(self._signed, section, keys)
        return self._signed(hashes, section, keys)

    async def _sign_later(
        self, content: MessageContent, section: bytes, waiting: Deferred[tuple[PrivateKey, ...]]
    ) -> Signed:
        keys = await waiting
        if not keys:
            return Signed(b"")
        hashes = hash_body(content, (BODY_FORM,), self._clock)
        return self._signed(await hashes if isinstance(hashes, Deferred) else hashes, section, keys)

    def _signed(self, hashes: BodyHashes, section: bytes, keys: tuple[PrivateKey, ...]) -> Signed:
        try:
            return Signed(sign(section, hashes, keys, self._clock.seconds()), keys[0].domain)
        except MalformedHeader as error:
            return Signed(b"", problem=str(error))
