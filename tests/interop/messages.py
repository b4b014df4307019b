"""The messages that travel here: each is found again by the mark in its Message-ID."""

from __future__ import annotations

import re
import secrets

SMALL = "Grüße\r\n.\r\n..\r\n.dots\t \r\n\r\n\r\n".encode()
MIDDLE = b"".join(b"." * (number % 5) + b"x" * (number % 77) + b"\r\n" for number in range(5_000)) + b".\r\n..\r\n"
LARGE = MIDDLE * 12  # so much goes in chunks (RFC 3030), where they are taken


def new_mark() -> str:
    """A word that no other message has."""
    return secrets.token_hex(12)


def message(author: str, recipient: str, mark: str, body: bytes = SMALL, subject: str = "between servers") -> bytes:
    """A message in UTF-8, complete, so that nobody has to add anything to it."""
    fields = (
        f"From: <{author}>\r\nTo: <{recipient}>\r\nSubject: {subject}\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
        f"Message-ID: <{mark}@{author.rpartition('@')[2]}>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    )
    return fields.encode() + body


def unfolded_header(mail: bytes) -> str:
    """The header section with each field on one line."""
    return re.sub(rb"\r\n[ \t]+", b" ", mail.partition(b"\r\n\r\n")[0] + b"\r\n").decode("utf-8", "replace")
