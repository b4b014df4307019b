"""Content on its way out: whatever its octets and however it is cut, the other side reads the same."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.smtp.client_framing import ContentLines, DotStuffer
from mailgate.smtp.framing import DataFramer, Tolerance

# What may stand across a boundary: each place where a piece could end within it matters.
PATTERNS = (b"\r\n.\r\n", b"\r\n..\r\n", b"\r\n.a\r\n.\r\n", b"\r\n\r\n.", b".\r\n.\r\n.", b"\r\n...")
BOUNDARIES = tuple(1 << power for power in range(10, 21))


def sent(stuffer: ContentLines, pieces: list[bytes]) -> bytes:
    return b"".join([*(stuffer.feed(piece) for piece in pieces if piece), stuffer.finish()])


def read(wire: bytes) -> bytes:
    """What the receiver of ours reads."""
    framer = DataFramer(1 << 30, 1 << 30, Tolerance(nul=True))
    assert framer.feed(wire) == len(wire)
    assert framer.fault is None
    return b"".join(framer.content().pieces)


def read_otherwise(wire: bytes) -> bytes:
    """What a receiver that goes line by line reads: nothing of it is ours."""
    lines = wire.split(b"\r\n")
    end = lines.index(b".")
    assert lines[end + 1 :] == [b""]
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:end])


def cut(content: bytes, size: int) -> list[bytes]:
    return [content[place : place + size] for place in range(0, len(content), size)]


def content_with(pattern: bytes, place: int) -> bytes:
    """Lines, with the pattern at that place, and a little behind it."""
    lines = b"." + b"x" * 70 + b"\r\n"
    before = (lines * (place // len(lines) + 1))[:place]
    # A half line end before the pattern would be a CR alone.
    before = before.removesuffix(b"\r") + b"y" * before.endswith(b"\r")
    return before + pattern + b"tail\r\n.\r\n"


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_dots_and_line_ends_round_every_boundary_reach_the_other_side_identical(boundary: int) -> None:
    """RFC 5321 section 4.5.2; once a sender of others lost its stuffing where one of its chunks ended."""
    for pattern, offset in product(PATTERNS, range(-4, 5)):
        content = content_with(pattern, boundary + offset)
        wire = sent(DotStuffer(), [content[:boundary], content[boundary:]])
        assert read(wire) == content, (pattern, offset)
        if offset == 0:
            assert read_otherwise(wire) == content
            for size in (boundary // 2, boundary // 2 + 1, boundary - 1):
                assert sent(DotStuffer(), cut(content, size)) == wire, (pattern, size)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_size_of_pieces_changes_nothing(pattern: bytes, size: int) -> None:
    """A piece may end anywhere."""
    content = content_with(pattern, 90)
    wire = sent(DotStuffer(), cut(content, size))
    assert read(wire) == read_otherwise(wire) == content


lines_of_dots = st.lists(st.sampled_from([b".", b"\r\n", b"a", b"\0", b"\xff", b"\r\n.", b" "])).map(b"".join)


@given(content=lines_of_dots.map(lambda octets: octets + b"\r\n"), size=st.integers(1, 9))
def test_any_lines_are_read_as_they_were(content: bytes, size: int) -> None:
    """Whatever is in them."""
    wire = sent(DotStuffer(), cut(content, size))
    assert read(wire) == read_otherwise(wire) == content
    assert sent(ContentLines(), cut(content, size)) == content


@given(content=st.lists(st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"a"])).map(b"".join), size=st.integers(1, 9))
def test_no_cr_or_lf_alone_is_ever_sent(content: bytes, size: int) -> None:
    """RFC 5321 section 2.3.8; a host that takes LF for a line end must find no other end of data than ours."""
    for lines in (ContentLines(), DotStuffer()):
        wire = sent(lines, cut(content, size))
        assert b"\n" not in wire.replace(b"\r\n", b"")
        assert b"\r" not in wire.replace(b"\r\n", b"")
        assert wire == sent(type(lines)(), [content])
    assert read(sent(DotStuffer(), [content])) == sent(ContentLines(), [content])


@pytest.mark.parametrize(
    ("pieces", "wire"),
    [
        ([], b".\r\n"),
        ([b"a"], b"a\r\n.\r\n"),
        ([b"."], b"..\r\n.\r\n"),
        ([b"a\r"], b"a\r\n.\r\n"),
        ([b"a\r", b"\n", b"."], b"a\r\n..\r\n.\r\n"),
        ([b"a\n.\n"], b"a\r\n..\r\n.\r\n"),
        ([b"\r\n.\r\n"], b"\r\n..\r\n.\r\n"),
    ],
)
def test_the_end_of_data_stands_on_a_line_of_its_own(pieces: list[bytes], wire: bytes) -> None:
    """RFC 5321 section 4.1.1.4: the CRLF before the period belongs to the content, if there is one."""
    assert sent(DotStuffer(), pieces) == wire
