"""Replies: what the client hears.

Standards: RFC 5321 section 4.2 (replies), RFC 2034 and RFC 3463 (enhanced status codes).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply without its transaction id, which the session adds to 4xx and 5xx.

    `enhanced` is "5.1.1", or "" for the greeting, the answer to EHLO, and 354. `lines` hold no CR or LF, and are
    ASCII: what came from a peer has been made safe by who built the reply.
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
        return start + " ".join(self.lines) + end


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
    *first, last = lines
    text = "".join(f"{code}-{status}{line}\r\n" for line in first)
    return f"{text}{code} {status}{last}\r\n".encode("ascii", "backslashreplace")


_encode_cached = lru_cache(maxsize=256)(_render)
