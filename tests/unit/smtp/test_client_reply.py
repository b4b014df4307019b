"""Replies as a client reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.smtp.client_extension import Extensions, parse_extensions
from mailgate.smtp.client_reply import (
    MAX_LINE_OCTETS,
    ReceivedReply,
    ReplyError,
    ReplyParser,
    Stage,
    printable,
)


def replies_of(data: bytes) -> list[ReceivedReply]:
    parser = ReplyParser()
    parser.feed(data)
    replies = []
    while (reply := parser.next()) is not None:
        replies.append(reply)
    return replies


@pytest.mark.parametrize(
    ("octets", "code", "text"),
    [
        (b"250 2.1.0 Ok\r\n", 250, "250 2.1.0 Ok"),
        (b"250\r\n", 250, "250"),
        (b"250 \r\n", 250, "250"),
        (b"250 Ok\n", 250, "250 Ok"),
        (b"250-a\r\n250-b\r\n250 c\r\n", 250, "250 a b c"),
        (b"250-a\n250\r\n", 250, "250 a"),
        (b"550-5.1.1 No\r\n550 5.1.1 such user\r\n", 550, "550 5.1.1 No such user"),
        (b"250-ok\r\n550 no\r\n", 550, "550 ok no"),
        (b"554 \xff\xfe\x07 b\xc3\xbccher\r\n", 554, "554 \\xff\\xfe? bücher"),
        (b"554 a\tb\x1b[31m\r\n", 554, "554 a b?[31m"),
        (b"550 " + b"x" * 3000 + b"\r\n", 550, "550 " + "x" * 996 + " ..."),
    ],
)
def test_a_reply_is_read_however_it_is_written(octets: bytes, code: int, text: str) -> None:
    """RFC 5321 section 4.2, and what hosts make of it."""
    (reply,) = replies_of(octets)
    assert (reply.code, reply.text()) == (code, text)
    parser = ReplyParser()
    for place in range(len(octets) - 1):
        parser.feed(octets[place : place + 1])
        assert parser.next() is None
    parser.feed(octets[-1:])
    assert parser.next() == reply
    assert not parser.has_more


@pytest.mark.parametrize(
    "octets",
    [b"\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"25 ok\r\n", b"2500 ok\r\n", b"250_ok\r\n", b"150 ok\r\n",
     b"650 ok\r\n", b"\x16\x03\x01\r\n", b"-250 ok\r\n", b"250-ok\r\nrest\r\n", b"x" * (MAX_LINE_OCTETS + 1),
     b"250-" + b"x" * (MAX_LINE_OCTETS + 1), b"250-xxxxxxxxxxxxxxxxxxx\r\n" * 5000],
)  # fmt: skip
def test_what_is_no_reply_is_a_reply_error(octets: bytes) -> None:
    """Garbage, and what has no end."""
    with pytest.raises(ReplyError) as caught:
        replies_of(octets)
    assert "\n" not in str(caught.value)


@given(st.binary())
def test_text_for_people_is_one_printable_line(octets: bytes) -> None:
    """Whatever a host says can be logged, stored and put into a notice."""
    text = printable(octets)
    assert not set(text) & {chr(code) for code in (*range(32), 127, *range(128, 160))}
    assert len(text) <= 1000


@pytest.mark.parametrize(
    ("octets", "stage", "status"),
    [
        (b"550 5.7.1 No\r\n", Stage.RCPT, "5.7.1"),
        (b"250 2.0.0 Ok\r\n", Stage.DATA, "2.0.0"),
        (b"250 Ok\r\n", Stage.DATA, "2.0.0"),
        (b"550 4.7.1 No\r\n", Stage.RCPT, "5.1.0"),  # the class must be that of the code
        (b"550 5.7.1111 No\r\n", Stage.DATA, "5.0.0"),
        (b"450 Greylisted\r\n", Stage.RCPT, "4.2.0"),
        (b"452 Too many\r\n", Stage.RCPT, "4.5.3"),
        (b"452 Full\r\n", Stage.DATA, "4.3.1"),
        (b"552 Full\r\n", Stage.RCPT, "5.2.2"),
        (b"552 Large\r\n", Stage.DATA, "5.3.4"),
        (b"553 No\r\n", Stage.MAIL, "5.1.7"),
        (b"556 No mail\r\n", Stage.RCPT, "5.1.10"),
        (b"499 What\r\n", Stage.DATA, "4.0.0"),
    ],
)
def test_a_status_comes_from_the_reply_or_from_what_its_code_amounts_to(
    octets: bytes, stage: Stage, status: str
) -> None:
    """RFC 2034 section 4: the first digit of both is the same."""
    (reply,) = replies_of(octets)
    assert reply.status(stage) == status


@pytest.mark.parametrize(
    ("lines", "extensions"),
    [
        ((), Extensions()),
        ((b"SIZE",), Extensions(size=True)),
        ((b"SIZE 0",), Extensions(size=True)),
        ((b"SIZE 1000",), Extensions(size=True, max_size_octets=1000)),
        ((b"SIZE lots",), Extensions(size=True)),
        ((b"size 1000", b"Pipelining", b"8bitmime"), Extensions(True, True, 1000, True)),
        ((b"AUTH PLAIN login", b"AUTH=LOGIN CRAM-MD5"),
         Extensions(mechanisms=frozenset({"PLAIN", "LOGIN", "CRAM-MD5"}))),
        ((b"LIMITS MAILMAX=20 RCPTMAX=3 RCPTDOMAINMAX=1",), Extensions(max_recipients=3, max_messages=20)),
        ((b"LIMITS RCPTMAX=x",), Extensions()),
        ((b"DELIVERBY 240",), Extensions(deliver_by=True, min_by_seconds=240)),
        ((b"DELIVERBY",), Extensions(deliver_by=True)),
        ((b"SMTPUTF8", b"DSN", b"CHUNKING", b"REQUIRETLS", b"STARTTLS", b""),
         Extensions(smtputf8=True, dsn=True, chunking=True, requiretls=True, starttls=True)),
    ],
)  # fmt: skip
def test_extensions_are_read_whatever_their_case(lines: tuple[bytes, ...], extensions: Extensions) -> None:
    """RFC 5321 section 4.1.1.1: keywords are case-insensitive; a parameter without sense counts as absent."""
    assert parse_extensions(ReceivedReply(250, (b"host.test PIPELINING", *lines))) == extensions
