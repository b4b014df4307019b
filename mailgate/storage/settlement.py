"""What came of queue rows that were claimed, and the statement that writes it: values in, SQL out.

Pure: no I/O, no decision. What is decided is said in `mailgate.outbound`; what the statement does, in schema.sql at
`settle_queue`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailgate.message import readable_field
from mailgate.storage import literal
from mailgate.storage.queries import QUERIES
from mailgate.storage.queued import QueueEntry, queue_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mailgate.envelope import MailboxDestination

FIELD_CHARS = 300  # of From, Subject and Message-ID, for people
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to say what becomes of a row: who claims it later has another one."""

    queue_id: int
    claim: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A row that goes. One that was delivered goes whoever has it now; one that failed, only while the lease holds."""

    lease: Lease
    is_delivered: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """A row that stays, and is let go of. Times are seconds since the epoch."""

    lease: Lease
    due_at: float | None = None  # None: as it was
    status: str | None = None  # None: as it was
    reply: str | None = None
    is_attempt: bool = False  # whether it counts as one
    is_delayed: bool = False  # its sender has been told of the delay, if that was wanted
    is_deliver_by_over: bool = False  # likewise of the time that BY named


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt for one recipient, for the record."""

    message_id: int
    queue_id: int
    recipient: str
    attempted_at: float  # seconds since the epoch
    duration_seconds: float
    result: str  # "delivered", "deferred", "failed" or "expired"
    status: str
    reply: str
    is_remote: bool = False
    is_ambiguous: bool = False
    host: str | None = None
    address: str | None = None
    port: int | None = None
    tls_version: str | None = None
    tls_cipher: str | None = None
    tls_is_verified: bool | None = None
    tls_source: str | None = None


@dataclass(frozen=True, slots=True)
class DestinationNews:
    """A destination is in trouble, or (`reason` None) well again."""

    name: str
    reason: str | None
    first_seconds: float = 60.0  # it is left alone that long, twice as long at the next time, and so on
    longest_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class Notice:
    """A message of ours that tells of some rows: it is stored with what it tells of, or not at all."""

    message_id: int
    trace: bytes  # what goes on top: Return-Path, Received, signatures
    content: bytes
    about: tuple[Lease, ...]  # all of them were delivered, or none
    is_of_success: bool
    mailboxes: tuple[MailboxDestination, ...] = ()
    entries: tuple[QueueEntry, ...] = ()


@dataclass(slots=True)
class Settlement:
    """What is written together."""

    ended: list[Ended] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    destinations: dict[str, DestinationNews] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.ended or self.kept or self.attempts or self.destinations or self.notices)

    def leases(self) -> list[Lease]:
        """The rows whose fate this is."""
        return [each.lease for each in self.ended] + [each.lease for each in self.kept]


def settle_statement(settlement: Settlement, *, instance: int, node: str, now: float) -> bytes:
    """The statement that writes a settlement. `now` is seconds since the epoch."""
    ended = settlement.ended
    about = [(notice, lease) for notice in settlement.notices for lease in notice.about]
    delivered = [(notice, mailbox) for notice in settlement.notices for mailbox in notice.mailboxes]
    values = {
        "instance": str(instance),
        "node": literal.text(node),
        "now": repr(now),
        "ended_id": literal.number_array([each.lease.queue_id for each in ended]),
        "ended_claim": literal.number_array([each.lease.claim for each in ended]),
        "ended_is_delivered": literal.number_array([each.is_delivered for each in ended]),
        "kept": literal.text(_json([_kept_row(each) for each in settlement.kept])),
        **_attempt_columns(settlement.attempts),
        "destinations": literal.text(_json([_destination_row(each) for each in settlement.destinations.values()])),
        **_notice_columns(settlement.notices),
        "about_notice": literal.number_array([notice.message_id for notice, _ in about]),
        "about_id": literal.number_array([lease.queue_id for _, lease in about]),
        "about_claim": literal.number_array([lease.claim for _, lease in about]),
        "about_is_delivered": literal.number_array([notice.is_of_success for notice, _ in about]),
        "delivery_message": literal.number_array([notice.message_id for notice, _ in delivered]),
        "delivery_mailbox": literal.number_array([mailbox.mailbox_id for _, mailbox in delivered]),
        "delivery_folder": literal.text_array(["INBOX" for _ in delivered]),
        "delivery_detail": literal.text_array([mailbox.detail or None for _, mailbox in delivered]),
        "delivery_size_octets": literal.number_array([len(notice.content) for notice, _ in delivered]),
        "delivery_received_at": literal.number_array([now for _ in delivered]),
        "queue": queue_column([entry for notice in settlement.notices for entry in notice.entries]),
    }
    octets = {name.encode("ascii"): literal.encoded(value) for name, value in values.items()}
    octets[b"notice_trace"] = literal.octets_array([notice.trace for notice in settlement.notices])
    octets[b"notice_content"] = literal.octets_array([notice.content for notice in settlement.notices])
    return QUERIES["settle_queue"] % octets


