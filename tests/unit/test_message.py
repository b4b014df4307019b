"""Header sections: where they end, what is found in them, and what people are shown."""

from __future__ import annotations

import unicodedata
from email.header import Header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.message import (
    MAX_HEADER_OCTETS,
    MessageContent,
    count_received_fields,
    fields_of,
    readable_field,
)


def content(*pieces: bytes) -> MessageContent:
    return MessageContent(pieces, sum(map(len, pieces)), b"")


HEADERS = [
    (b"A: 1\r\nB: 2\r\n\r\nbody\r\n", b"A: 1\r\nB: 2\r\n"),
    (b"A: 1\r\n\r\n", b"A: 1\r\n"),
    (b"A: 1\r\n", b"A: 1\r\n"),
    (b"A: 1\r\n\r\nB: 2\r\n\r\nbody\r\n", b"A: 1\r\n"),
    (b"\r\nA: 1\r\n\r\n", b""),
    (b"\r\n", b""),
    (b"", b""),
    (b"A: 1\r\n \r\n\r\nbody\r\n", b"A: 1\r\n \r\n"),
]


@pytest.mark.parametrize(("octets", "header"), HEADERS)
def test_the_header_ends_at_the_first_empty_line_however_the_content_is_cut(octets: bytes, header: bytes) -> None:
    """RFC 5322 section 2.1: the body "is separated from the header section by an empty line"."""
    assert content(octets).header() == header
    assert content(*(bytes([octet]) for octet in octets)).header() == header
    for offset in range(len(octets)):
        assert content(octets[:offset], octets[offset:]).header() == header


def test_content_without_pieces_has_no_header() -> None:
    assert content().header() == b""


def test_an_endless_header_is_cut_between_lines() -> None:
    """A search must not hold up the others, so it sees the first MiB."""
    line = b"X-Filler: " + b"x" * 521 + b"\r\n"
    pieces = [line * 100] * 60
    header = content(*pieces).header()
    assert MAX_HEADER_OCTETS - len(line) < len(header) <= MAX_HEADER_OCTETS
    assert header.endswith(line)
    assert content(b"".join(pieces)).header() == header


def test_content_in_many_pieces_without_a_header_end_is_joined_once() -> None:
    """It was joined anew for each piece: 400 pieces made 5 GB of copies. The last pieces are not even looked at."""
    looked_at: list[int] = []

    class Pieces(list[bytes]):
        def __iter__(self):  # type: ignore[no-untyped-def]  # notes what is taken
            for number, piece in enumerate(list.__iter__(self)):
                looked_at.append(number)
                yield piece

    content_without_end = MessageContent(Pieces([b"x" * 65534 + b"\r\n"] * 400), 400 * 65536, b"")
    assert len(content_without_end.header()) <= MAX_HEADER_OCTETS
    assert looked_at == list(range(17))


def test_joined_content_is_the_pieces_in_order() -> None:
    assert content(b"a", b"b", b"c").joined() == b"abc"
    piece = b"one piece"
    assert content(piece).joined() is piece


HEADER = (
    b"Received: from a\r\n\tby b; today\r\n"
    b"SUBJECT: first\r\n"
    b"X-Subject: another field\r\n"
    b"Subject-X: another field\r\n"
    b"Comment: see\r\n Subject: not a field but a fold\r\n\tReceived: neither\r\n"
    b"subject : second\r\n  folded\r\n\ttwice \r\n"
    b"Subject\t:third\r\n"
    b"Subject:\r\n"
    b"Subject\r\n"
    b"Received : from c\r\n"
)


def test_all_fields_of_a_name_are_found_unfolded_and_in_order() -> None:
    """RFC 5322 section 2.2.3 (folding) and 4.5.8 (blanks before the colon); names have no case (section 1.2.2)."""
    assert fields_of(HEADER, b"Subject") == [b"first", b"second  folded\ttwice", b"third", b""]
    assert fields_of(HEADER, b"RECEIVED") == [b"from a\tby b; today", b"from c"]
    assert fields_of(HEADER, b"To") == []
    assert fields_of(b"", b"To") == []


def test_a_field_at_the_very_beginning_and_one_without_its_end_are_found() -> None:
    assert fields_of(b"To: a", b"To") == [b"a"]
    assert fields_of(b"To: a\r\n", b"To") == [b"a"]
    assert fields_of(b"To:\r\n a\r\n b", b"To") == [b"a b"]


