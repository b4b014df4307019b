"""What a program writes to `sendmail`, made into a message: lines, header, sender, and MIME where it is needed.

Programs write what a person would read on a terminal: LF at the end of a line, addresses without a domain, perhaps no
header at all, and lines of any length. What is complete already is left as it is.

Standards: RFC 5322 sections 2 and 3.6, RFC 2045 (MIME), RFC 6409 section 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mailgate.submission.addresses import addresses_in, completed

MAX_LINE_OCTETS = 998  # RFC 5322 section 2.1.1: without the CRLF

#   field-name = 1*ftext        ; %d33-57 / %d59-126
_FIELD_START = re.compile(rb"[!-9;-~]+[ \t]*:")
_MBOX_LINE = re.compile(rb">?From [^\n]*\n")
_NAMED = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)

_RECIPIENTS = ("to", "cc", "bcc")
_RESENT_RECIPIENTS = ("resent-to", "resent-cc", "resent-bcc")
_BLIND = ("bcc", "resent-bcc")
_ADDRESS_FIELDS = frozenset(
    {"from", "sender", "reply-to", "resent-from", "resent-sender", *_RECIPIENTS, *_RESENT_RECIPIENTS}
)


@dataclass(frozen=True, slots=True)
class Author:
    """Who runs the program."""

    address: str
    full_name: str = ""


@dataclass(frozen=True, slots=True)
class ProgramMail:
    """A message as it is handed in: every line ends in CRLF, and every address has a domain."""

    fields: tuple[bytes, ...]  # each with its CRLF
    body: bytes

    def octets(self) -> bytes:
        """Header, empty line, body; without blind copies, which the server may not know to remove."""
        return b"".join(field for field in self.fields if _split(field)[0] not in _BLIND) + b"\r\n" + self.body

    def recipients(self) -> list[str]:
        """Whom the header names, each once: those of the Resent fields where there are any (RFC 5322 section 3.6.6)."""
        named = {name for name, _ in self._addressed()}
        wanted = _RESENT_RECIPIENTS if named & set(_RESENT_RECIPIENTS) else _RECIPIENTS
        found = [found.text for name, body in self._addressed() if name in wanted for found in addresses_in(body)]
        return list(dict.fromkeys(found))

    def _addressed(self) -> Iterator[tuple[str, str]]:
        for field in self.fields:
            name, body = _split(field)
            if name in _ADDRESS_FIELDS:
                yield name, body


def lines_until_dot(text: bytes) -> bytes:
    """The text up to a line that is a dot and nothing else, as `sendmail` without -i reads it."""
    end = re.search(rb"(?m)^\.\r?$", text)
    return text if end is None else text[: end.start()]


def program_mail(text: bytes, author: Author, domain: str) -> ProgramMail:
    """The message that a program means. Addresses without a domain get `domain`.

    @raises NotAnAddress: an address field of its header is none.
    """
    text = text.replace(b"\r\n", b"\n")
    mbox_line = _MBOX_LINE.match(text)
    if mbox_line is not None:
        text = text[mbox_line.end() :]
    fields, body = _header_and_body(text)
    fields = [_completed(field, domain) for field in fields]
    names = {_split(field)[0] for field in fields}
    if "from" not in names:
        fields.append(_from_field(author))
    if body and not body.endswith(b"\n"):
        body += b"\n"
    body = body.replace(b"\n", b"\r\n")
    if not names & {"mime-version", "content-type", "content-transfer-encoding"}:
        more, body = _mime(body)
        fields += more
    return ProgramMail(tuple(fields), body)


def _header_and_body(text: bytes) -> tuple[list[bytes], bytes]:
    """The fields, each with CRLF, and what follows them: behind an empty line, or the first line that is no field."""
    fields: list[bytes] = []
    position = 0
    while position < len(text):
        end = text.find(b"\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end]
        if not line:
            return fields, text[end + 1 :]
        if line.startswith((b" ", b"\t")) and fields:
            fields[-1] += line + b"\r\n"
        elif _FIELD_START.match(line):
            fields.append(line + b"\r\n")
        else:
            break
        position = end + 1
    return fields, text[position:]


def _split(field: bytes) -> tuple[str, str]:
    """A field's name in lower case, and its body."""
    match = _NAMED.fullmatch(field)
    if match is None:
        return "", ""
    return match[1].decode("ascii").lower(), match[2].decode("utf-8", "surrogateescape")


def _completed(field: bytes, domain: str) -> bytes:
    name, body = _split(field)
    if name not in _ADDRESS_FIELDS:
        return field
    start = len(field) - len(body.encode("utf-8", "surrogateescape"))
    return field[:start] + completed(body, domain).encode("utf-8", "surrogateescape")


def _from_field(author: Author) -> bytes:
    # Whoever wrote the name, it must not begin another field.
    full_name = " ".join("".join(char if char.isprintable() else " " for char in author.full_name).split())
    if not full_name:
        return f"From: {author.address}\r\n".encode()
    quoted = full_name.replace("\\", "\\\\").replace('"', '\\"')
    name = f'"{quoted}"' if full_name.isascii() else _encoded_word(full_name)
    return f"From: {name} <{author.address}>\r\n".encode()


def _encoded_word(text: str) -> str:
    from mailgate.composition import encoded_words  # here, because few need it, and this is run for each mail of cron

    return encoded_words(text)


def _mime(body: bytes) -> tuple[list[bytes], bytes]:
    """The fields that this text needs as it is no plain ASCII of short lines, and the text as those say."""
    is_long = max(map(len, body.split(b"\r\n"))) > MAX_LINE_OCTETS
    if body.isascii() and not is_long:
        return [], body
    if is_long:
        from mailgate.composition import quoted_printable  # as above

        body, encoding = quoted_printable(body), b"quoted-printable"
    else:
        encoding = b"8bit"
    return [
        b"MIME-Version: 1.0\r\n",
        b"Content-Type: text/plain; charset=utf-8\r\n",
        b"Content-Transfer-Encoding: " + encoding + b"\r\n",
    ], body
