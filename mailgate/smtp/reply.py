"""Replies: what the client hears.

Standards: RFC 5321 section 4.2 (replies), RFC 2034 and RFC 3463 (enhanced status codes).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from textwrap import wrap

MAX_LINE_OCTETS = 512  # RFC 5321 section 4.5.3.1.5: with the code and CRLF


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply without its transaction id, which the session adds to 4xx and 5xx.

    `enhanced` is "5.1.1", or "" for the greeting, the answer to EHLO, and 354. There is at least one line, and each is
    printable ASCII; should a policy put something else there, it can't end the line or the reply: it is escaped. A line
    that is too long for the wire becomes several.
    """

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @property
    def is_positive(self) -> bool:
        """Whether this is a 2xx or 3xx reply."""
        return self.code < 400

    @property
    def is_transient(self) -> bool:
        """Whether this is a 4xx reply."""
        return 400 <= self.code < 500

    def encode(self, reference: str = "") -> bytes:
        """The reply on the wire; a non-empty `reference` is added to the last line of a 4xx or 5xx reply."""
        return _encode(self.code, self.enhanced, self.lines, "" if self.code < 400 else reference)

    def text(self, reference: str = "") -> str:
        """The reply as one line, for logs and the database: "550 5.1.1 No such mailbox here [1m9x2k7q0vb3d]"."""
        start = f"{self.code} {self.enhanced} " if self.enhanced else f"{self.code} "
        end = f" [{reference}]" if reference and self.code >= 400 else ""
        return start + " ".join(map(_printable, self.lines)) + end


class ProtocolError(Exception):
    """The peer's fault; `reply` is what it has to hear."""

    def __init__(self, reply: Reply) -> None:
        """Carry this reply to whoever speaks with the peer."""
        super().__init__(reply.text())
        self.reply = reply


def reply(code: int, enhanced: str, *lines: str) -> Reply:
    """A Reply of these lines."""
    return Reply(code, enhanced, lines)


def _encode(code: int, enhanced: str, lines: tuple[str, ...], reference: str) -> bytes:
    if reference:
        return _render(code, enhanced, (*lines[:-1], f"{lines[-1]} [{reference}]"))
    return _encode_cached(code, enhanced, lines)


def _render(code: int, enhanced: str, lines: tuple[str, ...]) -> bytes:
    status = f"{enhanced} " if enhanced else ""
    width = MAX_LINE_OCTETS - len(f"{code} {status}\r\n")
    *first, last = _printable_lines(lines, width)
    text = "".join(f"{code}-{status}{line}\r\n" for line in first)
    return f"{text}{code} {status}{last}\r\n".encode("ascii")


def _printable_lines(lines: tuple[str, ...], width: int) -> list[str]:
    printable: list[str] = []
    for line in map(_printable, lines):
        if len(line) <= width:
            printable.append(line)
        else:
            printable += wrap(line, width, break_on_hyphens=False) or [""]
    return printable


def _printable(line: str) -> str:
    if line.isascii() and line.isprintable():
        return line
    return _UNPRINTABLE.sub("?", line.encode("ascii", "backslashreplace").decode("ascii"))


_UNPRINTABLE = re.compile(r"[^ -~]")
_encode_cached = lru_cache(maxsize=256)(_render)
