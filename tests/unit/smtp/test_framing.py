"""Framing: where content ends, what may be in it, and that no cut of the input makes a difference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.smtp.framing import PIECE_OCTETS, STRICT, ChunkFramer, DataFramer, Fault, Tolerance

END = b".\r\n"
LOOSE = Tolerance(bare_line_ends=True, nul=True, long_lines=True)
BARE = Tolerance(bare_line_ends=True)
LONG = Tolerance(long_lines=True)
BIG = 10 * 1024 * 1024

Outcome = tuple[Fault | None, int, bytes]


def stuffed(content: bytes) -> bytes:
    """What a client sends for this content, which is made of whole lines (RFC 5321 section 4.5.2)."""
    return re.sub(rb"(?m)(?:\A|(?<=\r\n))\.", b"..", content) + END


def feed_data(framer: DataFramer, pieces: Iterable[bytes]) -> bytes | None:
    """What follows the end of data; None if it was not found."""
    pieces = iter(pieces)
    for piece in pieces:
        end = framer.feed(piece)
        if end is not None:
            return piece[end:] + b"".join(pieces)
    return None


def data_outcome(pieces: Iterable[bytes], tolerance: Tolerance, max_octets: int, line_octets: int) -> Outcome | None:
    framer = DataFramer(max_octets, line_octets, tolerance)
    rest = feed_data(framer, pieces)
    if rest is None:
        return None
    return framer.fault, len(rest), b"" if framer.fault is not None else framer.content().joined()


def chunk_outcome(pieces: Iterable[bytes], tolerance: Tolerance, max_octets: int, line_octets: int) -> Outcome:
    framer = ChunkFramer(max_octets, line_octets, tolerance)
    for piece in pieces:
        framer.feed(piece)
    framer.finish()
    return framer.fault, 0, b"" if framer.fault is not None else framer.content().joined()


def cut_at(octets: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place for place in places if 0 < place < len(octets)}), len(octets)]
    return [octets[start:end] for start, end in pairwise(edges)]


# Octets that matter, so that what is drawn is dense with half ends, periods and faults.
hostile = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"x", b"\0", b"xxxxxxx", END, b"\r\n.\r\n"])).map(
    b"".join
)
tolerances = st.builds(Tolerance, st.booleans(), st.booleans(), st.booleans())
cuts = st.lists(st.integers(1, 120), max_size=8)


@settings(max_examples=400)
@given(hostile, cuts, tolerances, st.integers(0, 60), st.integers(1, 12))
def test_any_cut_of_data_gives_the_same(
    octets: bytes, places: list[int], tolerance: Tolerance, max_octets: int, line_octets: int
) -> None:
    """Replies can't depend on how TCP cut the input (RFC 2920 section 3.2)."""
    octets += b"\r\n.\r\n"
    whole = data_outcome([octets], tolerance, max_octets, line_octets)
    assert data_outcome(cut_at(octets, places), tolerance, max_octets, line_octets) == whole
    assert data_outcome(cut_at(octets, range(len(octets))), tolerance, max_octets, line_octets) == whole


@settings(max_examples=400)
@given(hostile, cuts, tolerances, st.integers(0, 60), st.integers(1, 12))
def test_any_cut_of_chunks_gives_the_same(
    octets: bytes, places: list[int], tolerance: Tolerance, max_octets: int, line_octets: int
) -> None:
    whole = chunk_outcome([octets], tolerance, max_octets, line_octets)
    assert chunk_outcome(cut_at(octets, places), tolerance, max_octets, line_octets) == whole
    assert chunk_outcome(cut_at(octets, range(len(octets))), tolerance, max_octets, line_octets) == whole


line = st.lists(st.sampled_from([b".", b"..", b"x", b"\xff", b" ", b"Subject: x"]), max_size=6).map(b"".join)
contents = st.lists(line).map(lambda lines: b"".join(octets + b"\r\n" for octets in lines))


