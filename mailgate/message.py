"""A message's octets: its content as received, and what is looked up in its header section.

Bytes in, bytes out. No MIME: what is needed of a header is found by a strict and linear search, because a parser that
recurses must not meet hostile input on the reactor. What `readable_field` gives is for the eyes of people; no decision
rests on it.

Standards: RFC 5322 section 2 (fields, folding), RFC 2047 (encoded words), RFC 6532 (UTF-8 in header fields).
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# No header section of a message that people or programs send comes near this; a search of it must not hold up others.
MAX_HEADER_OCTETS = 1024 * 1024

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
        """The header section with the CRLF of its last field, without the empty line. All of it if there is no body.

        Of a header section over MAX_HEADER_OCTETS, the lines that begin within them.
        """
        if self._header is None:
            self._header = _header_of(self.pieces)
        return self._header

    @property
    def has_endless_header(self) -> bool:
        """Whether the header section is longer than MAX_HEADER_OCTETS, so that `header` is only its beginning."""
        return self.size_octets > MAX_HEADER_OCTETS and not self._goes_on_with_body(len(self.header()))

    def _goes_on_with_body(self, position: int) -> bool:
        if position == self.size_octets:
            return True
        following = b""
        for piece in self.pieces:
            if position < len(piece):
                following += piece[position : position + 2 - len(following)]
                position = 0
                if len(following) == 2:
                    break
            else:
                position -= len(piece)
        return following == b"\r\n"

    def joined(self) -> bytes:
        """The content in one piece: a copy unless there is just one. Not for large messages."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


def revised_header(header: bytes, spans: Sequence[tuple[int, int]], added: bytes = b"") -> bytes:
    """The header section with fields on top, and without the octets from each start to its end, in any order."""
    kept = [added]
    position = 0
    for start, end in sorted(spans):
        kept.append(header[position:start])
        position = max(position, end)
    kept.append(header[position:])
    return b"".join(kept)


def revised(content: MessageContent, spans: Sequence[tuple[int, int]], added: bytes = b"") -> MessageContent:
    """The content with that done to its header section."""
    header = content.header()
    pieces = [revised_header(header, spans, added)]
    skipped = len(header)
    for piece in content.pieces:
        if skipped < len(piece):
            pieces.append(piece[skipped:] if skipped else piece)
        skipped = max(skipped - len(piece), 0)
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return MessageContent(pieces, sum(map(len, pieces)), digest.digest())


def _header_of(pieces: Sequence[bytes]) -> bytes:
    if not pieces:
        return b""
    beginning = pieces[0]
    end = _end_of_header(beginning)
    if end is None and len(pieces) > 1:
        beginning = b"".join(_first_of(pieces, MAX_HEADER_OCTETS + len(_END_OF_HEADER)))
        end = _end_of_header(beginning)
    if end is None:
        end = len(beginning)
        if end > MAX_HEADER_OCTETS:
            end = beginning.rfind(b"\r\n", 0, MAX_HEADER_OCTETS) + 2
    return beginning[:end]


def _end_of_header(content: bytes) -> int | None:
    if content.startswith(b"\r\n"):
        return 0
    found = content.find(_END_OF_HEADER, 0, MAX_HEADER_OCTETS + len(_END_OF_HEADER))
    return None if found < 0 else found + 2


