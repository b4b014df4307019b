"""Mail put into a database by SQL, as acceptance would have: for tests of what reads it."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2

from mailgate.ids import IdGenerator

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACE = b"Return-Path: <carol@example.org>\r\nReceived: from c by mx.example.test; Mon, 23 Nov 2026 13:00:00 +0000\r\n"

_ids = IdGenerator(4095, time.time)


def add_mailbox(dsn: str, local_part: str, domain: str = "example.test") -> int:
    """The id of a new mailbox; its domain is made where it is missing."""
    with closing(psycopg2.connect(dsn)) as database, database, database.cursor() as cursor:
        cursor.execute("INSERT INTO mailgate.domain (name) VALUES (%s) ON CONFLICT DO NOTHING", (domain,))
        cursor.execute(
            "INSERT INTO mailgate.mailbox (domain_id, local_part)"
            " SELECT id, %s FROM mailgate.domain WHERE name = %s RETURNING id",
            (local_part, domain),
        )
        (mailbox_id,) = cursor.fetchone() or (0,)
        return int(mailbox_id)


def deliver(
    dsn: str,
    mailbox_id: int,
    content: bytes,
    *,
    header_from: str | None = "Carol <carol@example.org>",
    subject: str | None = "Hello",
    folder: str = "INBOX",
    flags: Sequence[str] = (),
    reverse_path: str = "carol@example.org",
    piece_octets: int | None = None,
    with_transaction: bool = True,
    with_notification: bool = True,
) -> int:
    """The id of a new message in that mailbox; its content is kept in pieces where `piece_octets` is given."""
    identifier = _ids.next()
    inline = content if piece_octets is None else None
    with closing(psycopg2.connect(dsn)) as database, database, database.cursor() as cursor:
        cursor.execute("SET LOCAL search_path = mailgate")
        if piece_octets is not None:
            for position, start in enumerate(range(0, len(content), piece_octets)):
                cursor.execute(
                    "INSERT INTO message_piece VALUES (%s, %s, %s)",
                    (identifier, position, content[start : start + piece_octets]),
                )
        cursor.execute(
            "INSERT INTO message (id, received_at, reverse_path, header_from, subject, trace, content, size_octets,"
            " sha256) VALUES (%s, id_time(%s), %s, %s, %s, %s, %s, %s, %s)",
            (
                *(identifier, identifier, reverse_path, header_from, subject, TRACE, inline, len(content)),
                hashlib.sha256(content).digest(),
            ),
        )
        if with_transaction:
            record_transaction(dsn, identifier, disposition="accepted", stage="end_of_data", reply="250 2.0.0 Ours")
        cursor.execute(
            "UPDATE mailbox_usage SET uid_next = uid_next + 1, messages = messages + 1, octets = octets + %s"
            " WHERE mailbox_id = %s RETURNING uid_next - 1",
            (len(content), mailbox_id),
        )
        (uid,) = cursor.fetchone() or (0,)
        cursor.execute(
            "INSERT INTO delivery (mailbox_id, uid, message_id, folder, flags, delivered_at)"
            " VALUES (%s, %s, %s, %s, %s, id_time(%s))",
            (mailbox_id, uid, identifier, folder, list(flags), identifier),
        )
        if with_notification:
            payload = json.dumps({"mailbox": mailbox_id, "uid": uid})
            cursor.execute("SELECT pg_notify('newmail', %s)", (payload,))
    return identifier


def record_session(
    dsn: str,
    *,
    ending: str = "quit",
    dialogue: str = "C: EHLO client.example.org\nS: 250 mx.example.test\nC: QUIT",
    verdicts: Sequence[dict[str, str]] = (),
    client: str = "192.0.2.7",
    transactions: int = 0,
) -> int:
    """The id of a recorded session that has ended."""
    identifier = _ids.next()
    with closing(psycopg2.connect(dsn)) as database, database, database.cursor() as cursor:
        cursor.execute("SET LOCAL search_path = mailgate")
        cursor.execute(
            "INSERT INTO session (id, node, listener, role, client_address, client_port, helo, is_esmtp, tls_version,"
            " tls_cipher, started_at, ended_at, ending, transactions, errors, dialogue, verdicts)"
            " VALUES (%s, 'mx1', 'smtp', 'mx', %s, 4711, 'client.example.org', true, 'TLSv1.3',"
            " 'TLS_AES_256_GCM_SHA384', id_time(%s), id_time(%s), %s, %s, 0, %s, %s)",
            (
                *(identifier, client, identifier, identifier, ending, transactions, dialogue),
                json.dumps(verdicts) if verdicts else None,
            ),
        )
    return identifier


def record_transaction(
    dsn: str,
    identifier: int | None = None,
    *,
    disposition: str,
    stage: str,
    reply: str,
    recipients: Sequence[tuple[str, bool, str]] = (("alice@example.test", True, "250 2.1.5 Recipient ok"),),
    client: str = "192.0.2.7",
) -> int:
    """The id of a recorded transaction, with its recipients, in a session of its own that has ended."""
    if identifier is None:
        identifier = _ids.next()
    session = record_session(dsn, client=client, transactions=1)
    with closing(psycopg2.connect(dsn)) as database, database, database.cursor() as cursor:
        cursor.execute("SET LOCAL search_path = mailgate")
        cursor.execute(
            "INSERT INTO transaction (id, session_id, node, listener, client_address, helo, protocol, reverse_path,"
            " disposition, stage, reply, started_at, ended_at) VALUES (%s, %s, 'mx1', 'smtp', %s, 'client.example.org',"
            " 'ESMTPS', 'carol@example.org', %s, %s, %s, id_time(%s), id_time(%s))",
            (identifier, session, client, disposition, stage, reply, identifier, identifier),
        )
        for position, (forward_path, is_accepted, answer) in enumerate(recipients):
            cursor.execute(
                "INSERT INTO recipient (transaction_id, position, forward_path, is_accepted, reply)"
                " VALUES (%s, %s, %s, %s, %s)",
                (identifier, position, forward_path, is_accepted, answer),
            )
    return identifier