def _attempt_columns(attempts: Sequence[Attempt]) -> dict[str, str]:
    return {
        "attempt_transaction": literal.number_array([each.message_id for each in attempts]),
        "attempt_queue_id": literal.number_array([each.queue_id for each in attempts]),
        "attempt_recipient": literal.text_array([each.recipient for each in attempts]),
        "attempt_at": literal.number_array([each.attempted_at for each in attempts]),
        "attempt_seconds": literal.number_array([each.duration_seconds for each in attempts]),
        "attempt_result": literal.text_array([each.result for each in attempts]),
        "attempt_status": literal.text_array([each.status for each in attempts]),
        "attempt_reply": literal.text_array([each.reply for each in attempts]),
        "attempt_is_remote": literal.number_array([each.is_remote for each in attempts]),
        "attempt_is_ambiguous": literal.number_array([each.is_ambiguous for each in attempts]),
        "attempt_host": literal.text_array([each.host for each in attempts]),
        "attempt_address": literal.text_array([each.address for each in attempts]),
        "attempt_port": literal.number_array([each.port for each in attempts]),
        "attempt_tls_version": literal.text_array([each.tls_version for each in attempts]),
        "attempt_tls_cipher": literal.text_array([each.tls_cipher for each in attempts]),
        "attempt_tls_is_verified": literal.number_array([each.tls_is_verified for each in attempts]),
        "attempt_tls_source": literal.text_array([each.tls_source for each in attempts]),
    }


def _notice_columns(notices: Sequence[Notice]) -> dict[str, str]:
    headers = [notice.content.partition(b"\r\n\r\n")[0] + b"\r\n" for notice in notices]
    return {
        "notice_id": literal.number_array([notice.message_id for notice in notices]),
        "notice_header_from": literal.text_array([readable_field(each, b"From", FIELD_CHARS) for each in headers]),
        "notice_subject": literal.text_array([readable_field(each, b"Subject", FIELD_CHARS) for each in headers]),
        "notice_header_message_id": literal.text_array(
            [readable_field(each, b"Message-ID", FIELD_CHARS) for each in headers]
        ),
        "notice_size_octets": literal.number_array([len(notice.content) for notice in notices]),
        "notice_sha256": literal.short_octets_array([hashlib.sha256(notice.content).digest() for notice in notices]),
    }


def _kept_row(kept: Kept) -> dict[str, object]:
    return {
        "id": kept.lease.queue_id,
        "claim": kept.lease.claim,
        "due_at": kept.due_at,
        "status": kept.status,
        "reply": kept.reply,
        "is_attempt": kept.is_attempt,
        "is_delayed": kept.is_delayed,
        "is_deliver_by_over": kept.is_deliver_by_over,
    }


def _destination_row(news: DestinationNews) -> dict[str, object]:
    return {
        "name": news.name,
        "reason": news.reason,
        "first_seconds": news.first_seconds,
        "longest_seconds": news.longest_seconds,
    }


def _json(rows: list[dict[str, object]]) -> str:
    return _encode(rows).replace("\\u0000", "\ufffd")
