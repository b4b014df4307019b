"""A message made of what a person says on a command line: addresses, a subject, a text, files.

Date and Message-ID are left to the server, and the blind copies to the envelope.

Standards: RFC 5322 section 3.6, RFC 2046 section 5.1.3 (multipart/mixed), RFC 2045 (encodings), RFC 2183 (attachments).
"""

from __future__ import annotations

import mimetypes
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from mailgate.composition import (
    Part,
    base64_lines,
    encoded_words,
    folded,
    header_field,
    multipart,
    one_line,
    text_part,
)
from mailgate.submission.addresses import addresses_in

_UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes along."""

    name: str
    octets: bytes


def compose(
    *,
    author: str,
    to: Sequence[str],
    cc: Sequence[str] = (),
    subject: str = "",
    text: str,
    attachments: Sequence[Attachment] = (),
) -> bytes:
    """The message, every line ended by CRLF. Addresses are as people write them; the lines of `text` end in LF.

    @raises NotAnAddress: one of them is none.
    """
    header = _address_field("From", (author,))
    if to:
        header += _address_field("To", to)
    if cc:
        header += _address_field("Cc", cc)
    if subject:
        header += header_field("Subject", subject)
    body = text_part(text if text.endswith("\n") or not text else text + "\n")
    if not attachments:
        return header + b"MIME-Version: 1.0\r\n" + body.encoded()
    parts = (body, *map(_part, attachments))
    content_type, octets = multipart("mixed", "", parts, secrets.token_hex(16))
    return header + b"MIME-Version: 1.0\r\nContent-Type: " + content_type.encode("ascii") + b"\r\n\r\n" + octets


def _address_field(name: str, words: Sequence[str]) -> bytes:
    return folded(name, ", ".join(map(_encoded, words)), "utf-8")


def _encoded(words: str) -> str:
    """The address with its name as encoded words, where that is not ASCII: those may not hold the address itself."""
    found = addresses_in(words)
    if words.isascii() or not found:
        return words
    name = one_line(words.partition("<")[0]).strip('"')
    if len(found) > 1 or not name or "<" not in words:
        return ", ".join(address.text for address in found)
    return f"{name if name.isascii() else encoded_words(name)} <{found[0].text}>"


def _part(attachment: Attachment) -> Part:
    kind, encoding = mimetypes.guess_type(attachment.name)
    # A file name is told in ASCII here; what is not is told as a question mark, and the file itself is whole.
    name = attachment.name.encode("ascii", "replace").decode("ascii")
    name = "".join(char if char.isprintable() and char not in '"\\' else "_" for char in name)
    content_type = kind if kind is not None and encoding is None else _UNKNOWN_TYPE
    return Part(content_type, base64_lines(attachment.octets), "base64", file_name=name)
