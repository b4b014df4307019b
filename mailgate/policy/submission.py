"""The policy `submission`: what an account of ours may send, and what is done to a message before it goes out.

    MAIL            the reverse-path is an address of the account, or the null path
    RCPT            the account's recipients of the day are not used up
    END_OF_DATA     every address in From, and that in Sender, is one of the account's; then the header is put right
                    (`mailgate.submission.fixups`), signed, and the message counted

The null path is taken from every account: receipts (RFC 8098 section 3) and automatic answers (RFC 3834 section 3.3)
have to use it, and From says who sends all the same. Who may not send as an address hears 550 and what would be right;
where we don't know, 451. A message is counted before it is stored, so one that storage then defers counts twice.

A session that has not authenticated, on a listener that takes such, has no addresses of its own: nothing here is asked
of it, and nothing is done to its mail. It reaches recipients of ours only.

Standards: RFC 6409 sections 3.3 (authentication), 4.2 and 6.1 (the sender's address), 6.3 (DSN), 8 (changes);
RFC 5322 section 3.6.2 (From, Sender); RFC 3463 and RFC 5248 (status codes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailgate.auth.author import authors_of, sender_of
from mailgate.auth.canonical import MalformedHeader
from mailgate.auth.results import AuthorFault
from mailgate.auth.signature import read_header
from mailgate.ids import encode_id
from mailgate.interfaces import IPolicy
from mailgate.message import revised_header
from mailgate.policy.stage import AddedFields, RemovedFields, Stage, TraceFields
from mailgate.policy.verdict import Continue, Defer, Reject
from mailgate.smtp.reply import reply
from mailgate.storage.errors import StorageUnavailable
from mailgate.submission.fixups import header_fixups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mailgate.envelope import Address
    from mailgate.message import MessageContent
    from mailgate.policy.signing import Signed
    from mailgate.policy.stage import Request, TransactionView
    from mailgate.policy.verdict import Verdict
    from mailgate.storage.senders import Rights, Senders

_CONTINUE = Continue()
_UNAVAILABLE = Defer(reply(451, "4.3.0", "Can't look up what you may send at present, try again later"))

_log = Logger()


class Signer(Protocol):
    """What signs: `mailgate.policy.signing.Signing`."""

    def sign(self, content: MessageContent, header: bytes | None = None) -> Signed | Deferred[Signed]: ...  # noqa: D102


@implementer(IPolicy)
class SubmissionPolicy:
    """Lets an account send as itself, and so much a day."""

    name = "submission"
    stages = frozenset({Stage.MAIL, Stage.RCPT, Stage.END_OF_DATA})

    def __init__(self, senders: Senders, signer: Signer | None, hostname: str, time: Callable[[], float]) -> None:
        """`time` gives seconds since the epoch. Without `signer` nothing is signed."""
        self._senders = senders
        self._signer = signer
        self._hostname = hostname
        self._time = time

    async def decide(self, request: Request) -> Verdict:
        """A verdict; at the end of data with what is to be added and removed."""
        account, transaction = request.session.authenticated, request.transaction
        if account is None:
            return _CONTINUE
        if transaction is None:
            raise ValueError("what is sent is decided on within a transaction")
        try:
            match request.stage:
                case Stage.MAIL:
                    return await self._mail(account, transaction)
                case Stage.RCPT:
                    return await self._rcpt(account, transaction)
                case _:
                    return await self._end_of_data(account, request, transaction)
        except StorageUnavailable:
            return _UNAVAILABLE

    async def _mail(self, account: str, transaction: TransactionView) -> Verdict:
        address = transaction.reverse_path.address
        rights = await self._rights(account, address)
        if rights is None or not rights.is_enabled:
            return _no_account(account)
        if address is not None and not rights.is_own:
            return _not_own(account, "MAIL FROM", address)
        if self._senders.sent_today(rights.mailbox_id).messages >= rights.limits.messages:
            return _too_many_messages(rights)
        return _CONTINUE

    async def _rcpt(self, account: str, transaction: TransactionView) -> Verdict:
        rights = await self._rights(account, transaction.reverse_path.address)
        if rights is None:
            return _no_account(account)
        accepted = sum(recipient.accepted for recipient in transaction.recipients)
        if self._senders.sent_today(rights.mailbox_id).recipients + accepted >= rights.limits.recipients:
            return _too_many_recipients(rights)
        return _CONTINUE

    async def _end_of_data(self, account: str, request: Request, transaction: TransactionView) -> Verdict:
        content = request.content
        if content is None:
            raise ValueError("there is no content at the end of data")
        header = content.header()
        try:
            read_header(header)
        except MalformedHeader as error:
            return _malformed(str(error))
        authors, sender = authors_of(header), sender_of(header)
        if isinstance(authors, AuthorFault):
            return _malformed(authors.problem)
        if isinstance(sender, AuthorFault):
            return _malformed(sender.problem)
        refusal = await self._refusal_of(account, "From", dict.fromkeys(authors))
        if refusal is None and sender is not None:
            refusal = await self._refusal_of(account, "Sender", (sender,))
        if refusal is not None:
            return refusal
        message_id = f"{encode_id(transaction.id)}@{self._hostname}"
        fixups = header_fixups(header, now=self._time(), message_id=message_id)
        notes: list[object] = []
        if fixups.removed:
            notes.append(RemovedFields(fixups.removed))
        if fixups.added:
            notes.append(AddedFields(fixups.added))
        fields = await self._signature(content, revised_header(header, fixups.removed, fixups.added), transaction.id)
        if fields:
            notes.append(TraceFields(fields))
        rights = await self._rights(account, transaction.reverse_path.address)
        if rights is None or not rights.is_enabled:
            return _no_account(account)
        if not await self._senders.count(rights, sum(recipient.accepted for recipient in transaction.recipients)):
            return _too_many_recipients(rights)
        return Continue(tuple(notes))

    async def _signature(self, content: MessageContent, header: bytes, transaction_id: int) -> bytes:
        if self._signer is None:
            return b""
        signed = self._signer.sign(content, header)
        if isinstance(signed, Deferred):
            signed = await signed
        if signed.problem:
            _log.info(
                "transaction {transaction} goes out unsigned: {problem}",
                transaction=encode_id(transaction_id),
                problem=signed.problem,
            )
        return signed.fields

    async def _refusal_of(self, account: str, where: str, addresses: Iterable[Address]) -> Reject | None:
        """Why the account may not write the first of the addresses that it may not; None if it may write all."""
        for address in addresses:
            rights = await self._rights(account, address)
            if rights is None or not rights.is_enabled:
                return _no_account(account)
            if not rights.is_own:
                return _not_own(account, where, address)
        return None

    async def _rights(self, account: str, address: Address | None) -> Rights | None:
        rights = self._senders.rights(account, address)
        return await rights if isinstance(rights, Deferred) else rights


def _no_account(account: str) -> Reject:
    return Reject(reply(550, "5.7.1", f"The account {account} may not send at present: it has no mailbox in use here"))


def _not_own(account: str, where: str, address: Address) -> Reject:
    return Reject(
        reply(
            550,
            "5.7.1",
            f"{where} names {address}, which is not yours:",
            f"{account} may send as that address, as its aliases, and as what it was granted",
        )
    )


def _malformed(problem: str) -> Reject:
    return Reject(reply(550, "5.6.0", f"Malformed header: {problem}"))


def _too_many_messages(rights: Rights) -> Defer:
    return _over(f"{rights.limits.messages} messages")


def _too_many_recipients(rights: Rights) -> Defer:
    return _over(f"{rights.limits.messages} messages to {rights.limits.recipients} recipients")


def _over(what: str) -> Defer:
    return Defer(reply(452, "4.7.1", f"You may send at most {what} a day; the next day begins at 00:00 UTC"))
