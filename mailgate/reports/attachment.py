"""Finds a report in a message: the attachment by its looks, not by its name, and its content without its packing.

Meant for a thread: its work is linear in the octets, and its memory bounded, whoever made the message. It is no MIME
parser. It looks at so many parts, so many levels deep, splits at the boundary and nowhere else, and passes over what it
does not know.

Standards: RFC 2045 and RFC 2046 (parts), RFC 9990 section 3.5 and RFC 8460 section 5.3 (gzip), RFC 1952 (gzip). ZIP is
no part of either, and still in use for DMARC reports.
"""

from __future__ import annotations

import binascii
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mailgate.message import MAX_HEADER_OCTETS, fields_of
from mailgate.reports.dmarc_report import UnreadableReport

# Of a message, and of what is packed in it.
MAX_MESSAGE_OCTETS = 8 * 1024 * 1024
MAX_UNPACKED_OCTETS = 50 * 1024 * 1024
_CHUNK = 64 * 1024
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_PARTS = 50
_MAX_DEPTH = 4

_BOUNDARY = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"([^"\\\r\n]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Attachment:
    """What may be a report: how it looks, and its octets, still packed."""

    kind: Literal["xml", "json"] | None  # None: packed, so not known yet
    octets: bytes

    def unpacked(self) -> Iterator[bytes]:
        """The content in pieces.

        @raises UnreadableReport: while it is unpacked: it is damaged, or too large.
        """
        if self.octets.startswith(b"\x1f\x8b"):
            return _gunzipped(self.octets)
        if self.octets.startswith(b"PK\x03\x04"):
            return _unzipped(self.octets)
        return iter((self.octets,))


def attachments(message: bytes) -> Iterator[Attachment]:
    """All parts of the message that look like a report, or like something that is packed, in order."""
    left = _MAX_PARTS
    waiting = [(message, 0)]
    while waiting and left > 0:
        part, depth = waiting.pop()
        left -= 1
        header, body = _split(part)
        content_type = next(iter(fields_of(header, b"Content-Type")), b"text/plain")
        if content_type[:10].lower() == b"multipart/":
            boundary = _BOUNDARY.search(content_type)
            if boundary is not None and depth < _MAX_DEPTH:
                parts = _parts(body, boundary[1] or boundary[2], left)
                waiting += [(each, depth + 1) for each in reversed(parts)]
            continue
        octets = _decoded(header, body)
        kind = _kind_of(octets[:4096])
        if kind is not False:
            yield Attachment(kind, octets)


def kind_of(chunk: bytes) -> Literal["xml", "json"] | None:
    """What unpacked content is, by its beginning; None for anything else."""
    kind = _kind_of(chunk[:4096])
    return kind or None


def _kind_of(beginning: bytes) -> Literal["xml", "json", False] | None:
    if beginning.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        return None
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<?xml", b"<feedback")) or b"<feedback" in beginning:
        return "xml"
    if text.startswith(b"{"):
        return "json"
    return False


def _split(part: bytes) -> tuple[bytes, bytes]:
    if part.startswith(b"\r\n"):
        return b"", part[2:]
    end = part.find(b"\r\n\r\n", 0, MAX_HEADER_OCTETS)
    return (part, b"") if end < 0 else (part[: end + 2], part[end + 4 :])


def _parts(body: bytes, boundary: bytes, at_most: int) -> list[bytes]:
    """The parts between the delimiters, at most so many; what stands before and behind all of them is none."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, at_most + 1)
    parts = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            break
        padding, newline, part = piece.partition(b"\r\n")
        if newline and not padding.strip(b" \t"):
            parts.append(part)
    return parts[:at_most]


def _decoded(header: bytes, body: bytes) -> bytes:
    encoding = next(iter(fields_of(header, b"Content-Transfer-Encoding")), b"7bit").strip().lower()
    try:
        if encoding == b"base64":
            return binascii.a2b_base64(body)
        if encoding == b"quoted-printable":
            return binascii.a2b_qp(body)
    except binascii.Error:
        return b""
    return body


def _gunzipped(octets: bytes) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    total = 0
    waiting = octets
    while waiting and not unpacker.eof:
        try:
            piece = unpacker.decompress(waiting, _CHUNK)
        except zlib.error as error:
            raise UnreadableReport(f"it can't be unpacked: {error}") from error
        waiting = unpacker.unconsumed_tail
        total += len(piece)
        if total > MAX_UNPACKED_OCTETS:
            raise UnreadableReport(f"unpacked, it has more than {MAX_UNPACKED_OCTETS} octets")
        if piece:
            yield piece
    if not unpacker.eof:
        rest = unpacker.flush()  # less than a match: all input was taken
        if rest:
            yield rest
    if not unpacker.eof:
        raise UnreadableReport("it ends before it is complete")


def _unzipped(octets: bytes) -> Iterator[bytes]:
    """The first file of the archive that is no folder."""
    try:
        with zipfile.ZipFile(io.BytesIO(octets)) as archive:
            names = archive.infolist()[:_MAX_PARTS]
            wanted = next((each for each in names if each.filename and not each.is_dir()), None)
            if wanted is None or wanted.flag_bits & 1 or wanted.compress_type not in _ZIP_METHODS:
                raise UnreadableReport("the archive is empty, encrypted, or packed in a way that nobody needs")
            total = 0
            with archive.open(wanted) as file:
                while piece := file.read(_CHUNK):
                    total += len(piece)
                    if total > MAX_UNPACKED_OCTETS:
                        raise UnreadableReport(f"unpacked, it has more than {MAX_UNPACKED_OCTETS} octets")
                    yield piece
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise UnreadableReport(f"it can't be unpacked: {error}") from error