def test_a_bare_line_end_begins_no_field() -> None:
    """Where bare line ends were let through, they are content: a field begins behind CRLF only."""
    header = b"A: 1\nSubject: no\rSubject: no\r\nSubject: yes\r\n"
    assert fields_of(header, b"Subject") == [b"yes"]
    assert fields_of(header, b"A") == [b"1\nSubject: no\rSubject: no"]


def test_received_fields_are_counted_whatever_their_case() -> None:
    assert count_received_fields(HEADER) == 2
    assert count_received_fields(b"rEceived: x\r\nRECEIVED\t: y\r\nReceived-SPF: z\r\nX: \r\n Received: w\r\n") == 2
    assert count_received_fields(b"") == 0


NAMES = st.sampled_from([b"Subject", b"subject", b"X-Subject", b"Received", b"A"])
BODY_LINES = st.lists(st.binary(max_size=12).map(lambda body: body.replace(b"\r", b"").replace(b"\n", b"")), max_size=3)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=9).map(lambda body: body.translate(None, b"\r\n")), BODY_LINES)))
def test_what_was_made_is_found(made: list[tuple[bytes, bytes, list[bytes]]]) -> None:
    header = b"".join(
        name + b":" + body + b"".join(b"\r\n " + line for line in lines) + b"\r\n" for name, body, lines in made
    )
    expected = [
        (body + b"".join(b" " + line for line in lines)).strip(b" \t")
        for name, body, lines in made
        if name.lower() == b"subject"
    ]
    assert fields_of(header, b"Subject") == expected


HOSTILE_HEADERS = {
    "folds": (b"Subject:" + b"\r\n " * 300_000, 1),
    "blanks before the colon": (b"\r\nSubject" + b" " * 900_000, 0),
    "beginnings": (b"Subject\r\n" * 100_000, 0),
    "fields": (b"Subject:x\r\n" * 90_000, 90_000),
    "bare CR": (b"Subject:" + b"\r" * 900_000, 1),
    "encoded words without end": (b"Subject:" + b"=?utf-8?q?" * 90_000, 1),
    "encoded words": (b"Subject:" + b"=?utf-8?q?=E2=82?= " * 40_000, 1),
    "question marks": (b"Subject:" + b"=?" * 400_000, 1),
}


@pytest.mark.parametrize(("header", "count"), HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS.keys())
def test_a_hostile_header_of_a_megabyte_is_searched_like_any_other(header: bytes, count: int) -> None:
    """That it takes linear time follows from the patterns (see test_patterns); squared, these would take minutes."""
    assert len(fields_of(header, b"Subject")) == count
    assert count_received_fields(header) == 0
    shown = readable_field(header, b"Subject", 1_000_000)
    assert (shown is None) == (count == 0)


