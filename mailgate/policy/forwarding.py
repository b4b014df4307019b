"""The policy `forwarding`: what is done to a message that an alias of ours passes on to elsewhere.

It seals what we found of the message with ARC, in the name of the alias' domain, since SPF says nothing at the next
host and DKIM may not either; and it refuses a message that the same alias has passed on before. No configuration can
leave it out, and it is asked last. Of mail that was submitted here nothing is sealed: it is signed.

The reverse-path is another policy's business (`mailgate.policy.recipients`), because it is known at RCPT already.

Standards: RFC 8617 section 5.1 (sealing); RFC 5321 section 6.3 (loops); RFC 9228 (Delivered-To).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailgate.auth.arc_seal import seal
from mailgate.auth.canonical import MalformedHeader
from mailgate.auth.results import ArcResult
from mailgate.auth.signer import BODY_FORM
from mailgate.envelope import Address, ForwardDestination, Resolution
from mailgate.ids import encode_id
from mailgate.interfaces import IPolicy
from mailgate.message import fields_of, revised_header
from mailgate.policy.arc import ArcPolicy
from mailgate.policy.body_hashing import hash_body
from mailgate.policy.results import findings_in
from mailgate.policy.stage import AddedFields, RemovedFields, Stage, TraceFields
from mailgate.policy.verdict import Continue, Defer, Reject
from mailgate.sealing import UnusableKey
from mailgate.smtp.grammar import GrammarError, domain_key, local_key, parse_mailbox
from mailgate.smtp.reply import reply
from mailgate.storage.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from twisted.internet.interfaces import IReactorTime

    from mailgate.auth.private_key import PrivateKey
    from mailgate.message import MessageContent
    from mailgate.policy.stage import RecipientView, Request
    from mailgate.policy.verdict import Verdict
    from mailgate.storage.signing_keys import SigningKeys

_CONTINUE = Continue()
_LOOP = Reject(reply(550, "5.4.6", "This address has forwarded the message before: it goes round in a loop"))
_UNAVAILABLE = Defer(reply(451, "4.3.0", "Can't look up keys at present, try again later"))

_log = Logger()


@implementer(IPolicy)
class ForwardingPolicy:
    """Seals what is forwarded, and ends loops."""

    name = "forwarding"
    stages = frozenset({Stage.END_OF_DATA})
    after = ("results",)

    def __init__(self, authserv_id: str, keys: SigningKeys | None, arc: ArcPolicy, clock: IReactorTime) -> None:
        """`keys` are None where nothing is to be sealed; `arc` judges a chain that no other policy has judged."""
        self._authserv_id = authserv_id
        self._keys = keys
        self._arc = arc
        self._clock = clock

    def decide(self, request: Request) -> Verdict | Awaitable[Verdict]:
        """Continue, with an ARC set and Delivered-To to go on top; Reject for a loop."""
        content, transaction = request.content, request.transaction
        if content is None or transaction is None:
            raise ValueError("what is forwarded is known at the end of data")
        accepted = [recipient for recipient in transaction.recipients if recipient.accepted]
        forwarded = [recipient for recipient in accepted if _leads_elsewhere(recipient)]
        if not forwarded or request.session.authenticated is not None:
            return _CONTINUE
        addresses = [_key(recipient.forward_path.address) for recipient in forwarded]
        passed_on_by = _delivered_to(content.header())
        if len(forwarded) == len(accepted) and passed_on_by.issuperset(addresses):
            return _LOOP
        # Fields are the same for all recipients: none of them must learn of another.
        fields = b"Delivered-To: %s\r\n" % str(addresses[0]).encode() if _is_told(accepted, addresses) else b""
        if self._keys is None:
            return Continue((TraceFields(fields),)) if fields else _CONTINUE
        domains = list(dict.fromkeys(address.domain for address in addresses))
        return self._sealed(request, content, self._keys, domains, fields)

    async def _sealed(
        self, request: Request, content: MessageContent, keys: SigningKeys, domains: Sequence[str], fields: bytes
    ) -> Verdict:
        try:
            key = await _first_key(keys, domains)
        except StorageUnavailable:
            return _UNAVAILABLE
        except UnusableKey as error:
            _log.error("what is forwarded is not sealed: {problem}", problem=str(error))
            key = None
        notes: tuple[object, ...] = ()
        if key is not None:
            arc = next((note for note in request.notes if isinstance(note, ArcResult)), None)
            if arc is None:
                arc = await self._validated(request)
                notes = (arc,)
            hashing = hash_body(content, (BODY_FORM,), self._clock)
            hashes = await hashing if isinstance(hashing, Deferred) else hashing
            found = findings_in((*request.notes, arc)).field(self._authserv_id, request.session.client_address)
            try:
                fields = seal(_header_to_be(request, content), hashes, arc, found, key, self._clock.seconds()) + fields
            except MalformedHeader as error:
                _log.info(
                    "{transaction} is forwarded without a seal: {problem}",
                    transaction=encode_id(request.transaction.id) if request.transaction is not None else "",
                    problem=str(error),
                )
        return Continue((*notes, TraceFields(fields)) if fields else notes)

    async def _validated(self, request: Request) -> ArcResult:
        verdict = self._arc.decide(request)
        if isinstance(verdict, Deferred):
            verdict = await verdict
        return next(note for note in verdict.notes if isinstance(note, ArcResult))


async def _first_key(keys: SigningKeys, domains: Sequence[str]) -> PrivateKey | None:
    """The key to seal with: that of the first domain which has one for RSA."""
    for domain in domains:
        found = keys.keys_for(domain)
        for key in await found if isinstance(found, Deferred) else found:
            if key.type == "rsa":
                return key
    return None


def _leads_elsewhere(recipient: RecipientView) -> bool:
    resolution = recipient.note(Resolution)
    return resolution is not None and any(isinstance(each, ForwardDestination) for each in resolution.destinations)


def _is_told(accepted: Sequence[RecipientView], addresses: Sequence[Address]) -> bool:
    return len(accepted) == 1 and bool(addresses[0].domain)


def _header_to_be(request: Request, content: MessageContent) -> bytes:
    """The header section as it will leave below our fields, with what policies before us change of it."""
    spans: tuple[tuple[int, int], ...] = ()
    added = b""
    for note in request.notes:
        if isinstance(note, RemovedFields):
            spans += note.spans
        elif isinstance(note, AddedFields):
            added = note.octets + added
    header = content.header()
    return revised_header(header, spans, added) if spans or added else header


def _delivered_to(header: bytes) -> set[Address]:
    """Who says that it has passed this message on."""
    found = set()
    for body in fields_of(header, b"Delivered-To"):
        try:
            found.add(_key(parse_mailbox(body.decode("utf-8").removeprefix("<").removesuffix(">"))))
        except (UnicodeDecodeError, GrammarError):
            continue
    return found


def _key(address: Address) -> Address:
    try:
        return Address(local_key(address.local), domain_key(address.domain) if address.domain else "")
    except GrammarError:
        return address
