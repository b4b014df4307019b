"""Content as it goes out: by DATA with dots stuffed and the end of data behind it, by BDAT as chunks.

Content is lines that end in CRLF; `mailgate.smtp.framing` lets nothing else in, and every octet of such content reaches
the other side as it is, however it is cut into pieces. Should other content come (a program of the host wrote it), then
CR and LF alone become CRLF, as they do when they are tolerated on the way in: RFC 5321 section 2.3.8 forbids to send
them, and a host that takes LF for a line end would find an end of data that we had not seen ("SMTP smuggling"). A last
line without its end gets one.

Standards: RFC 5321 sections 2.3.8 (lines), 4.1.1.4 (DATA), 4.5.2 (transparency); RFC 3030 section 2 (BDAT).
"""

from __future__ import annotations

import re

END_OF_DATA = b".\r\n"

# Where each CR stands, and each LF.
_CR = bytes(octet == 0x0D for octet in range(256))
_LF = bytes(octet == 0x0A for octet in range(256))
_LINE_END = re.compile(rb"\r\n|\r|\n")


class ContentLines:
    """Cuts nothing, adds only missing halves of line ends: what BDAT sends."""

    __slots__ = ("_has_cr", "is_line_start")

    def __init__(self) -> None:
        """Begin at the start of a line."""
        self._has_cr = False  # the last octet was CR; it is held back until it is known whether LF follows
        self.is_line_start = True

    def feed(self, piece: bytes) -> bytes:
        """The octets to send for a piece, which is not empty. A CR at its end comes with the next one."""
        if self._has_cr:
            piece = b"\r" + piece
        self._has_cr = piece.endswith(b"\r")
        if self._has_cr:
            piece = piece[:-1]
        # Each LF right behind a CR, and each CR right before an LF.
        if b"\0" + piece.translate(_CR) != piece.translate(_LF) + b"\0":
            piece = _LINE_END.sub(b"\r\n", piece)
        if piece:
            self.is_line_start = piece.endswith(b"\n")
        return piece

    def finish(self) -> bytes:
        """What is missing of the last line's end."""
        return b"" if self.is_line_start and not self._has_cr else b"\r\n"


class DotStuffer(ContentLines):
    """What DATA sends: a period goes in front of every line that begins with one (section 4.5.2)."""

    __slots__ = ()

    def feed(self, piece: bytes) -> bytes:
        """The octets to send for a piece, which is not empty."""
        was_line_start = self.is_line_start
        lines = super().feed(piece)
        if was_line_start and lines.startswith(b"."):
            lines = b"." + lines
        return lines.replace(b"\r\n.", b"\r\n..")

    def finish(self) -> bytes:
        """The end of data, with what is missing of the last line's end."""
        return super().finish() + END_OF_DATA
