"""A message's octets: its content as received, its header fields, and the trace fields that are ours.

Bytes in, bytes out. No MIME: what is needed of a header is found by a strict and linear search, because a parser that
recurses must not meet hostile input on the reactor.

Standards: RFC 5322 section 2 (fields, folding), RFC 5321 section 4.4 (trace information).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_END_OF_HEADER = b"\r\n\r\n"


@dataclass(slots=True)
class MessageContent:
    """What came between DATA and the end of data: transparency undone, every line ending in CRLF.

    The octets are kept in the pieces in which they were received. A piece may end anywhere; nobody changes them.
    """

    pieces: Sequence[bytes]
    size_octets: int
    sha256: bytes
    _header: bytes | None = field(default=None, repr=False)

    def header(self) -> bytes:
        """The header section with the CRLF of its last field, without the empty line. All of it if there is no body."""
        if self._header is None:
            self._header = _header_of(self.pieces)
        return self._header

    def joined(self) -> bytes:
        """The content in one piece: a copy unless there is just one. Not for large messages."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


def _header_of(pieces: Sequence[bytes]) -> bytes:
    found = b""
    for piece in pieces:
        start = max(len(found) - 3, 0)
        found = found + piece if found else piece
        if found.startswith(b"\r\n"):
            return b""
        end = found.find(_END_OF_HEADER, start)
        if end >= 0:
            return found[: end + 2]
    return found


def fields_of(header: bytes, name: bytes) -> list[bytes]:
    """The bodies of all fields of that name, unfolded and stripped, in order. The name is matched without case."""
    pattern = rb"(?im)^" + re.escape(name) + rb"[ \t]*:((?:[^\r\n]|\r\n[ \t])*)"
    return [re.sub(rb"\r\n(?=[ \t])", b"", found).strip(b" \t") for found in re.findall(pattern, header)]
