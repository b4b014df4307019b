"""A message as people read it: header fields decoded, the text found, attachments named.

The standard library's parser recurses and raises all manner of exceptions on hostile input. Whatever it does, there is
an answer here: at worst the octets as text. Never for the reactor.

Standards: RFC 2045 to 2047 and 5322, as far as `email` goes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from html.parser import HTMLParser
from itertools import islice

from mailgate.message import readable_body

_BLANKS = re.compile(r"\s+")
_MAX_FIELDS = 1000
_MAX_FALLBACK_OCTETS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is not the text."""

    name: str
    content_type: str
    size_octets: int


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """What people read of a message."""

    header: tuple[tuple[str, str], ...]
    text: str
    attachments: tuple[Attachment, ...] = ()


def read_message(octets: bytes) -> ParsedMessage:
    """The message, as well as it can be read."""
    try:
        message = BytesParser(EmailMessage, policy=policy.default).parsebytes(octets)
        header = _header(message)
    except Exception:  # of a parser that was not made for hostile input, anything may come
        return _unparsed(octets)
    try:
        return ParsedMessage(header, _text(message), _attachments(message))
    except Exception:  # as above
        return ParsedMessage(header, _unparsed(octets).text)


def _unparsed(octets: bytes) -> ParsedMessage:
    return ParsedMessage((), octets[:_MAX_FALLBACK_OCTETS].decode("utf-8", "replace"))


def _header(message: EmailMessage) -> tuple[tuple[str, str], ...]:
    """The fields, each as the inbox shows it: the parser's own reading would end at a hostile character."""
    fields = []
    for name, raw in islice(message.raw_items(), _MAX_FIELDS):
        body = str(raw).encode("utf-8", "surrogateescape")
        fields.append((name.encode("utf-8", "replace").decode("utf-8"), readable_body(body, len(body))))
    return tuple(fields)


def _text(message: EmailMessage) -> str:
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return ""
    text = _decoded(body)
    return _without_tags(text) if body.get_content_subtype() == "html" else text


def _decoded(part: MIMEPart) -> str:
    octets = part.get_payload(decode=True)
    if not isinstance(octets, bytes):
        return ""
    try:
        return octets.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:  # a charset that nobody knows
        return octets.decode("utf-8", "replace")


def _attachments(message: EmailMessage) -> tuple[Attachment, ...]:
    found = []
    for part in message.iter_attachments() if message.is_multipart() else ():
        payload = part.get_payload(decode=True)
        length = len(payload) if isinstance(payload, bytes) else 0
        found.append(Attachment(part.get_filename() or "", part.get_content_type(), length))
    return tuple(found)


class _TextOfHtml(HTMLParser):
    """Collects what stands between tags, with a new line where a block begins or ends."""

    _BLOCKS = frozenset({"p", "div", "br", "tr", "li", "ul", "ol", "table", "h1", "h2", "h3", "h4", "blockquote"})
    _HIDDEN = frozenset({"script", "style", "head"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, _attributes: list[tuple[str, str | None]]) -> None:
        if tag in self._HIDDEN:
            self._hidden += 1
        elif tag in self._BLOCKS:
            self.found.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._HIDDEN:
            self._hidden = max(self._hidden - 1, 0)
        elif tag in self._BLOCKS:
            self.found.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.found.append(_BLANKS.sub(" ", data))


def _without_tags(html: str) -> str:
    parser = _TextOfHtml()
    parser.feed(html)
    parser.close()
    lines = [line.strip() for line in "".join(parser.found).split("\n")]
    kept = [line for index, line in enumerate(lines) if line or (index and lines[index - 1])]
    return "\n".join(kept).strip()
