"""MAIL and RCPT, and what must not be sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mailgate.outbound.plan import OutgoingRecipient
from mailgate.smtp.client_command import mail_command, rcpt_command, refusal_of
from mailgate.smtp.client_extension import Extensions
from mailgate.smtp.command import Rcpt, parse_command
from mailgate.smtp.reply import Reply
from tests.support.outgoing import LINES, outgoing

ALL = Extensions(
    pipelining=True, size=True, eight_bit=True, smtputf8=True, chunking=True, dsn=True, requiretls=True, deliver_by=True
)
NOW = 1_000_000.0
SIZE = f"SIZE={len(LINES)}".encode()


@pytest.mark.parametrize(
    ("options", "extensions", "command"),
    [
        ({}, Extensions(), b"MAIL FROM:<alice@example.test>"),
        ({"reverse_path": ""}, ALL, b"MAIL FROM:<> " + SIZE),
        ({"is_eight_bit": True}, ALL, b"MAIL FROM:<alice@example.test> " + SIZE + b" BODY=8BITMIME"),
        ({"is_smtputf8": True, "reverse_path": "ü@bücher.test"}, ALL,
         "MAIL FROM:<ü@bücher.test> ".encode() + SIZE + b" SMTPUTF8"),
        ({"reverse_path": "a@bücher.test"}, ALL, b"MAIL FROM:<a@xn--bcher-kva.test> " + SIZE),
        ({"requires_tls": True}, ALL, b"MAIL FROM:<alice@example.test> " + SIZE + b" REQUIRETLS"),
        ({"ret": "HDRS", "envid": "a b+c=ü"}, ALL,
         b"MAIL FROM:<alice@example.test> " + SIZE + b" RET=HDRS ENVID=a+20b+2Bc+3D+C3+BC"),
        ({"ret": "HDRS", "envid": "x"}, Extensions(), b"MAIL FROM:<alice@example.test>"),
        ({"deliver_by": NOW + 90.5, "deliver_by_mode": "N"}, ALL,
         b"MAIL FROM:<alice@example.test> " + SIZE + b" BY=90;N"),
        ({"deliver_by": NOW - 10, "deliver_by_mode": "N"}, ALL,
         b"MAIL FROM:<alice@example.test> " + SIZE + b" BY=-10;N"),
        ({"deliver_by": NOW + 90, "deliver_by_mode": "N"}, Extensions(), b"MAIL FROM:<alice@example.test>"),
    ],
)  # fmt: skip
def test_mail_says_what_the_host_understands(options: dict[str, Any], extensions: Extensions, command: bytes) -> None:
    """RFC 1870, 2852, 3461, 6152, 6531, 8689: each parameter only where its extension is offered."""
    assert mail_command(outgoing(**options), extensions, NOW) == command + b"\r\n"


@pytest.mark.parametrize(
    ("recipient", "is_smtputf8", "extensions", "command"),
    [
        (OutgoingRecipient(1, "a@b.test"), False, ALL, b"RCPT TO:<a@b.test>"),
        (OutgoingRecipient(1, '"a b"@b.test'), False, ALL, b'RCPT TO:<"a b"@b.test>'),
        (OutgoingRecipient(1, "a@bücher.test"), False, ALL, b"RCPT TO:<a@xn--bcher-kva.test>"),
        (OutgoingRecipient(1, "ü@bücher.test"), True, ALL, "RCPT TO:<ü@bücher.test>".encode()),
        (OutgoingRecipient(1, "a@b.test", frozenset({"SUCCESS", "FAILURE"}), "rfc822;a+b@c.test"), False, ALL,
         b"RCPT TO:<a@b.test> NOTIFY=FAILURE,SUCCESS ORCPT=rfc822;a+2Bb@c.test"),
        (OutgoingRecipient(1, "a@b.test", frozenset({"NEVER"}), "rfc822;a@c.test"), False, Extensions(),
         b"RCPT TO:<a@b.test>"),
        (OutgoingRecipient(1, "a@b.test", None, "utf-8;ü+\\@c.test"), False, ALL,
         b"RCPT TO:<a@b.test> ORCPT=utf-8;\\x{FC}\\x{2B}\\x{5C}@c.test"),
        (OutgoingRecipient(1, "a@b.test", None, "utf-8;ü+@c.test"), True, ALL,
         "RCPT TO:<a@b.test> ORCPT=utf-8;ü\\x{2B}@c.test".encode()),
        (OutgoingRecipient(1, "a@b.test", None, "rfc822;" + "a" * 600), False, ALL, b"RCPT TO:<a@b.test>"),
    ],
)  # fmt: skip
def test_rcpt_says_what_the_host_understands(
    recipient: OutgoingRecipient, is_smtputf8: bool, extensions: Extensions, command: bytes
) -> None:
    """RFC 3461 section 5.2.1; RFC 6533 section 3 for addresses of type utf-8."""
    assert rcpt_command(recipient, extensions, is_smtputf8=is_smtputf8) == command + b"\r\n"


@pytest.mark.parametrize(
    ("options", "missing", "status"),
    [
        ({"requires_tls": True}, {"requiretls": False}, "5.7.30"),
        ({"is_smtputf8": True}, {"smtputf8": False}, "5.6.7"),
        ({"is_eight_bit": True}, {"eight_bit": False, "smtputf8": False}, "5.6.3"),
        ({}, {"max_size_octets": len(LINES) - 1}, "5.3.4"),
        ({"deliver_by": NOW + 10, "deliver_by_mode": "R"}, {"deliver_by": False}, "5.3.3"),
        ({"deliver_by": NOW + 10, "deliver_by_mode": "R"}, {"min_by_seconds": 11}, "5.3.3"),
    ],
)
def test_what_would_have_to_be_mangled_is_refused(
    options: dict[str, Any], missing: dict[str, Any], status: str
) -> None:
    """Each with the status that its standard has for it; with the extension it goes."""
    assert refusal_of(outgoing(**options), ALL, NOW) is None
    refusal = refusal_of(outgoing(**options), replace(ALL, **missing), NOW)
    assert refusal is not None
    assert (refusal.code // 100, refusal.enhanced) == (5, status)


def test_a_message_that_is_too_late_to_hand_over_is_refused() -> None:
    """RFC 2852 section 4: with mode R it goes back instead."""
    refusal = refusal_of(outgoing(deliver_by=NOW, deliver_by_mode="R"), ALL, NOW)
    assert refusal is not None
    assert refusal.enhanced == "5.4.7"


@pytest.mark.parametrize("limit", [None, len(LINES)])
def test_a_message_of_the_size_that_a_host_takes_goes(limit: int | None) -> None:
    """RFC 1870 section 6.1: dots are not counted twice."""
    assert refusal_of(outgoing(), Extensions(size=True, max_size_octets=limit), NOW) is None


@pytest.mark.parametrize(
    "address", ["a@b.test>\r\nRCPT TO:<eve@evil.test", "a\0@b.test", "a@b\x7f.test", "", "ü@b.test"]
)
def test_no_address_can_end_its_command(address: str) -> None:
    """Whatever stands in the queue: one command is one line; and UTF-8 goes only where it was negotiated."""
    said = rcpt_command(OutgoingRecipient(1, address), Extensions(), is_smtputf8=False)
    assert isinstance(said, Reply)
    assert said.code == 550
    if address:
        assert isinstance(mail_command(outgoing(reverse_path=address), Extensions(), NOW), Reply)


@pytest.mark.parametrize("orcpt", ["rfc822;a+b@c.test", "utf-8;ü\\@c.test", 'rfc822;"a b"@c.test'])
def test_our_own_parser_reads_what_was_meant(orcpt: str) -> None:
    """What was decoded on the way in is encoded on the way out."""
    recipient = OutgoingRecipient(1, "a@b.test", frozenset({"DELAY"}), orcpt)
    said = rcpt_command(recipient, ALL, is_smtputf8=False)
    assert isinstance(said, bytes)
    command = parse_command(said.removesuffix(b"\r\n"))
    assert isinstance(command, Rcpt)
    assert command.forward_path.parameters.orcpt == orcpt
