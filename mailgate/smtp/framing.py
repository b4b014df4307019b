"""Framing of message content: where it ends, what it may hold, and its octets with transparency undone.

`DataFramer` takes what follows 354, `ChunkFramer` what follows BDAT. Both give the same content for the same input
however it is cut, both find their end even after the content has been found at fault (so that no octet of a body is
ever read as a command), and both stop keeping octets as soon as there is a fault. Of several faults the gravest counts:
which one came first depends on how the input was cut.

The end of data is CRLF "." CRLF and nothing else. A bare CR or LF is a fault unless tolerated, and then it becomes CRLF
*after* the end of data has been found: it never takes part in finding it. (That is what "SMTP smuggling" was about.)

Not here: command lines, sizes declared beforehand, header fields.

Standards: RFC 5321 sections 2.3.8 (lines), 4.1.1.4 (DATA), 4.5.2 (transparency), 4.5.3.1.6 (text lines of 1000 octets);
RFC 3030 section 2 (BDAT).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import Enum

from mailgate.message import MessageContent

PIECE_OCTETS = 65536

# Where each CR stands, and each LF.
_CR = bytes(octet == 0x0D for octet in range(256))
_LF = bytes(octet == 0x0A for octet in range(256))
_LINE_END = re.compile(rb"\r\n|\r|\n")


class Fault(Enum):
    """Why content can't be accepted, the gravest first."""

    TOO_LARGE = "too large"
    BARE_LINE_END = "bare line end"
    NUL = "NUL"
    LONG_LINE = "long line"
    NO_MEMORY = "no memory"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Which faults are let through for one client."""

    bare_line_ends: bool = False
    nul: bool = False
    long_lines: bool = False


STRICT = Tolerance()

_GRAVITY = {fault: place for place, fault in enumerate(reversed(Fault), 1)}


class _Collector:
    """Checks and keeps content that is handed over in whole lines.

    The octets are kept in pieces of about 64 KiB, whatever the size of the reads, so that a client that sends a line
    at a time does not cost an object a line.
    """

    __slots__ = (
        "_carry",
        "_digest",
        "_is_mid_line",
        "_line_octets",
        "_max_octets",
        "_part_octets",
        "_pending",
        "_pending_octets",
        "_pieces",
        "_tolerance",
        "fault",
        "held_octets",
        "size_octets",
    )

    def __init__(self, max_octets: int, line_octets: int, tolerance: Tolerance = STRICT) -> None:
        """`max_octets` bounds the content, `line_octets` a line without its CRLF."""
        self._max_octets = max_octets
        self._line_octets = line_octets
        # What has no CRLF in so many octets, even without a period and half a CRLF, is longer than a line may be.
        self._part_octets = max(PIECE_OCTETS, line_octets + 4)
        self._tolerance = tolerance
        self._digest = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._pending: list[bytes] = []
        self._pending_octets = 0
        self._carry = b""  # an unfinished line: no CRLF in it
        self._is_mid_line = False  # the carry is not the start of what CRLF ends, which was already taken
        self.fault: Fault | None = None
        self.size_octets = 0  # of content taken, also after a fault
        self.held_octets = 0  # kept in memory; 0 after a fault

    def fail(self, fault: Fault) -> None:
        """Give the content up, and the memory with it; the end, and a graver fault, are still looked for."""
        if self.fault is None or _GRAVITY[fault] > _GRAVITY[self.fault]:
            self.fault = fault
        self._pieces.clear()
        self._pending.clear()
        self._pending_octets = self.held_octets = 0

    @property
    def fed_octets(self) -> int:
        """Of the content, those included that wait for the end of their line."""
        return self.size_octets + len(self._carry)

    def content(self) -> MessageContent:
        """All of it. Only after the end was found, and only without a fault."""
        self._flush()
        return MessageContent(self._pieces, self.size_octets, self._digest.digest())

    def _carry_on(self, block: bytes) -> None:
        """Keep what may be the start of a line. An endless line is taken in parts, so that none is copied often."""
        if len(block) > self._part_octets:
            # Where LF or CR alone are tolerated, they end the lines of which this part has too many for one.
            end = len(block) - 1
            if self._tolerance.bare_line_ends:
                end = max(block.rfind(b"\n", 0, end), block.rfind(b"\r", 0, end)) + 1 or end
            self._take(block[:end])
            self._is_mid_line = True
            block = block[end:]
        self._carry = block

    def _take(self, lines: bytes) -> None:
        """Check and keep whole lines, or a part of one that is longer than any line may be."""
        # Each LF right behind a CR, and each CR right before an LF. Half the time that counting CR, LF and CRLF takes.
        has_bare_line_ends = b"\0" + lines.translate(_CR) != lines.translate(_LF) + b"\0"
        if has_bare_line_ends and self._tolerance.bare_line_ends:
            lines = _LINE_END.sub(b"\r\n", lines)
            has_bare_line_ends = False
        self.size_octets += len(lines)
        fault = self._fault_of(lines, has_bare_line_ends=has_bare_line_ends)
        if fault is not None:
            self.fail(fault)
        if self.fault is not None:
            return
        self._digest.update(lines)
        self._pending.append(lines)
        self._pending_octets += len(lines)
        self.held_octets += len(lines)
        if self._pending_octets >= PIECE_OCTETS:
            self._flush()

    def _fault_of(self, lines: bytes, *, has_bare_line_ends: bool) -> Fault | None:
        if self.size_octets > self._max_octets:
            return Fault.TOO_LARGE
        if has_bare_line_ends:
            return Fault.BARE_LINE_END
        tolerance = self._tolerance
        if b"\0" in lines and not tolerance.nul:
            return Fault.NUL
        if not tolerance.long_lines and _has_long_line(lines, self._line_octets):
            return Fault.LONG_LINE
        return None

    def _flush(self) -> None:
        if self._pending:
            self._pieces.append(b"".join(self._pending))
            self._pending.clear()
            self._pending_octets = 0


class DataFramer(_Collector):
    """The octets after 354, up to and with CRLF "." CRLF."""

    __slots__ = ()

    def feed(self, data: bytes) -> int | None:
        """How many octets of `data` belong to the message and its end; None if the end is still to come."""
        carry = self._carry
        block = carry + data if carry else data
        if block.startswith(b".\r\n") and not self._is_mid_line:
            end = 0
        else:
            # The carry holds no CRLF: whatever ends the data lies in the block as a whole. Most messages have no line
            # that begins with a period but the last, and are searched once.
            end = block.find(b"\r\n.") + 2
            is_stuffed = end >= 2 and not block.startswith(b"\r\n", end + 1)
            if is_stuffed:
                end = block.find(b"\r\n.\r\n", end + 1) + 2
            if end < 2:
                self._take_lines(block, is_stuffed=is_stuffed)
                return None
            self._take_unstuffed(block[:end], is_stuffed=is_stuffed)
        self._carry = b""
        return end + 3 - len(carry)

    def _take_lines(self, block: bytes, *, is_stuffed: bool) -> None:
        end = block.rfind(b"\r\n") + 2
        if end < 2:
            self._carry_on(block)
            return
        self._take_unstuffed(block[:end], is_stuffed=is_stuffed)
        self._carry_on(block[end:])

    def _carry_on(self, block: bytes) -> None:
        if len(block) > self._part_octets and not self._is_mid_line and block.startswith(b"."):
            # The start of an endless line leaves with the first part of it: its period must go now, and only once.
            block = block[1:]
            self._is_mid_line = True
        super()._carry_on(block)

    def _take_unstuffed(self, lines: bytes, *, is_stuffed: bool) -> None:
        # "If the first character is a period and there are other characters on the line, the first character is
        # deleted." (section 4.5.2) A line that is nothing but a period does not get here.
        if lines.startswith(b".") and not self._is_mid_line:
            lines = lines[1:]
        self._is_mid_line = False
        self._take(lines.replace(b"\r\n.", b"\r\n") if is_stuffed else lines)


class ChunkFramer(_Collector):
    """The octets after BDAT commands. The chunks of one message share a framer; a chunk may end anywhere."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        """Take octets of a chunk."""
        block = self._carry + data if self._carry else data
        end = block.rfind(b"\r\n") + 2
        if end < 2:
            self._carry_on(block)
            return
        self._take(block[:end])
        self._carry_on(block[end:])

    def finish(self) -> None:
        """The last chunk is complete. A last line without its end gets one: what is stored is lines."""
        if self._carry:
            rest, self._carry = self._carry, b""
            self._take(rest if rest.endswith(b"\r\n") else rest + b"\r\n")


def _has_long_line(lines: bytes, line_octets: int) -> bool:
    """Whether a line is longer, found by leaps of a line's greatest length rather than by looking at each line."""
    position, length = 0, len(lines)
    while length - position > line_octets + 2:
        end = lines.rfind(b"\r\n", position, position + line_octets + 2)
        if end < 0:
            return True
        position = end + 2
    return False