@given(contents, cuts, st.binary(max_size=20))
def test_any_body_survives_transparency(content: bytes, places: list[int], behind: bytes) -> None:
    """RFC 5321 section 4.5.2; and what stands behind the end of data is left alone."""
    framer = DataFramer(BIG, 998)
    assert feed_data(framer, cut_at(stuffed(content) + behind, places)) == behind
    assert framer.fault is None
    kept = framer.content()
    assert kept.joined() == content
    assert kept.size_octets == framer.size_octets == len(content)
    assert kept.sha256 == hashlib.sha256(content).digest()


@given(contents, cuts)
def test_any_chunks_are_kept_as_they_are(content: bytes, places: list[int]) -> None:
    """RFC 3030 section 2: no transparency."""
    assert chunk_outcome(cut_at(content, places), STRICT, BIG, 998) == (None, 0, content)


def independent_data(octets: bytes, tolerance: Tolerance, max_octets: int, line_octets: int) -> Outcome | None:
    """The same in another way: find the end in the whole, then look at the content as a whole."""
    end = 0 if octets.startswith(END) else octets.find(b"\r\n" + END) + 2
    if end < 2 and not octets.startswith(END):
        return None
    content = re.sub(rb"(?:\A|(?<=\r\n))\.", b"", octets[:end])
    rest = len(octets) - end - len(END)
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", content)
    if bare and tolerance.bare_line_ends:
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    fault = None
    if len(content) > max_octets:
        fault = Fault.TOO_LARGE
    elif bare and not tolerance.bare_line_ends:
        fault = Fault.BARE_LINE_END
    elif b"\0" in content and not tolerance.nul:
        fault = Fault.NUL
    elif not tolerance.long_lines and any(len(each) > line_octets for each in content.split(b"\r\n")):
        fault = Fault.LONG_LINE
    return fault, rest, b"" if fault else content


@given(hostile, tolerances, st.integers(0, 60), st.integers(1, 12))
def test_data_is_what_the_rules_say(octets: bytes, tolerance: Tolerance, max_octets: int, line_octets: int) -> None:
    """Against a second implementation, which sees all of the input at once."""
    expected = independent_data(octets, tolerance, max_octets, line_octets)
    assert data_outcome([octets], tolerance, max_octets, line_octets) == expected


@pytest.mark.parametrize("tolerance", [STRICT, BARE, LOOSE], ids=["strict", "bare line ends", "tolerant"])
@pytest.mark.parametrize("length", range(8))
def test_every_arrangement_of_what_matters(length: int, tolerance: Tolerance) -> None:
    """All that can be made of CR, LF, a period and a letter, whole and octet by octet: no luck is needed here."""
    for letters in product(b"\r\n.x", repeat=length):
        octets = bytes(letters) + b"\r\n.\r\n"
        expected = independent_data(octets, tolerance, BIG, 998)
        assert data_outcome([octets], tolerance, BIG, 998) == expected, octets
        if length < 7:
            assert data_outcome(cut_at(octets, range(len(octets))), tolerance, BIG, 998) == expected, octets


@given(hostile)
def test_what_is_tolerated_becomes_crlf_and_nothing_else_changes(octets: bytes) -> None:
    framer = DataFramer(BIG, 998, LOOSE)
    feed_data(framer, [octets, b"\r\n", END])
    content = framer.content().joined()
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")


@given(hostile.filter(lambda octets: re.search(rb"\r(?!\n)|(?<!\r)\n", octets + b"x") is not None))
def test_every_bare_line_end_is_a_fault(octets: bytes) -> None:
    """RFC 5321 section 2.3.8."""
    fault, _, _ = chunk_outcome([octets + b"x"], STRICT, BIG, 998)
    assert fault is Fault.BARE_LINE_END


SMUGGLED = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n\r.\r\n",
    b"\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\n\n.\r\n",
    b"\r\n..\r\n",
    b"\r\n. \r\n",
]


