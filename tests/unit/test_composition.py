"""Messages that we write ourselves: fields, parts and lines stay what they are, whatever text is put in."""

from __future__ import annotations

import email
import quopri
from email.header import decode_header, make_header
from email.policy import SMTP

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.composition import (
    MAX_LINE_OCTETS,
    Part,
    base64_lines,
    date,
    encoded_words,
    folded,
    has_short_lines,
    header_field,
    multipart,
    one_line,
    printable_ascii,
    quoted_printable,
    text_part,
)

texts = st.text(st.one_of(st.characters(), st.sampled_from("\r\n\t \x85\u2028é=_?")), max_size=300)


@given(texts, st.booleans())
def test_a_field_is_one_field_of_short_lines(text: str, is_utf_8: bool) -> None:
    """RFC 5322 section 2.2.3: each line but the first begins with a blank, and none is empty."""
    octets = header_field("Subject", text, is_utf_8=is_utf_8)
    first, *rest, last = octets.split(b"\r\n")
    assert last == b""
    assert first.startswith(b"Subject:")
    assert all(line.startswith(b" ") and line.strip() for line in rest)
    assert all(len(line) <= MAX_LINE_OCTETS for line in (first, *rest))
    assert octets.count(b"\n") == octets.count(b"\r") == octets.count(b"\r\n")
    assert is_utf_8 or octets.isascii()


@pytest.mark.parametrize("word", ["x" * 5000, "é" * 5000])
def test_a_word_that_fits_no_line_is_broken(word: str) -> None:
    """RFC 5322 section 2.1.1."""
    octets = folded("X-Long", word, "utf-8")
    assert max(map(len, octets.split(b"\r\n"))) <= MAX_LINE_OCTETS
    assert octets.decode().replace("\r\n ", "").strip() == f"X-Long:{word}"


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=200))
def test_encoded_words_are_read_as_the_text(text: str) -> None:
    """RFC 2047 section 2: at most 75 characters a word, and no character cut in two."""
    encoded = encoded_words(text)
    assert all(len(word) <= 75 for word in encoded.split(" "))
    assert str(make_header(decode_header(encoded))) == text


@given(st.text(max_size=300))
def test_text_for_people_is_read_as_it_was_written(text: str) -> None:
    """RFC 2045 section 6.7; in lines that any mail system takes."""
    text = text.replace("\r", "").encode("utf-8", "replace").decode()
    part = text_part(text + "\n")
    assert has_short_lines(part.octets)
    assert part.octets.isascii()
    octets = quopri.decodestring(part.octets) if part.encoding == "quoted-printable" else part.octets
    assert octets.decode("utf-8") == (text + "\n").replace("\n", "\r\n")


@given(st.binary(max_size=500))
def test_encodings_lose_nothing(octets: bytes) -> None:
    """RFC 2045 sections 6.7 and 6.8."""
    content_type, body = multipart("mixed", "", (Part("application/x-test", base64_lines(octets), "base64"),), "seed")
    message = email.message_from_bytes(
        f"MIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n".encode() + body, policy=SMTP
    )
    (part,) = message.walk() if not message.is_multipart() else list(message.walk())[1:]
    assert part.get_payload(decode=True) == octets
    assert quopri.decodestring(quoted_printable(octets)) == octets
    assert max(map(len, quoted_printable(octets).split(b"\r\n"))) <= 76


def test_a_boundary_stands_in_no_part() -> None:
    """RFC 2046 section 5.1."""
    content_type, _ = multipart("mixed", "", (Part("text/plain", b"x"),), "seed")
    taken = content_type.rpartition('="')[2].rstrip('"').encode()
    other, body = multipart("mixed", "", (Part("text/plain", b"--" + taken + b"--\r\n"),), "seed")
    assert taken.decode() not in other
    assert b"\r\n--" + taken in body


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\r\nBcc: b", "a Bcc: b"),
        ("\x00\x1b[31m\u202eabc\u2029", "[31m abc"),
        ("  x  ", "x"),
        ("a" * 50, "a" * 9 + "…"),
    ],
)
def test_one_line_is_one_line(text: str, line: str) -> None:
    """Nothing ends it, and nothing turns its direction."""
    assert one_line(text, 10) == line if len(text) == 50 else one_line(text) == line


def test_what_is_not_ascii_is_shown_by_its_number() -> None:
    """RFC 3464 section 2.1.1: the fields of a notification are ASCII."""
    assert printable_ascii("Größe\r\n€") == r"Gr\xf6\xdfe \u20ac"


def test_a_date_is_one_of_the_mail() -> None:
    """RFC 5322 section 3.3; in UTC, whatever the locale."""
    assert date(1_795_000_000.9) == "Wed, 18 Nov 2026 11:06:40 +0000"


@pytest.mark.parametrize(
    ("octets", "are_short"),
    [
        (b"", True),
        (b"x\r\n" * 3, True),
        (b"x" * 998, True),
        (b"x" * 999, False),
        (b"x\ny", False),
        (b"x\ry", False),
        (b"x\0", False),
    ],
)
def test_lines_are_short_and_end_as_mail_has_it(octets: bytes, are_short: bool) -> None:
    """RFC 5322 section 2.1.1."""
    assert has_short_lines(octets) is are_short
