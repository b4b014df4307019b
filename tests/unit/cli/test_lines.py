"""Line ends, changed while octets pass, however they are cut."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mailgate.cli.lines import with_crlf, with_lf

OCTETS = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\n\n", b"From ", b""]), max_size=12)


@given(OCTETS)
def test_every_line_end_becomes_crlf_wherever_it_is_cut(pieces: list[bytes]) -> None:
    """RFC 5322 section 2.1: CR and LF stand nowhere but together."""
    assert b"".join(with_crlf(pieces)) == re.sub(rb"\r\n|\r|\n", b"\r\n", b"".join(pieces))


@given(OCTETS)
def test_every_crlf_becomes_lf_wherever_it_is_cut(pieces: list[bytes]) -> None:
    """Files on this system end their lines in LF."""
    assert b"".join(with_lf(pieces)) == b"".join(pieces).replace(b"\r\n", b"\n")


@given(st.lists(st.sampled_from([b"a", b"\r\n", b"bc"]), max_size=12))
def test_what_is_stored_comes_back(pieces: list[bytes]) -> None:
    """Stored messages hold CRLF lines only, so a way out and in again changes nothing."""
    assert b"".join(with_crlf(with_lf(pieces))) == b"".join(pieces)
