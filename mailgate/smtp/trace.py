"""The trace fields that are put on top of every accepted message: Return-Path and Received.

Pure: values in, octets out. The octets are ASCII unless the transaction is an SMTPUTF8 one.

Standards: RFC 5321 section 4.4; RFC 3848, RFC 6531 section 4.3 (protocol words); RFC 5322 section 3.3 (date).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from mailgate.ids import encode_id

if TYPE_CHECKING:
    from mailgate.policy.stage import SessionView, TransactionView

_SAFE_NAME = re.compile(r"[A-Za-z0-9_\-.:\[\]\u0080-\U0010ffff]{1,255}")


def protocol_word(session: SessionView, *, is_smtputf8: bool) -> str:
    """The word after "with": SMTP, or (UTF8SMTP or ESMTP) with S for TLS and A for an authenticated client."""
    if is_smtputf8:
        word = "UTF8SMTP"
    elif session.is_esmtp:
        word = "ESMTP"
    else:
        return "SMTP"
    if session.tls is not None:
        word += "S"
    if session.authenticated is not None:
        word += "A"
    return word


def trace_fields(session: SessionView, transaction: TransactionView, hostname: str, received_at: float) -> bytes:
    """Return-Path and Received, each ending in CRLF.

    "for" is given for a single recipient only: with several it would tell each of the others (section 7.6).
    """
    is_smtputf8 = transaction.reverse_path.parameters.smtputf8
    helo = session.helo or "unknown"
    if not _SAFE_NAME.fullmatch(helo) or not (is_smtputf8 or helo.isascii()):
        helo = "unknown"
    word = protocol_word(session, is_smtputf8=is_smtputf8)
    tls = f" ({session.tls.version} {session.tls.cipher})" if session.tls is not None else ""
    accepted = [recipient for recipient in transaction.recipients if recipient.accepted]
    recipient = f"\r\n\tfor <{accepted[0].forward_path}>" if len(accepted) == 1 else ""
    text = (
        f"Return-Path: <{transaction.reverse_path}>\r\n"
        f"Received: from {helo} ({address_literal(session.client_address)})\r\n"
        f"\tby {hostname} (mailgate) with {word}{tls}\r\n"
        f"\tid {encode_id(transaction.id)}{recipient};\r\n"
        f"\t{_date(int(received_at))}\r\n"
    )
    return text.encode("utf-8")


def address_literal(address: str) -> str:
    """The address literal of an IP address (section 4.1.3)."""
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


@lru_cache(maxsize=4)
def _date(seconds: int) -> str:
    # Not strftime: its names of days and months are those of the locale.
    return format_datetime(datetime.fromtimestamp(seconds, UTC))
