"""Puts messages of our own on their way: a notice is signed, and goes to a mailbox of ours or into the queue.

It is written by whoever writes what it tells of, in the same transaction; here it only becomes a value. No Received
field is put on top: nobody has received it.

Standards: RFC 5321 sections 3.6.3 and 4.5.5 (the null reverse-path), RFC 3461 section 6, RFC 3834 section 3.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailgate.envelope import MailboxDestination
from mailgate.ids import encode_id
from mailgate.message import MessageContent
from mailgate.outbound.dsn import build
from mailgate.smtp.grammar import GrammarError, parse_mailbox
from mailgate.storage.directory import Outcome
from mailgate.storage.queued import OUR_SENDER, QueueEntry
from mailgate.storage.settlement import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mailgate.envelope import Address
    from mailgate.ids import IdGenerator
    from mailgate.outbound.notice import OriginalMessage, RecipientStatus
    from mailgate.policy.signing import Signed
    from mailgate.storage.directory import Answer
    from mailgate.storage.settlement import Lease

log = Logger()


class Resolving(Protocol):
    """Who knows what an address leads to: `mailgate.storage.directory.Directory`."""

    def resolve(self, address: Address) -> Answer | Deferred[Answer]: ...  # noqa: D102


class Signer(Protocol):
    """Who signs: `mailgate.policy.signing.Signing`."""

    def sign(self, content: MessageContent) -> Signed | Deferred[Signed]: ...  # noqa: D102


class Originator:
    """Makes notices."""

    def __init__(
        self,
        ids: IdGenerator,
        directory: Resolving,
        *,
        hostname: str,
        author: str,
        time: Callable[[], float],
        signer: Signer | None = None,
    ) -> None:
        """`author` is the address in From. `time` gives seconds since the epoch."""
        self._ids = ids
        self._directory = directory
        self._hostname = hostname
        self._author = author
        self._time = time
        self._signer = signer

    async def notice(
        self,
        original: OriginalMessage,
        recipients: Sequence[RecipientStatus],
        about: tuple[Lease, ...],
        *,
        is_of_success: bool,
    ) -> Notice | None:
        """The notice to the sender of a message, or None where nobody can be told.

        @raises StorageUnavailable: the database can't be asked now.
        """
        identifier = self._ids.next()
        now = self._time()
        reference = encode_id(identifier)
        notification = build(
            original, recipients, hostname=self._hostname, author=self._author, reference=reference, made_at=now
        )
        octets = notification.octets
        try:
            address = parse_mailbox(original.reverse_path)
        except GrammarError:
            log.warn("nobody to tell at {recipient!r}: that is no address", recipient=original.reverse_path)
            return None
        answered = self._directory.resolve(address)
        answer = await answered if isinstance(answered, Deferred) else answered
        trace = b"Return-Path: <>\r\n" + await self._signature(octets)

        def entry(recipient: str) -> QueueEntry:
            return QueueEntry(
                message_id=identifier,
                recipient=recipient,
                reverse_path="",
                sender=OUR_SENDER,
                size_octets=len(trace) + len(octets),
                created_at=now,
                is_eight_bit=notification.is_eight_bit,
                is_smtputf8=notification.is_smtputf8,
                requires_tls=notification.requires_tls,
            )

        if answer.outcome is Outcome.NOT_OURS:
            return Notice(identifier, trace, octets, about, is_of_success, entries=(entry(original.reverse_path),))
        destinations = answer.resolution.destinations
        if not destinations:
            log.warn("nobody to tell at {recipient}: {outcome}", recipient=str(address), outcome=answer.outcome.value)
            return None
        return Notice(
            identifier,
            trace,
            octets,
            about,
            is_of_success,
            tuple(each for each in destinations if isinstance(each, MailboxDestination)),
            tuple(entry(each.address) for each in destinations if not isinstance(each, MailboxDestination)),
        )

    async def _signature(self, octets: bytes) -> bytes:
        """The fields to put on top; none where signing fails: a notice without is better than none."""
        if self._signer is None:
            return b""
        try:
            signed = self._signer.sign(MessageContent([octets], len(octets), hashlib.sha256(octets).digest()))
            return (await signed if isinstance(signed, Deferred) else signed).fields
        except Exception:
            log.failure("a notice goes without a signature")
            return b""
