"""Accepted messages and other records, as a session hands them to storage."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from mailgate.envelope import (
    Address,
    ForwardDestination,
    ForwardPath,
    MailboxDestination,
    MailParameters,
    RcptParameters,
    Resolution,
    ReversePath,
)
from mailgate.ids import IdGenerator
from mailgate.message import MessageContent
from mailgate.policy.stage import RecipientView, Role, SessionView, TlsState, TransactionView
from mailgate.smtp.reply import Reply, reply
from mailgate.storage.records import Disposition, IncomingMessage, SessionRecord, TransactionRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACE = (
    b"Return-Path: <carol@example.org>\r\nReceived: from client.example.org ([192.0.2.7])\r\n\tby mx.example.test\r\n"
)
CONTENT = b"From: Carol <carol@example.org>\r\nSubject: Hello\r\nMessage-ID: <1@example.org>\r\n\r\nIt's here.\r\n"

_ids = IdGenerator(4094, time.time)
_RECIPIENT_OK = reply(250, "2.1.5", "Recipient ok")


def content_of(octets: bytes, *, piece_octets: int | None = None) -> MessageContent:
    """Content as it was received: in one piece, or cut into pieces of that size."""
    step = piece_octets or max(len(octets), 1)
    pieces = [octets[start : start + step] for start in range(0, len(octets), step)] or [b""]
    return MessageContent(pieces, len(octets), hashlib.sha256(octets).digest())


def session(*, client_network: str = "192.0.2.7/32", tls: TlsState | None = None) -> SessionView:
    """A session that has greeted."""
    return SessionView(
        id=_ids.next(),
        listener="mx",
        role=Role.MX,
        client_address="192.0.2.7",
        client_port=40123,
        client_network=client_network,
        server_address="192.0.2.1",
        server_port=25,
        started_at=time.time(),
        helo="client.example.org",
        is_esmtp=True,
        tls=tls,
    )


def recipient(
    path: str,
    *destinations: int | str,
    answer: Reply = _RECIPIENT_OK,
    parameters: RcptParameters | None = None,
    detail: str = "",
) -> RecipientView:
    """A forward-path and where it leads: ids of mailboxes, and addresses elsewhere. Refused if `answer` is."""
    local, _, domain = path.partition("@")
    found = tuple(
        MailboxDestination(each, path, detail) if isinstance(each, int) else ForwardDestination(each)
        for each in destinations
    )
    return RecipientView(
        ForwardPath(Address(local, domain), parameters or RcptParameters()),
        accepted=answer.is_positive,
        reply=answer,
        notes=(Resolution(found),) if found else (),
    )


def transaction(
    *recipients: RecipientView, reverse_path: str = "carol@example.org", parameters: MailParameters | None = None
) -> TransactionView:
    """A transaction with these recipients."""
    local, _, domain = reverse_path.partition("@")
    return TransactionView(
        id=_ids.next(),
        started_at=time.time(),
        reverse_path=ReversePath(Address(local, domain) if reverse_path else None, parameters or MailParameters()),
        recipients=recipients,
    )


def incoming(
    *destinations: int | str | RecipientView,
    octets: bytes = CONTENT,
    content: MessageContent | None = None,
    seen_in: SessionView | None = None,
    disposition: Disposition = Disposition.ACCEPTED,
    reverse_path: str = "carol@example.org",
    parameters: MailParameters | None = None,
) -> IncomingMessage:
    """An accepted message; a destination that is no RecipientView has a recipient of its own."""
    recipients: Sequence[RecipientView] = [
        each if isinstance(each, RecipientView) else recipient(f"to-{each}@example.test", each) for each in destinations
    ]
    return IncomingMessage(
        session=seen_in or session(),
        transaction=transaction(*recipients, reverse_path=reverse_path, parameters=parameters),
        content=content or content_of(octets),
        trace=TRACE,
        disposition=disposition,
        reply="250 2.0.0 Ours",
        received_at=time.time(),
    )


def refused(
    *recipients: RecipientView,
    answer: str = "554 5.7.1 No [x]",
    stage: str = "end_of_data",
    disposition: Disposition = Disposition.REFUSED,
    seen_in: SessionView | None = None,
) -> TransactionRecord:
    """The record of a transaction that brought no message."""
    return TransactionRecord(
        session=seen_in or session(),
        transaction=transaction(*recipients),
        disposition=disposition,
        stage=stage,
        reply=answer,
        ended_at=time.time(),
        policy="size",
        reason="too large",
        size_octets=12,
        sha256=hashlib.sha256(b"").digest(),
    )


def ended(*, dialogue: str = "S: 220 hello\nC: QUIT\n", seen_in: SessionView | None = None) -> SessionRecord:
    """The record of a session."""
    return SessionRecord(
        session=seen_in or session(),
        ended_at=time.time(),
        ending="quit",
        transactions=1,
        errors=0,
        dialogue=dialogue,
    )
