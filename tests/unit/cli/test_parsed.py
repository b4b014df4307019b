"""Messages as people read them: whatever is sent, there is an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.cli.parsed import read_message
from mailgate.message import readable_field


def test_encoded_words_are_decoded() -> None:
    """RFC 2047."""
    message = read_message(b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nFrom: a@example.org\r\n\r\nHello\r\n")
    assert message.header == (("Subject", "Grüße"), ("From", "a@example.org"))
    assert message.text == "Hello\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"Eve \x1b[31m<eve@example.org>",
        b"<\x1b[31mx@y.example>",
        b"<a\x07b@example.org>",
        b"\x00 <c@example.org>",
        b"a\x0cb\r\n <c@example.org>",
        b"=?utf-8?q?A=1BB?= <a@example.org>",
        b"x\xc2\x9b31m\xe2\x80\xae <c@example.org>",
        b"\xff <c@example.org>",
    ],
)
@pytest.mark.parametrize("name", [b"From", b"Subject", b"Message-ID"])
def test_a_field_reads_as_it_does_in_the_inbox(name: bytes, body: bytes) -> None:
    """Whole, without its control characters; a parser of addresses would stop at the first of them."""
    header = name + b": " + body + b"\r\n"
    expected = readable_field(header, name, 1000)
    assert read_message(header + b"\r\n").header == ((name.decode(), expected),)
    assert expected is not None
    assert expected.isprintable()


def test_the_plain_text_is_shown_and_the_rest_named() -> None:
    """RFC 2046 section 5.1: alternatives, and what is attached."""
    message = read_message(
        b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: multipart/alternative; boundary=c\r\n\r\n"
        b"--c\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Gr=FC=DFe\r\n--c\r\nContent-Type: text/html\r\n\r\n<p>no</p>\r\n--c--\r\n"
        b"--b\r\nContent-Type: image/png\r\nContent-Disposition: attachment; filename=x.png\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b--\r\n"
    )
    assert message.text.strip() == "Grüße"
    assert [(part.name, part.content_type, part.size_octets) for part in message.attachments] == [
        ("x.png", "image/png", 3)
    ]


def test_html_alone_is_shown_without_tags() -> None:
    """Scripts and styles are no text."""
    html = b"<head><style>x</style></head><p>One &amp;\r\n<b>two</b></p><script>y</script>three"
    assert read_message(b"Content-Type: text/html\r\n\r\n" + html).text == "One & two\nthree"


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\r\n",
        b"no header at all",
        b"\x00\xff" * 100,
        b"Content-Type: text/plain; charset=no-such-charset\r\n\r\nbody",
        b"Content-Type: text/plain; charset=\xff\r\n\r\nbody",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\nnever begun",
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA",
        b"Subject: =?utf-8?b?====?=\r\nFrom: =?x?q?=00?= <@@>\r\nTo: (((((\r\nMessage-ID: <\r\nDate: never\r\n\r\nbody",
        b"Content-Disposition: attachment; filename*=x''%\r\nContent-Type: ;;;=\r\n\r\nbody",
        b"From: " + b"(" * 20_000 + b"\r\n\r\nbody",
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(2000)),
    ],
    ids=range(14),
)
def test_hostile_messages_are_shown_somehow(octets: bytes) -> None:
    """The parser recurses and raises whatever it likes; nobody sees a traceback for that."""
    message = read_message(octets)
    message.text.encode("utf-8", "replace")
    for _, value in message.header:
        value.encode("utf-8")


HEADER = st.lists(
    st.sampled_from(
        [
            b"From: a\r\n",
            b"Subject: =?utf-8?q?",
            b"Content-Type: multipart/",
            b"mixed; boundary=b\r\n",
            b"--b\r\n",
            b"\r\n",
            b"\xff",
            b"\x00",
            b"message/rfc822\r\n",
            b"; charset=",
            b"=?",
            b"?=",
            b"\r\n ",
            b"Date: ",
            b"<",
            b",",
        ]
    ),
    max_size=20,
)


@given(HEADER)
def test_nothing_escapes_the_parser(pieces: list[bytes]) -> None:
    """Any octets make a message."""
    read_message(b"".join(pieces))
