"""What programs write to `sendmail`, and the message that it becomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.submission.addresses import NotAnAddress
from mailgate.submission.program_mail import Author, lines_until_dot, program_mail

CRON = Author("root@x.test", "Cron Daemon")
FROM = b'From: "Cron Daemon" <root@x.test>\r\n'


def octets(text: bytes, author: Author = CRON) -> bytes:
    return program_mail(text, author, "x.test").octets()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", FROM + b"\r\n"),
        (b"hello\n", FROM + b"\r\nhello\r\n"),
        (b"hello", FROM + b"\r\nhello\r\n"),
        (b"\nTo: nobody\n", FROM + b"\r\nTo: nobody\r\n"),
        (b"Subject: x\n\nhello\n", b"Subject: x\r\n" + FROM + b"\r\nhello\r\n"),
        (b"Subject: x\r\n\r\nhello\r\n", b"Subject: x\r\n" + FROM + b"\r\nhello\r\n"),
        (b"Subject: x\nno field\n", b"Subject: x\r\n" + FROM + b"\r\nno field\r\n"),
        (b"From root Mon Sep 21\nSubject: x\n\nb\n", b"Subject: x\r\n" + FROM + b"\r\nb\r\n"),
        (
            b'From: "(Cron Daemon)" <root>\nTo: root,\n bob@y.test\n\nb\n',
            b'From: "(Cron Daemon)" <root@x.test>\r\nTo: root@x.test,\r\n bob@y.test\r\n\r\nb\r\n',
        ),
        (b"From: a@x.test\n\n.\n..\n", b"From: a@x.test\r\n\r\n.\r\n..\r\n"),
        (
            "From: a@x.test\n\nGrüße\n".encode(),
            b"From: a@x.test\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Content-Transfer-Encoding: 8bit\r\n\r\n" + "Grüße\r\n".encode(),
        ),
        (
            "From: a@x.test\nContent-Type: text/plain; charset=utf-8\n\nGrüße\n".encode(),
            b"From: a@x.test\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + "Grüße\r\n".encode(),
        ),
    ],
)
def test_the_message_is_complete(text: bytes, expected: bytes) -> None:
    """RFC 5322 section 3.6, RFC 2045, RFC 6409 section 8."""
    assert octets(text) == expected


def test_long_lines_of_text_are_encoded() -> None:
    """RFC 5322 section 2.1.1; RFC 2045 section 6.7: no octet is lost, and no line is too long."""
    import quopri

    text = b"Subject: x\n\n" + b"x" * 5000 + b"\n=y \n"
    header, _, body = octets(text).partition(b"\r\n\r\n")
    assert b"Content-Transfer-Encoding: quoted-printable" in header
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert quopri.decodestring(body).replace(b"\r\n", b"\n") == text.partition(b"\n\n")[2]


@pytest.mark.parametrize(
    ("author", "expected"),
    [
        (Author("a@x.test"), b"From: a@x.test\r\n"),
        (Author("a@x.test", 'The "A"'), b'From: "The \\"A\\"" <a@x.test>\r\n'),
        (Author("a@x.test", "Jürgen"), b"From: =?utf-8?b?SsO8cmdlbg==?= <a@x.test>\r\n"),
        (Author("a@x.test", "A\r\nBcc: b\x00\n"), b'From: "A Bcc: b" <a@x.test>\r\n'),
        (Author("a@x.test", "\r\n"), b"From: a@x.test\r\n"),
        (Author("a@x.test", "Jürgen\nBcc"), b"From: =?utf-8?b?SsO8cmdlbiBCY2M=?= <a@x.test>\r\n"),
        (Author("a@x.test", "J\udcfc"), b'From: "J" <a@x.test>\r\n'),
    ],
)
def test_the_author_is_who_runs_the_program(author: Author, expected: bytes) -> None:
    """RFC 5322 section 3.6.2; RFC 2047. A name begins no other field, whoever chose it (-F)."""
    assert octets(b"", author) == expected + b"\r\n"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"To: a\nCc: b@y.test, a\nBcc: c\n", ["a@x.test", "b@y.test", "c@x.test"]),
        (b"To: a\nResent-To: b\nResent-Bcc: c\n", ["b@x.test", "c@x.test"]),
        (b"Subject: a@x.test\n", []),
        (b"To: Friends: a, b;\n", ["a@x.test", "b@x.test"]),
    ],
)
def test_the_header_names_the_recipients(header: bytes, expected: list[str]) -> None:
    """RFC 5322 sections 3.6.3 and 3.6.6: once each."""
    assert program_mail(header + b"\n", CRON, "x.test").recipients() == expected


def test_blind_copies_are_in_the_envelope_alone() -> None:
    """RFC 5322 section 3.6.3: a server that takes mail from programs as it is would show them to all."""
    text = b"To: a@x.test\nBcc: b@x.test,\n c@x.test\nBCC : d@x.test\nResent-Bcc: e@x.test\nSubject: x\n\nBcc: y\n"
    assert octets(text) == b"To: a@x.test\r\nSubject: x\r\n" + FROM + b"\r\nBcc: y\r\n"


def test_a_field_that_holds_no_addresses_is_refused() -> None:
    """Rather than sent to somebody else."""
    with pytest.raises(NotAnAddress):
        program_mail(b"To: two words\n\n", CRON, "x.test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a\n.\nb\n", b"a\n"),
        (b"a\r\n.\r\nb\r\n", b"a\r\n"),
        (b".\n", b""),
        (b"a\n..\n.b\n", b"a\n..\n.b\n"),
        (b"a\n.", b"a\n"),
    ],
)
def test_a_dot_alone_ends_what_is_read(text: bytes, expected: bytes) -> None:
    """sendmail(8) without -i."""
    assert lines_until_dot(text) == expected


@given(st.binary(max_size=200))
def test_every_line_ends_in_crlf_and_the_body_is_kept(text: bytes) -> None:
    """Whatever a program writes, CR alone excepted, which the server refuses."""
    try:
        message = octets(text)
    except NotAnAddress:
        return
    assert message.replace(b"\r\n", b"").count(b"\n") == 0
    assert message.endswith(b"\r\n")
