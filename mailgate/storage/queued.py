"""What is put into the queue: an entry for each recipient elsewhere, as the statement that accepts mail takes it.

Pure. When an entry is tried, and what becomes of it, is the business of `mailgate.storage.queue` and
`mailgate.outbound`.

A recipient that is served already has an entry too where its sender asked to be told of success: what tells of it is
made behind the reply, by whoever claims the entry.

Standards: RFC 3461 sections 4 and 5.2 (what is asked for goes with each recipient), RFC 4865 (held mail), RFC 2852
(deliver by), RFC 8689 (REQUIRETLS, TLS-Required), RFC 6531 section 3.4 (what needs SMTPUTF8).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mailgate.message import fields_of
from mailgate.policy.stage import Role
from mailgate.smtp.grammar import GrammarError, domain_key
from mailgate.storage import literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailgate.envelope import ForwardDestination
    from mailgate.storage.records import IncomingMessage

OUR_SENDER = "mailgate"  # of notices and reports, where the queue is shared fairly
NOWHERE = "-"  # the destination of what isn't sent any more

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntry:
    """A recipient elsewhere. Times are seconds since the epoch."""

    message_id: int
    recipient: str
    reverse_path: str  # as it is sent out; "" for the null path
    sender: str  # whom its share of the queue is held against
    size_octets: int  # of trace and content
    created_at: float
    recipient_position: int | None = None
    notify: frozenset[str] | None = None
    orcpt: str | None = None
    ret: str | None = None
    envid: str | None = None
    is_eight_bit: bool = False
    is_smtputf8: bool = False
    requires_tls: bool = False
    tls_is_optional: bool = False
    deliver_by: float | None = None
    deliver_by_mode: Literal["", "N", "R"] = ""
    starts_at: float | None = None  # None: at once
    done: Literal["delivered", "expanded"] | None = None  # nothing is to be sent any more, only to be told


def queue_column(entries: Iterable[QueueEntry]) -> str:
    """The entries as one literal, for the functions `enqueue`, `accept_messages` and `settle_queue`."""
    return literal.text(_encode([_row_of(entry) for entry in entries]).replace("\\u0000", "\ufffd"))


def _row_of(entry: QueueEntry) -> dict[str, Any]:
    """What differs from the column's default."""
    row: dict[str, Any] = {
        "message_id": entry.message_id,
        "recipient": entry.recipient,
        "recipient_position": entry.recipient_position,
        "domain": NOWHERE if entry.done else destination_of(entry.recipient),
        "reverse_path": entry.reverse_path,
        "sender": entry.sender,
        "size_octets": entry.size_octets,
        "created_at": entry.created_at,
    }
    if entry.notify is not None:
        row["notify"] = sorted(entry.notify)
    for name in ("orcpt", "ret", "envid", "deliver_by", "starts_at", "done"):
        value = getattr(entry, name)
        if value is not None:
            row[name] = value
    for name in ("is_eight_bit", "is_smtputf8", "requires_tls", "tls_is_optional", "deliver_by_mode"):
        value = getattr(entry, name)
        if value:
            row[name] = value
    return row


def destination_of(address: str) -> str:
    """The domain of an address as destinations are named: by `mailgate.smtp.grammar.domain_key`."""
    domain = address.rpartition("@")[2]
    try:
        return domain_key(domain)
    except GrammarError:
        return domain.lower()  # whoever looks for a route will say what is wrong with it


def entry_of(
    message: IncomingMessage, position: int, destination: ForwardDestination, notify: frozenset[str] | None
) -> QueueEntry:
    """The entry of an accepted message for an address elsewhere that one of its recipients leads to."""
    transaction, content = message.transaction, message.content
    given = transaction.reverse_path.parameters
    forward_path = transaction.recipients[position].forward_path
    reverse_path = destination.reverse_path
    if reverse_path is None:
        reverse_path = str(transaction.reverse_path)
    header = content.header()
    needs_utf8 = not (reverse_path.isascii() and destination.address.isascii() and header.isascii())
    held = given.hold_until
    return QueueEntry(
        message_id=transaction.id,
        recipient=destination.address,
        reverse_path=reverse_path,
        sender=_sender_of(message, position),
        size_octets=len(message.trace) + content.size_octets,
        created_at=message.received_at,
        recipient_position=position,
        notify=notify,
        orcpt=forward_path.parameters.orcpt,
        ret=given.ret,
        envid=given.envid,
        is_eight_bit=not all(piece.isascii() for piece in content.pieces),
        is_smtputf8=given.smtputf8 and needs_utf8,
        requires_tls=given.requires_tls,
        tls_is_optional=_says_tls_is_optional(header) and not given.requires_tls,
        deliver_by=given.deliver_by,
        deliver_by_mode=given.deliver_by_mode,
        starts_at=held if held is not None and held > message.received_at else None,
    )


def done_entry_of(message: IncomingMessage, position: int, done: Literal["delivered", "expanded"]) -> QueueEntry:
    """The entry for a recipient of ours whose sender asked to be told (RFC 3461 sections 5.2.4 and 5.2.7)."""
    transaction = message.transaction
    given = transaction.reverse_path.parameters
    forward_path = transaction.recipients[position].forward_path
    return QueueEntry(
        message_id=transaction.id,
        recipient=str(forward_path),
        reverse_path=str(transaction.reverse_path),
        sender=OUR_SENDER,
        size_octets=len(message.trace) + message.content.size_octets,
        created_at=message.received_at,
        recipient_position=position,
        notify=frozenset({"SUCCESS"}),
        orcpt=forward_path.parameters.orcpt,
        ret=given.ret,
        envid=given.envid,
        done=done,
    )


def _sender_of(message: IncomingMessage, position: int) -> str:
    session = message.session
    if session.authenticated is not None:
        return session.authenticated
    if session.role is Role.SUBMISSION:
        return f"client:{session.client_network}"
    return f"alias:{message.transaction.recipients[position].forward_path}"


def _says_tls_is_optional(header: bytes) -> bool:
    """Whether there is a field `TLS-Required: No`, and no other of that name (RFC 8689 section 5)."""
    found = fields_of(header, b"TLS-Required")
    return len(found) == 1 and found[0].lower() == b"no"
