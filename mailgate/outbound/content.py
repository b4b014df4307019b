"""The octets of a queued message as they go out: what we put on top, without Return-Path, and then the content.

A small content is in memory, once for all recipients that were claimed together; a large one is read from the database
piece by piece while it is sent.

Standards: RFC 5321 section 4.4 (Return-Path belongs to final delivery, and doesn't travel).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

_RETURN_PATH = re.compile(rb"(?:\A|(?<=\r\n))return-path:[^\r\n]*+\r\n(?:[ \t][^\r\n]*+\r\n)*+", re.IGNORECASE)


def outgoing_trace(trace: bytes) -> bytes:
    """The fields on top as another host gets them."""
    return _RETURN_PATH.sub(b"", trace)


class WholeContent:
    """A content that is in memory. Piece 0 is all of it."""

    __slots__ = ("octets", "own_octets", "size_octets", "top_octets")

    def __init__(self, trace: bytes, content: bytes | memoryview) -> None:
        """`trace` is as it is stored."""
        top = outgoing_trace(trace)
        self.top_octets = len(top)
        self.own_octets = len(content)  # without what stands on top
        self.octets = b"".join((top, content))
        self.size_octets = len(self.octets)

    def piece(self, number: int) -> bytes:
        """Piece 0, then b""."""
        return self.octets if number == 0 else b""


class StoredContent:
    """A content that is read as it is sent. Piece 0 is what stands on top."""

    __slots__ = ("_read", "own_octets", "size_octets", "top")

    def __init__(
        self, trace: bytes, size_octets: int, read: Callable[[int], Coroutine[Deferred[Any], Any, bytes]]
    ) -> None:
        """`size_octets` is that of trace and content as stored; `read` gives the content's piece 0, 1 and so on."""
        self.top = outgoing_trace(trace)
        self.own_octets = size_octets - len(trace)
        self.size_octets = self.own_octets + len(self.top)
        self._read = read

    def piece(self, number: int) -> bytes | Deferred[bytes]:
        """As in OutgoingContent; the Deferred fails with StorageUnavailable, and may be cancelled."""
        if number == 0 and self.top:
            return self.top
        return Deferred.fromCoroutine(self._read(number - 1 if self.top else number))


Content = WholeContent | StoredContent


async def beginning_of(content: Content, octets: int) -> bytes:
    """At least so many octets of the content itself, or all of it; without what stands on top."""
    if isinstance(content, WholeContent):
        return content.octets[content.top_octets :]
    pieces: list[bytes] = []
    number = 1 if content.top else 0
    length = 0
    while length < octets:
        piece = content.piece(number)
        got = await piece if isinstance(piece, Deferred) else piece
        if not got:
            break
        pieces.append(got)
        length += len(got)
        number += 1
    return b"".join(pieces)
