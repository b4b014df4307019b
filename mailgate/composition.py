"""Messages that we write ourselves: header fields, MIME parts and multiparts as octets.

Only what notifications and reports need. Whatever is put in ends up on the lines meant for it: text from strangers can
neither begin a field nor end a part.

Standards: RFC 5322 section 2 (lines, folding), RFC 2045 and RFC 2046 (parts, boundaries, transfer encodings), RFC 2047
(encoded words), RFC 6532 (UTF-8 in header fields).
"""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from textwrap import wrap
from typing import Literal

MAX_LINE_OCTETS = 998  # RFC 5322 section 2.1.1: without the CRLF
_WIDTH = 76
_WORD_OCTETS = 42  # of UTF-8 in an encoded word: 56 characters of base64, and 12 round them

# C0 and C1 controls, line and paragraph separators, marks and overrides of direction, the byte order mark, surrogates.
_UNSHOWABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]+"
)

TransferEncoding = Literal["7bit", "8bit", "quoted-printable", "base64"]


@dataclass(frozen=True, slots=True)
class Part:
    """A body part: its Content-Type, its octets as they stand in the message, and how those are encoded."""

    content_type: str
    octets: bytes
    encoding: TransferEncoding = "7bit"
    description: str = ""
    file_name: str = ""  # ASCII; an attachment where it is given

    def encoded(self) -> bytes:
        """Its header, the empty line, and its octets."""
        lines = [f"Content-Type: {self.content_type}"]
        if self.encoding != "7bit":
            lines.append(f"Content-Transfer-Encoding: {self.encoding}")
        if self.description:
            lines.append(f"Content-Description: {self.description}")
        if self.file_name:
            lines.append(f'Content-Disposition: attachment;\r\n filename="{self.file_name}"')
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + self.octets


def text_part(text: str) -> Part:
    """Plain text for people; lines of `text` end in LF."""
    octets = text.replace("\n", "\r\n").encode("utf-8", "replace")
    if octets.isascii() and has_short_lines(octets):
        return Part("text/plain; charset=us-ascii", octets)
    return Part("text/plain; charset=utf-8", quoted_printable(octets), "quoted-printable")


def multipart(subtype: str, parameters: str, parts: tuple[Part, ...], seed: str) -> tuple[str, bytes]:
    """The Content-Type of a multipart, and its body. `seed` makes its boundary, which stands in no part of it."""
    encoded = [part.encoded() for part in parts]
    boundary = _boundary(encoded, seed)
    delimiter = b"--" + boundary.encode("ascii")
    body = b"".join(delimiter + b"\r\n" + part + b"\r\n" for part in encoded) + delimiter + b"--\r\n"
    return f'multipart/{subtype};{parameters}\r\n boundary="{boundary}"', body


def _boundary(parts: list[bytes], seed: str) -> str:
    round_ = 0
    while True:
        # "=_" is in no quoted-printable and no base64 (RFC 2045 section 6.7).
        boundary = "=_" + hashlib.sha256(f"{seed} {round_}".encode("utf-8", "replace")).hexdigest()[:32]
        if not any(boundary.encode("ascii") in part for part in parts):
            return boundary
        round_ += 1


def header_field(name: str, body: str, *, is_utf_8: bool = False) -> bytes:
    """A field with text that people read, folded; as encoded words where it is not ASCII, unless `is_utf_8`."""
    body = one_line(body)
    if not (body.isascii() or is_utf_8):
        body = encoded_words(body)
    return folded(name, body, "utf-8")


def folded(name: str, body: str, charset: str = "ascii") -> bytes:
    """The field with its lines broken at blanks; a word that is too long for any line is broken where a line ends.

    What stands in `body` is one line.
    """
    lines = wrap(f"{name}: {body}", _WIDTH, subsequent_indent=" ", break_long_words=False, break_on_hyphens=False)
    # UTF-8 has at most four octets a character.
    limit = MAX_LINE_OCTETS - 1 if charset == "ascii" else MAX_LINE_OCTETS // 4
    short: list[str] = []
    for line in lines:
        while len(line) > limit:
            short.append(line[:limit])
            line = " " + line[limit:]
        short.append(line)
    return "\r\n".join(short).encode(charset, "replace") + b"\r\n"


def encoded_words(text: str) -> str:
    """The text as encoded words in UTF-8, none of which cuts a character in two."""
    words: list[str] = []
    run = b""
    for character in text:
        octets = character.encode("utf-8", "replace")
        if len(run) + len(octets) > _WORD_OCTETS:
            words.append(_encoded_word(run))
            run = b""
        run += octets
    words.append(_encoded_word(run))
    return " ".join(words)


def _encoded_word(octets: bytes) -> str:
    return f"=?utf-8?b?{binascii.b2a_base64(octets, newline=False).decode('ascii')}?="


def one_line(text: str, max_chars: int = 2000) -> str:
    """The text without line ends, other controls and what turns the direction of writing; shortened."""
    text = _UNSHOWABLE.sub(" ", text)
    return (text if len(text) <= max_chars else text[: max_chars - 1] + "…").strip()


def printable_ascii(text: str, max_chars: int = 2000) -> str:
    r"""The text on one line of printable ASCII; other characters as `\xe9` and `\u2026`."""
    return one_line(text, max_chars).encode("ascii", "backslashreplace").decode("ascii")


def date(seconds: float) -> str:
    """A date as header fields have it; `seconds` since the epoch."""
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC))


def quoted_printable(octets: bytes) -> bytes:
    """Text with CRLF line ends as quoted-printable."""
    lines = octets.split(b"\r\n")
    return b"\r\n".join(binascii.b2a_qp(line, istext=False).replace(b"\n", b"\r\n") for line in lines)


def base64_lines(octets: bytes) -> bytes:
    """The octets as base64, in lines of 76 characters."""
    encoded = binascii.b2a_base64(octets, newline=False)
    return b"".join(encoded[start : start + _WIDTH] + b"\r\n" for start in range(0, len(encoded), _WIDTH))


def has_short_lines(octets: bytes) -> bool:
    """Whether no line is longer than RFC 5322 allows, and all of them end in CRLF and nothing else."""
    return (
        octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")
        and b"\0" not in octets
        and max(map(len, octets.split(b"\r\n"))) <= MAX_LINE_OCTETS
    )
