"""Line ends, changed while octets pass: CRLF as stored, LF as files on this system have them.

Standards: RFC 5322 section 2.1 (lines end in CRLF, and CR and LF stand nowhere else).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_ANY_END = re.compile(rb"\r\n|\r|\n")


def with_lf(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The octets with LF for CRLF; a bare CR stays."""
    held = b""
    for piece in pieces:
        octets = held + piece
        held = b"\r" if octets.endswith(b"\r") else b""
        yield (octets[:-1] if held else octets).replace(b"\r\n", b"\n")
    if held:
        yield held


def with_crlf(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The octets with CRLF for every line end, whichever it was: LF, CR or CRLF."""
    ended_in_cr = False
    for piece in pieces:
        # The CR before it was taken for a line end; this LF belongs to that.
        octets = piece[1:] if ended_in_cr and piece.startswith(b"\n") else piece
        if piece:
            ended_in_cr = piece.endswith(b"\r")
        yield _ANY_END.sub(b"\r\n", octets)
