"""Replies as a client reads them: octets in, whole replies out, and what each amounts to.

Servers are not ours to choose: a line that ends in LF alone, text with octets over 127, a code without text, and lines
of one reply with different codes (the last counts) are taken. What has no code at all, or no end, is no SMTP.

Not here: which command a reply answers, and what follows from it.

Standards: RFC 5321 sections 4.2 (replies) and 4.5.3.1.5 (length, which we don't insist on); RFC 2034 and RFC 3463
(enhanced status codes); RFC 5248 and RFC 7504 (what the codes mean where no enhanced one stands beside them).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

# RFC 5321 section 4.5.3.1.5 has 512 octets for a line. EHLO of some hosts, and the pages that some put into a refusal,
# go beyond; nobody needs more than this.
MAX_LINE_OCTETS = 8192
MAX_REPLY_OCTETS = 65536
MAX_TEXT_CHARACTERS = 1000  # of what is kept for people

_CODE = re.compile(rb"[2-5][0-9]{2}(?=[ \-]|\Z)")

#   status-code = class "." subject "." detail
_ENHANCED = re.compile(rb"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?=[ \t]|\Z)")
_UNPRINTABLE = re.compile(r"[^ -~\xa1-\xac\xae-\U0010ffff]")


class Stage(Enum):
    """What a reply answered, as far as it bears on the meaning of its code."""

    SESSION = "session"  # the greeting, EHLO, STARTTLS, AUTH
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"


class ReplyError(Exception):
    """What the server sent is no reply. The message is one line for people."""


@dataclass(frozen=True, slots=True)
class ReceivedReply:
    """A reply of a server. `lines` hold the text behind the code, as sent, without line ends; there is at least one."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def enhanced(self) -> str:
        """The enhanced status code that it begins with, "" where it has none of the class of its code."""
        match = _ENHANCED.match(self.lines[0])
        return match[0].decode("ascii") if match is not None and match[1][0] == 0x30 + self.code // 100 else ""

    def status(self, stage: Stage) -> str:
        """RFC 3463: its own, or what its code amounts to at this stage."""
        return self.enhanced or status_of(self.code, stage)

    def text(self) -> str:
        """All of it as one printable line: "550 5.1.1 No such mailbox here"."""
        lines = self.lines
        if len(lines) > 1 and (enhanced := self.enhanced):
            # The enhanced code stands on each line (RFC 2034 section 4); once is enough.
            prefix = enhanced.encode("ascii")
            lines = (lines[0], *(line.removeprefix(prefix).lstrip() for line in lines[1:]))
        text = printable(b" ".join(lines).strip())
        return f"{self.code} {text}" if text else str(self.code)


class ReplyParser:
    """Cuts what a server sends into replies."""

    __slots__ = ("_buffer", "_lines", "_octets", "_start")

    def __init__(self) -> None:
        """Begin with nothing."""
        self._buffer = b""
        self._start = 0  # where the next line begins
        self._lines: list[bytes] = []  # of the reply that is not complete
        self._octets = 0

    @property
    def has_more(self) -> bool:
        """Whether octets are left that belong to no reply that was given out."""
        return self._start < len(self._buffer) or bool(self._lines)

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        start = self._start
        self._buffer = self._buffer[start:] + data if start < len(self._buffer) else data
        self._start = 0

    def next(self) -> ReceivedReply | None:
        """The next whole reply; None where more has to come.

        @raises ReplyError: what comes next is none, or has no end.
        """
        buffer = self._buffer
        while True:
            start = self._start
            end = buffer.find(b"\n", start)
            if end < 0:
                if len(buffer) - start > MAX_LINE_OCTETS:
                    raise ReplyError(f"a line of more than {MAX_LINE_OCTETS} octets")
                return None
            self._start = end + 1
            line = buffer[start : end - 1 if end > start and buffer[end - 1] == 0x0D else end]
            if _CODE.match(line) is None:
                raise ReplyError(f"no reply of SMTP: {printable(line[:80])}")
            if line[3:4] != b"-":
                if not self._lines:
                    return ReceivedReply(int(line[:3]), (line[4:],))
                lines = (*self._lines, line[4:])
                self._lines.clear()
                self._octets = 0
                return ReceivedReply(int(line[:3]), lines)
            self._octets += len(line)
            if self._octets > MAX_REPLY_OCTETS:
                raise ReplyError(f"a reply of more than {MAX_REPLY_OCTETS} octets")
            self._lines.append(line[4:])


def printable(octets: bytes) -> str:
    """Text of a server for logs, the database and notices: one line, nothing in it that could be taken for more."""
    if octets.isascii():
        text = octets.decode("ascii")
        if not text.isprintable():
            text = _UNPRINTABLE.sub("?", text.replace("\t", " "))
    else:
        # RFC 6531 section 3.7.4.2: a reply may be in UTF-8; what is none is shown by its octets.
        text = _UNPRINTABLE.sub("?", octets.decode("utf-8", "backslashreplace").replace("\t", " "))
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[: MAX_TEXT_CHARACTERS - 4] + " ..."


def status_of(code: int, stage: Stage) -> str:
    """The status that a code without an enhanced one amounts to (RFC 3463, RFC 5248)."""
    by_stage = _STATUS_BY_STAGE.get((code, stage))
    return by_stage or _STATUS.get(code) or f"{code // 100 if code >= 400 else 2}.0.0"


_STATUS = {
    421: "4.3.2",
    432: "4.7.12",
    450: "4.2.0",
    451: "4.3.0",
    452: "4.3.1",
    454: "4.7.0",
    455: "4.5.4",
    500: "5.5.2",
    501: "5.5.4",
    502: "5.5.1",
    503: "5.5.1",
    504: "5.5.4",
    521: "5.3.2",
    530: "5.7.0",
    534: "5.7.9",
    535: "5.7.8",
    538: "5.7.11",
    551: "5.1.6",
    552: "5.3.4",
    555: "5.5.4",
    556: "5.1.10",
}

# 550 says "not found, no access, or refused for policy" at once, so that no address is called unknown for it alone.
_STATUS_BY_STAGE = {
    (450, Stage.MAIL): "4.0.0",
    (450, Stage.DATA): "4.0.0",
    (452, Stage.RCPT): "4.5.3",
    (550, Stage.RCPT): "5.1.0",
    (552, Stage.RCPT): "5.2.2",
    (553, Stage.MAIL): "5.1.7",
    (553, Stage.RCPT): "5.1.3",
}