def _first_of(pieces: Sequence[bytes], octets: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        octets -= len(piece)
        if octets <= 0:
            return


# What follows a field's name: RFC 5322 section 4.5.8 lets blanks stand before the colon. The body ends where a CRLF is
# not followed by a blank.
_FIELD_BODY = re.compile(rb"[ \t]*+:((?:[^\r]++|(?!\r\n)\r|\r\n[ \t])*+)")


def _bodies_of(header: bytes, name: bytes) -> Iterator[bytes]:
    # With a CRLF put before the first line too, what is searched for can only be found at the beginning of a line; and
    # the name's place in `lines` is two more than its place in `header`.
    lines = b"\r\n" + header.lower()
    wanted = b"\r\n" + name.lower()
    place = lines.find(wanted)
    while place >= 0:
        match = _FIELD_BODY.match(header, place + len(name))
        if match is not None:
            yield match[1].replace(b"\r\n", b"").strip(b" \t")
        place = lines.find(wanted, place + len(wanted))


def fields_of(header: bytes, name: bytes) -> list[bytes]:
    """The bodies of all fields of that name, unfolded and stripped, in order. The name is matched without case."""
    return list(_bodies_of(header, name))


def count_received_fields(header: bytes) -> int:
    """How many hosts say that they have had this message (RFC 5321 section 6.3: loops)."""
    lines = b"\r\n" + header.lower()
    return lines.count(b"\r\nreceived:") + lines.count(b"\r\nreceived ") + lines.count(b"\r\nreceived\t")


def readable_field(header: bytes, name: bytes, max_chars: int) -> str | None:
    """The first field of that name as people read it, at most `max_chars` long; None where there is no such field."""
    body = next(_bodies_of(header, name), None)
    return None if body is None else readable_body(body, max_chars)


def readable_body(body: bytes, max_chars: int) -> str:
    """A field's body as people read it, at most `max_chars` long.

    Unfolded, encoded words decoded, one blank between words, and without characters that would move the cursor or turn
    the direction of writing. What can't be decoded is shown as it stands.
    """
    # The most wasteful way to encode a text, a word for each character, takes less than that.
    text = body[: 32 * max_chars + 75].decode("utf-8", "replace")
    if "=?" in text:
        text = _decode_encoded_words(text)
    if "  " in text or not text.isprintable():
        text = _BLANKS.sub(" ", _UNSHOWABLE.sub("", text))
    return text[:max_chars].strip(" ")


# C0 and C1 controls that are no blanks, marks and overrides of direction, the byte order mark, annotations, surrogates.
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_BLANKS = re.compile(r"\s++")

#   encoded-word = "=?" charset ["*" language] "?" encoding "?" encoded-text "?="
# RFC 2047 section 2, with the language of RFC 2231. It forbids blanks in the encoded text, and some senders write them.
_ENCODED_WORD = re.compile(r"=\?([A-Za-z0-9_.:+\-]{1,40}+)(?:\*[A-Za-z0-9\-]{0,40}+)?+\?([BbQq])\?([^?]*+)\?=")

# The charsets that mail is written in. Not all that Python knows: some of its codecs are no charsets, some take time
# that grows with the square of the text, and it remembers each unknown name for ever. Names that are wrong but common
# are read as what is meant: what calls itself GB 2312 is GBK, and ISO 8859-1 is Windows-1252.
_CODECS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "koi8-r": "koi8_r",
    "koi8-u": "koi8_u",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "iso-2022-jp": "iso2022_jp_2",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
    "tis-620": "cp874",
    **{f"iso-8859-{part}": f"iso8859_{part}" for part in (*range(2, 12), *range(13, 17))},
    **{f"windows-{page}": f"cp{page}" for page in range(1250, 1259)},
}


def _decode_encoded_words(text: str) -> str:
    shown: list[str] = []
    run = bytearray()  # of neighbouring words with one charset: senders do cut characters in two between words
    run_codec = ""
    position = 0
    for match in _ENCODED_WORD.finditer(text):
        charset, encoding, encoded = match.groups()
        codec = _CODECS.get(charset.lower())
        octets = _octets_of(encoding, encoded)
        if codec is None or octets is None:
            continue
        between = text[position : match.start()]
        is_neighbour = bool(run_codec) and not between.strip(" \t")
        if run_codec and not (is_neighbour and codec == run_codec):
            shown.append(run.decode(run_codec, "replace"))
            run.clear()
        if not is_neighbour:
            shown.append(between)
        run += octets
        run_codec = codec
        position = match.end()
    if run_codec:
        shown.append(run.decode(run_codec, "replace"))
    shown.append(text[position:])
    return "".join(shown)


def _octets_of(encoding: str, encoded: str) -> bytes | None:
    if not encoded.isascii():
        return None
    if encoding in "Qq":
        return binascii.a2b_qp(encoded, header=True)
    try:
        return binascii.a2b_base64(encoded.rstrip("=") + "==")
    except binascii.Error:
        return None
