"""The header of a message that was handed in: what goes, what comes, and that nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.message import revised_header
from mailgate.submission.fixups import header_fixups

NOW = 1_790_000_000.0
BOTH = b"Date: Mon, 21 Sep 2026 14:13:20 +0000\r\nMessage-ID: <id@mx.example.test>\r\n"
COMPLETE = b"Date: d\r\nMessage-ID: <m@x>\r\n"


def fixed(header: bytes) -> bytes:
    fixups = header_fixups(header, now=NOW, message_id="id@mx.example.test")
    return revised_header(header, fixups.removed, fixups.added)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", BOTH),
        (b"From: a@x\r\n", BOTH + b"From: a@x\r\n"),
        (COMPLETE, COMPLETE),
        (b"date: d\r\nMESSAGE-ID : <m@x>\r\n", b"date: d\r\nMESSAGE-ID : <m@x>\r\n"),
        (b"Date: d\r\n", b"Message-ID: <id@mx.example.test>\r\nDate: d\r\n"),
        (b"Message-ID: <m@x>\r\n", b"Date: Mon, 21 Sep 2026 14:13:20 +0000\r\nMessage-ID: <m@x>\r\n"),
        (b"X-Date: d\r\nResent-Message-ID: <m@x>\r\n", BOTH + b"X-Date: d\r\nResent-Message-ID: <m@x>\r\n"),
        (COMPLETE + b"Bcc: b@x\r\nTo: a@x\r\n", COMPLETE + b"To: a@x\r\n"),
        (b"BCC:\r\n" + COMPLETE, COMPLETE),
        (COMPLETE + b"bcc\t : b@x,\r\n\tc@x\r\n", COMPLETE),
        (COMPLETE + b"Bcc\r\n : b@x\r\nTo: a@x\r\n", COMPLETE + b"To: a@x\r\n"),
        (COMPLETE + b"Resent-Bcc: b@x\r\n", COMPLETE),
        (b"Return-Path: <a@x>\r\n" + COMPLETE + b"return-path: <b@x>\r\n", COMPLETE),
        (COMPLETE + b"Bcc: b@x", COMPLETE),
        (
            COMPLETE + b"X-Bcc: b@x\r\nBccx: c@x\r\nSubject: x\r\n Bcc: no\r\n",
            COMPLETE + b"X-Bcc: b@x\r\nBccx: c@x\r\nSubject: x\r\n Bcc: no\r\n",
        ),
    ],
)
def test_the_header_is_put_right(header: bytes, expected: bytes) -> None:
    """RFC 6409 section 8; RFC 5322 sections 3.6.3, 3.6.4 and 3.6.7."""
    assert fixed(header) == expected


FIELDS = st.sampled_from(
    [
        b"Bcc: b@x\r\n",
        b"bcc : c@x,\r\n d@x\r\n",
        b"Date: d\r\n",
        b"Message-ID: <m@x>\r\n",
        b"To: a@x\r\n",
        b"From: a@x\r\n",
    ]
)


@given(st.lists(FIELDS, max_size=8))
def test_what_was_put_right_is_right(fields: list[bytes]) -> None:
    """No blind copy is left, nothing else is lost, and a second look changes nothing."""
    header = fixed(b"".join(fields))
    assert b"bcc" not in header.lower()
    assert header.endswith(b"".join(field for field in fields if not field.lower().startswith(b"bcc")))
    assert fixed(header) == header