@pytest.mark.parametrize("tolerance", [STRICT, LOOSE], ids=["strict", "tolerant"])
@pytest.mark.parametrize("sequence", SMUGGLED, ids=repr)
def test_nothing_else_ends_the_data(sequence: bytes, tolerance: Tolerance) -> None:
    """RFC 5321 section 4.1.1.4: CRLF "." CRLF alone; at every cut."""
    octets = b"Hello" + sequence + b"MAIL FROM:<>"
    for offset in range(1, len(octets)):
        framer = DataFramer(BIG, 998, tolerance)
        assert framer.feed(octets[:offset]) is None
        assert framer.feed(octets[offset:]) is None
        assert framer.feed(b"\r\n.\r\nNOOP") == 5


@pytest.mark.parametrize("length", range(996, 1003))
@pytest.mark.parametrize("start", [b"", b".."], ids=["plain", "stuffed"])
def test_a_line_has_at_most_998_octets(length: int, start: bytes) -> None:
    """RFC 5321 section 4.5.3.1.6: 1000 with CRLF, "not counting the leading dot duplicated for transparency"."""
    octets = start + b"x" * (length - len(start) + start.count(b"..")) + b"\r\n"
    expected = Fault.LONG_LINE if length > 998 else None
    for before in (b"", b"x\r\n", b"y" * 998 + b"\r\n"):
        sent = before + octets + b"short\r\n" + END
        for offset in (*range(1, 12), *range(len(before) + 990, len(sent))):
            outcome = data_outcome(cut_at(sent, [offset]), STRICT, BIG, 998)
            assert outcome is not None
            assert outcome[0] is expected
        outcome = data_outcome(cut_at(sent, range(len(sent))), STRICT, BIG, 998)
        assert outcome is not None
        assert outcome[0] is expected


@pytest.mark.parametrize("length", range(996, 1003))
def test_a_line_of_chunks_has_at_most_998_octets(length: int) -> None:
    expected = Fault.LONG_LINE if length > 998 else None
    for ending in (b"\r\n", b""):
        octets = b"x" * length + ending
        for offset in range(990, len(octets)):
            assert chunk_outcome(cut_at(octets, [offset]), STRICT, BIG, 998)[0] is expected


@pytest.mark.parametrize("read", [1000, 1460, 16384, 65535, 65536, 65537, 100_000, 300_000])
@pytest.mark.parametrize("length", [65534, 65535, 65536, 65537, 65538, 200_000])
@pytest.mark.parametrize("start", [b"", b".", b"..", b"\xff"], ids=repr)
def test_tolerated_endless_lines_are_kept_whole(length: int, start: bytes, read: int) -> None:
    """Lines longer than what is kept back at once, which are taken in parts, lose no period and gain none."""
    content = start + b"x" * (length - len(start)) + b"\r\n" + start + b"\r\n"
    sent = stuffed(content)
    outcome = data_outcome(cut_at(sent, range(0, len(sent), read)), LONG, BIG, 998)
    assert outcome == (None, 0, content)
    assert chunk_outcome(cut_at(content, range(0, len(content), read)), LONG, BIG, 998) == (None, 0, content)


@pytest.mark.parametrize("line_octets", [998, 65533, 65534, 65535, 65536, 65537, 100_000])
@pytest.mark.parametrize("surplus", [0, 1])
@pytest.mark.parametrize("start", [b"", b".."], ids=["plain", "stuffed"])
def test_a_limit_of_lines_beyond_what_is_kept_back_is_exact(line_octets: int, surplus: int, start: bytes) -> None:
    sent = start + b"x" * (line_octets + surplus - len(start.replace(b"..", b"."))) + b"\r\n" + END
    expected = Fault.LONG_LINE if surplus else None
    for read in (1460, 65536, len(sent)):
        outcome = data_outcome(cut_at(sent, range(0, len(sent), read)), STRICT, BIG, line_octets)
        assert outcome is not None
        assert outcome[0] is expected


@pytest.mark.parametrize("end", [b"\n", b"\r"], ids=["LF", "CR"])
def test_tolerated_lines_without_any_crlf_are_no_long_line(end: bytes) -> None:
    """100 KB that a Unix host sends with LF alone are many lines, however they arrive."""
    sent = (b"x" * 70 + end) * 2000 + b"\r\n" + END
    expected = (None, 0, (b"x" * 70 + b"\r\n") * 2000 + b"\r\n")
    for read in (1460, 16384, 65536, 70_000, len(sent)):
        assert data_outcome(cut_at(sent, range(0, len(sent), read)), BARE, BIG, 998) == expected