READABLE = [
    (b"Subject: Hello\r\n", "Hello"),
    (b"Subject:   Hello,\r\n\t  world \r\n", "Hello, world"),
    (b"Subject: Gr\xc3\xbc\xc3\x9fe\r\n", "Grüße"),
    (b"Subject: Gr\xfc\xdfe\r\n", "Gr\ufffd\ufffde"),
    # The examples of RFC 2047 section 8.
    (b"Subject: =?ISO-8859-1?Q?a?=\r\n", "a"),
    (b"Subject: =?ISO-8859-1?Q?a?= b\r\n", "a b"),
    (b"Subject: =?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=\r\n", "ab"),
    (b"Subject: =?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=\r\n", "ab"),
    (b"Subject: =?ISO-8859-1?Q?a?=\r\n    =?ISO-8859-1?Q?b?=\r\n", "ab"),
    (b"Subject: =?ISO-8859-1?Q?a_b?=\r\n", "a b"),
    (b"Subject: =?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=\r\n", "a b"),
    (b"From: =?US-ASCII?Q?Keith_Moore?= <moore@cs.utk.edu>\r\n", "Keith Moore <moore@cs.utk.edu>"),
    (b"From: =?ISO-8859-1?Q?Patrik_F=E4ltstr=F6m?= <paf@nada.kth.se>\r\n", "Patrik Fältström <paf@nada.kth.se>"),
    (
        b"Subject: =?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=\r\n"
        b"    =?ISO-8859-2?B?dSB1bmRlcnN0YW5kIHRoZSBleGFtcGxlLg==?=\r\n",
        "If you can read this you understand the example.",
    ),
    (b"Subject: =?utf-8*en?Q?caf=C3=A9?=\r\n", "café"),
    (b"Subject: =?utf-8?Q?=E2=82?= =?utf-8?Q?=AC?=\r\n", "€"),
    (b"Subject: =?utf-8?B?4oI?= =?utf-8?B?rA?=\r\n", "€"),
    (b"Subject: =?windows-1252?Q?=80_100?=\r\n", "€ 100"),
    (b"Subject: =?iso-2022-jp?B?GyRCJDMkcyRLJEEkTxsoQg==?=\r\n", "こんにちは"),
    (b"Subject: =?gb2312?B?xOO6ww==?=\r\n", "你好"),
    (b"Subject: =?utf-8?Q?with blanks?=\r\n", "with blanks"),
    # What can't be decoded is shown as it stands.
    (b"Subject: =?x-unknown?Q?a?= b\r\n", "=?x-unknown?Q?a?= b"),
    (b"Subject: =?utf-8?B?a?= b\r\n", "=?utf-8?B?a?= b"),
    (b"Subject: =?utf-8?Q?a b\r\n", "=?utf-8?Q?a b"),
    (b"Subject: =?unicode_escape?Q?a?=\r\n", "=?unicode_escape?Q?a?="),
    (b"Subject: =?utf-8?Q?a\xc3\xa9?=\r\n", "=?utf-8?Q?aé?="),
    # Nothing that moves the cursor of a terminal, raw or encoded, or turns the text.
    (b"Subject: a\x1b[2Jb\x07\r\n", "a[2Jb"),
    (b"Subject: =?utf-8?Q?a=0D=0AX:_b=00=1B[2J?=\r\n", "a X: b[2J"),
    (b"Subject: =?utf-8?B?4oCudHh0LmV4ZQ==?=\r\n", "txt.exe"),
    (b"Subject: a\xc2\x9b1mb\xc2\x85c\r\n", "a1mb c"),
    (b"Subject: a \x00 b\r\n", "a b"),
    (b"Subject:\r\n", ""),
]


@pytest.mark.parametrize(("header", "text"), READABLE)
def test_a_field_is_shown_as_people_read_it(header: bytes, text: str) -> None:
    name = header.partition(b":")[0]
    assert readable_field(header, name, 200) == text


def test_a_field_that_is_not_there_is_none() -> None:
    assert readable_field(b"A: 1\r\n", b"Subject", 100) is None


def test_the_first_of_several_fields_is_shown() -> None:
    assert readable_field(b"Subject: a\r\nSubject: b\r\n", b"Subject", 100) == "a"


def test_a_long_field_is_cut() -> None:
    assert readable_field(b"Subject: " + b"x" * 5000, b"Subject", 100) == "x" * 100
    encoded = Header("ß" * 300, "utf-8").encode(linesep="\r\n").encode()
    assert readable_field(b"Subject: " + encoded, b"Subject", 100) == "ß" * 100


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=60))
def test_what_the_standard_library_encodes_is_read_again(text: str) -> None:
    encoded = Header(text, "utf-8").encode(linesep="\r\n").encode()
    assert readable_field(b"Subject: " + encoded + b"\r\n", b"Subject", 200) == text


FRAGMENTS = st.sampled_from(
    [b"=?", b"?=", b"?q?", b"?B?", b"utf-8", b"=?utf-8?b?", b"=?iso-2022-jp?q?=1B", b"\r\n ", b" "]
)


@given(st.lists(FRAGMENTS | st.binary(max_size=8)).map(b"".join), st.integers(0, 50))
def test_any_octets_give_printable_text_or_none(octets: bytes, max_chars: int) -> None:
    """What people are shown never raises, and has neither controls nor half characters."""
    text = readable_field(b"Subject: " + octets, b"Subject", max_chars)
    assert text is not None
    assert len(text) <= max_chars
    assert not {unicodedata.category(char) for char in text} & {"Cc", "Cs", "Zl", "Zp"}
    fields_of(octets, b"Subject")
    content(octets).header()
