"""What a submission server does to the header of a message that a program handed in: it removes and adds a few fields.

Values in, values out; who may send the message at all is decided in `mailgate.policy.submission`.

    Bcc, Resent-Bcc     removed: they name people whom the others must not see
    Return-Path         removed: only who delivers a message for good writes it
    Date, Message-ID    added where they are missing

Nothing else is changed: not the names of hosts, not what is there already, not a message without To and Cc, which is
what is left of one that had only Bcc (RFC 5322 section 3.6 asks for none of the three).

Standards: RFC 6409 section 8 (what may be changed); RFC 5322 sections 3.6, 3.6.3 (Bcc), 3.6.4 (Message-ID) and 3.6.7
(Return-Path).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailgate.composition import date
from mailgate.message import fields_of

# A field as any reader may take it: with blanks, or even a fold, before its colon.
_UNWANTED = re.compile(
    rb"(?im)^(?:bcc|resent-bcc|return-path)[ \t]*+(?:\r\n[ \t][ \t]*+)*+:(?:[^\r]++|(?!\r\n)\r|\r\n[ \t])*+(?:\r\n)?"
)


@dataclass(frozen=True, slots=True)
class FixUps:
    """What becomes of a header section: octets that go, as starts and ends in order, and fields that come on top."""

    removed: tuple[tuple[int, int], ...]
    added: bytes


def header_fixups(header: bytes, *, now: float, message_id: str) -> FixUps:
    """What that header section needs. `now` is in seconds since the epoch; `message_id` stands between the brackets."""
    added = b""
    if not fields_of(header, b"Date"):
        added += f"Date: {date(now)}\r\n".encode("ascii")
    if not fields_of(header, b"Message-ID"):
        added += f"Message-ID: <{message_id}>\r\n".encode("ascii")
    return FixUps(tuple([found.span() for found in _UNWANTED.finditer(header)]), added)
