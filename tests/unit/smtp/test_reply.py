"""Replies on the wire."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.smtp.reply import MAX_LINE_OCTETS, ProtocolError, Reply, reply

LINES = st.lists(st.text(max_size=1200), min_size=1, max_size=4).map(tuple)
REPLIES = st.builds(Reply, st.integers(200, 599), st.sampled_from(["", "2.0.0", "4.3.0", "5.7.509"]), LINES)


@pytest.mark.parametrize(
    ("made", "reference", "wire"),
    [
        (reply(250, "2.0.0", "OK"), "", b"250 2.0.0 OK\r\n"),
        (reply(220, "", "mx.example.test ESMTP"), "", b"220 mx.example.test ESMTP\r\n"),
        (reply(250, "", "mx", "PIPELINING", "SIZE 1"), "", b"250-mx\r\n250-PIPELINING\r\n250 SIZE 1\r\n"),
        # RFC 2034 section 4: the status code is on every line of a reply.
        (reply(550, "5.7.1", "No.", "See x"), "", b"550-5.7.1 No.\r\n550 5.7.1 See x\r\n"),
        (reply(550, "5.1.1", "No such mailbox"), "1m9x2k7q0vb3d", b"550 5.1.1 No such mailbox [1m9x2k7q0vb3d]\r\n"),
        (reply(451, "4.3.0", "a", "b"), "1m9x2k7q0vb3d", b"451-4.3.0 a\r\n451 4.3.0 b [1m9x2k7q0vb3d]\r\n"),
        (reply(250, "2.0.0", "OK"), "1m9x2k7q0vb3d", b"250 2.0.0 OK\r\n"),
        (reply(354, "", "Go"), "1m9x2k7q0vb3d", b"354 Go\r\n"),
    ],
)
def test_a_reply_is_written_as_the_rfc_says(made: Reply, reference: str, wire: bytes) -> None:
    """RFC 5321 section 4.2: a hyphen on all lines but the last; the id of the transaction ends 4xx and 5xx."""
    assert made.encode(reference) == wire
    assert made.encode(reference) == wire


@pytest.mark.parametrize(
    ("line", "wire"),
    [
        ("a\r\n250 b", b"550 5.0.0 a??250 b\r\n"),
        ("tab\tnul\0del\x7f", b"550 5.0.0 tab?nul?del?\r\n"),
        ("ß", b"550 5.0.0 \\xdf\r\n"),
        ("", b"550 5.0.0 \r\n"),
    ],
)
def test_nothing_in_a_line_can_end_it(line: str, wire: bytes) -> None:
    """A policy may quote what came from elsewhere; that must not become a second reply."""
    assert reply(550, "5.0.0", line).encode() == wire
    assert reply(550, "5.0.0", line).text().encode() + b"\r\n" == wire


def test_a_long_line_is_wrapped_between_words() -> None:
    """RFC 5321 section 4.5.3.1.5: 512 octets for a reply line, CRLF included."""
    wire = reply(550, "5.7.1", "word " * 300).encode("1m9x2k7q0vb3d")
    lines = wire.split(b"\r\n")
    assert lines.pop() == b""
    assert len(lines) > 1
    assert all(line.startswith(b"550-5.7.1 word") and line.endswith(b"word") for line in lines[:-1])
    assert lines[-1].endswith(b"[1m9x2k7q0vb3d]")
    assert b" ".join(line[10:] for line in lines).split() == [b"word"] * 300 + [b"[1m9x2k7q0vb3d]"]


def test_a_line_of_512_octets_is_whole_and_one_of_513_is_not() -> None:
    longest = "x" * (MAX_LINE_OCTETS - len("550 5.7.1 \r\n"))
    assert reply(550, "5.7.1", longest).encode() == b"550 5.7.1 " + longest.encode() + b"\r\n"
    assert reply(550, "5.7.1", longest + "x").encode() == b"550-5.7.1 " + longest.encode() + b"\r\n550 5.7.1 x\r\n"


def test_a_long_line_of_blanks_is_an_empty_line() -> None:
    assert reply(250, "2.0.0", " " * 600).encode() == b"250 2.0.0 \r\n"


@given(REPLIES, st.sampled_from(["", "1m9x2k7q0vb3d"]))
def test_every_reply_is_lines_of_at_most_512_octets_with_right_continuation(made: Reply, reference: str) -> None:
    wire = made.encode(reference)
    assert wire.endswith(b"\r\n")
    lines = wire[:-2].split(b"\r\n")
    assert all(len(line) + 2 <= MAX_LINE_OCTETS for line in lines)
    start = rb"%d%%s%s" % (made.code, re.escape(made.enhanced.encode() + b" " if made.enhanced else b""))
    assert all(re.match(rb"%s[ -~]*\Z" % (start % b"-"), line) for line in lines[:-1])
    assert re.match(rb"%s[ -~]*\Z" % (start % b" "), lines[-1])
    if reference and made.code >= 400:
        assert lines[-1].endswith(b"[1m9x2k7q0vb3d]")


def test_a_reply_as_one_line_is_for_logs() -> None:
    made = reply(550, "5.1.1", "No such", "mailbox here")
    assert made.text("1m9x2k7q0vb3d") == "550 5.1.1 No such mailbox here [1m9x2k7q0vb3d]"
    assert reply(220, "", "mx").text() == "220 mx"


def test_classes_of_replies() -> None:
    assert reply(250, "2.0.0", "x").is_positive
    assert reply(354, "", "x").is_positive
    assert reply(451, "4.3.0", "x").is_transient
    assert not reply(451, "4.3.0", "x").is_positive
    assert not reply(550, "5.0.0", "x").is_transient


def test_a_protocol_error_carries_its_reply() -> None:
    error = ProtocolError(reply(500, "5.5.1", "What?"))
    assert error.reply.code == 500
    assert str(error) == "500 5.5.1 What?"