def test_a_period_behind_a_tolerated_line_end_ends_nothing() -> None:
    """Not even where the content before it was long enough to be taken away already."""
    sent = b"x" * 70 + b"\n"
    framer = DataFramer(BIG, 998, BARE)
    assert framer.feed(sent * 1000) is None
    assert framer.feed(b".\r\nDATA\r\n.\r\nNOOP\r\n") == 12
    assert framer.content().joined().endswith(b"x\r\n.\r\nDATA\r\n")


@pytest.mark.parametrize("before", [b"x" * 70 + b"\n", b"x"], ids=["a tolerated line end", "an endless line"])
def test_a_period_that_is_kept_back_alone_ends_nothing(before: bytes) -> None:
    """What came before it was taken away already, and was no CRLF."""
    framer = DataFramer(BIG, 998, LOOSE)
    assert framer.feed(before * (70_000 // len(before)) + b".") is None
    assert framer.feed(b"\r\nDATA\r\n.\r\nNOOP\r\n") == 11
    assert framer.content().joined().endswith(b".\r\nDATA\r\n")


def test_an_endless_line_leaves_the_lines_behind_it_their_periods() -> None:
    """RFC 5321 section 4.5.2, for a line that begins a read of its own."""
    framer = DataFramer(BIG, 998, LONG)
    for octets in (b"x" * 70_000, b"\r\n", b"..a\r\n", b"..", b"\r\n"):
        assert framer.feed(octets) is None
    assert framer.feed(b".\r\n") == 3
    assert framer.content().joined().endswith(b"x\r\n.a\r\n.\r\n")


@pytest.mark.parametrize("read", [1, 7, 1000, 65536])
def test_pieces_are_few_and_bounded(read: int) -> None:
    """A client that sends an octet at a time costs no object an octet, and one that sends much no large copy."""
    content = (b"x" * 62 + b"\r\n") * (512 if read == 1 else 8192)
    framer = DataFramer(BIG, 998)
    assert feed_data(framer, cut_at(stuffed(content), range(0, len(content), read))) == b""
    pieces: Sequence[bytes] = framer.content().pieces
    assert b"".join(pieces) == content
    assert len(pieces) <= len(content) / PIECE_OCTETS + 1
    assert all(len(piece) <= 2 * PIECE_OCTETS + 1000 for piece in pieces)


@pytest.mark.parametrize("framer_type", [DataFramer, ChunkFramer])
def test_nothing_is_kept_after_a_fault(framer_type: type[DataFramer] | type[ChunkFramer]) -> None:
    framer = framer_type(BIG, 998)
    framer.feed(b"x" * 60 + b"\r\n")
    assert framer.held_octets == 62
    framer.feed(b"bare\nline\r\n")
    for _ in range(100):
        framer.feed(b"y" * 998 + b"\r\n")
    assert framer.held_octets == 0
    assert framer.fault is Fault.BARE_LINE_END
    assert framer.size_octets == 62 + 11 + 100_000


def test_an_endless_line_is_not_kept() -> None:
    framer = DataFramer(BIG, 998)
    for _ in range(64):
        assert framer.feed(b"x" * 65536) is None
    assert framer.fault is Fault.LONG_LINE
    assert len(framer._carry) <= PIECE_OCTETS + 1
    assert framer.feed(b"\r\n.\r\n") == 5


def test_no_memory_gives_way_to_a_fault_of_the_message() -> None:
    """452 asks for the same again; a message that can't be taken at all had better hear so."""
    framer = DataFramer(BIG, 998)
    framer.feed(b"x\r\n")
    framer.fail(Fault.NO_MEMORY)
    assert framer.held_octets == 0
    faults = []
    for octets in (b"y\r\n", b"\0\r\n"):
        framer.feed(octets)
        faults.append(framer.fault)
    assert faults == [Fault.NO_MEMORY, Fault.NUL]
