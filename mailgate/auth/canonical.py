"""Canonical forms of header fields and bodies, and the hashes of bodies.

The body is walked in the pieces in which it was received and never put together: a piece is rewritten by operations on
whole byte strings, without a loop over lines, and what stands at its end is held back as a count of empty lines and at
most two octets. One walk serves all signatures that want the same canonical form, whatever their `l=`; and it can be
interrupted after each STEP_OCTETS, so that a large message does not hold others up.

Not here: which fields are hashed, in which order, and what a hash is compared with.

Standards: RFC 6376 section 3.4 (canonicalization), section 3.7 (the hashes); RFC 5322 sections 2.2 and 3.6.8 (fields).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mailgate.message import MessageContent

# After so many octets of a body the walk offers to be interrupted. The worst of bodies takes some 15 ms for them.
STEP_OCTETS = 512 * 1024

# What is hashed of a long run of empty lines at a time.
_EMPTY_LINES = b"\r\n" * (STEP_OCTETS // 2)


class MalformedHeader(Exception):
    """A header section that no signature can be verified in. The text is for people."""


class Field(NamedTuple):
    """A header field as it stands."""

    name: bytes  # lower case, without blanks before the colon
    raw: bytes  # all of it, with the CRLF of its last line

    @property
    def value(self) -> bytes:
        """What stands behind the colon, with its folding."""
        return self.raw.partition(b":")[2]

    @property
    def has_blank_before_colon(self) -> bool:
        """Whether it is written `Name : value`, which RFC 5322 section 4.5 allows only to be read."""
        return self.raw[len(self.name) : len(self.name) + 1] != b":"


#   field-name = 1*ftext ; ftext = %d33-57 / %d59-126           (RFC 5322 section 3.6.8; blanks after it: 4.5.8)
_FIELD_NAME = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_FIELD_END = re.compile(rb"\r\n(?![ \t])")


def fields_of(header: bytes) -> tuple[Field, ...]:
    """The fields of a header section, in order. @raises MalformedHeader: it is not made of fields only."""
    if not header.endswith(b"\r\n"):
        header += b"\r\n"
    fields = []
    for raw in _FIELD_END.split(header)[:-1]:
        match = _FIELD_NAME.match(raw)
        if match is None:
            raise MalformedHeader("the header section has a line that is no field")
        fields.append(Field(match[1].lower(), raw + b"\r\n"))
    return tuple(fields)


def relaxed_field(raw: bytes) -> bytes:
    """The "relaxed" form of a header field (RFC 6376 section 3.4.2)."""
    name, _, value = raw.partition(b":")
    return name.rstrip(b" \t").lower() + b":" + _with_single_blanks(value.replace(b"\r\n", b"")).strip(b" ") + b"\r\n"


def _with_single_blanks(octets: bytes) -> bytes:
    """Every run of blanks and tabs as one blank. Each pass at least halves the runs: no input is slow."""
    if b"\t" in octets:
        octets = octets.replace(b"\t", b" ")
    while b"  " in octets:
        octets = octets.replace(b"  ", b" ")
    return octets


class BodyForm(NamedTuple):
    """What a signature wants hashed: the body in a canonical form, or the beginning of it."""

    is_relaxed: bool
    length_octets: int | None = None  # l=


@dataclass(frozen=True, slots=True)
class BodyHash:
    """The hash for one form."""

    sha256: bytes
    body_octets: int  # of the whole body in that canonical form, also where l= ends before


BodyHashes = dict[BodyForm, BodyHash]


def body_hashes(content: MessageContent, forms: Iterable[BodyForm]) -> BodyHashes:
    """The hashes of a message's body in these forms, in one go."""
    walk = body_hashes_in_steps(content, forms)
    while True:
        try:
            next(walk)
        except StopIteration as done:
            hashes: BodyHashes = done.value
            return hashes


def body_hashes_in_steps(content: MessageContent, forms: Iterable[BodyForm]) -> Generator[None, None, BodyHashes]:
    """The same, yielding after every STEP_OCTETS so that others have a turn."""
    wanted = set(forms)
    walks = [
        _BodyWalk(is_relaxed, {form.length_octets for form in wanted if form.is_relaxed is is_relaxed})
        for is_relaxed in {form.is_relaxed for form in wanted}
    ]
    if walks:
        octets = 0
        for block in _blocks(content.pieces, len(content.header()) + 2):
            if octets >= STEP_OCTETS:
                yield
                octets = 0
            octets += len(block)
            for walk in walks:
                yield from walk.update(block)
    return {BodyForm(walk.is_relaxed, length): result for walk in walks for length, result in walk.finish()}


def _blocks(pieces: Sequence[bytes], start: int) -> Iterator[bytes]:
    """The octets from `start` on, in blocks that are not larger than a step."""
    for piece in pieces:
        if start >= len(piece):
            start -= len(piece)
        elif start or len(piece) > STEP_OCTETS:
            for position in range(start, len(piece), STEP_OCTETS):
                yield piece[position : position + STEP_OCTETS]
            start = 0
        else:
            yield piece


class _BodyWalk:
    """One canonical form of a body, hashed up to several lengths."""

    __slots__ = ("_carry", "_crlfs", "_octets", "_sinks", "is_relaxed")

    def __init__(self, is_relaxed: bool, lengths: Iterable[int | None]) -> None:
        self.is_relaxed = is_relaxed
        self._carry = b""  # the end of the last block, whose form depends on what follows: "", " ", CR, or " " and CR
        self._crlfs = 0  # line ends that were read and not yet hashed: those at the end of the body won't be
        self._octets = 0
        self._sinks = [(length, hashlib.sha256()) for length in lengths]

    def update(self, block: bytes) -> Iterator[None]:
        """Take the next octets of the body. Yields where many empty lines that were held back have to be hashed now."""
        data = self._carry + block if self._carry else block
        held = 0
        if self.is_relaxed:
            # A blank before CRLF goes only after runs of blanks have become one, so that no run is searched twice.
            if b"  " in data or b"\t" in data:
                data = _with_single_blanks(data)
            if b" \r\n" in data:
                data = data.replace(b" \r\n", b"\r\n")
            held = 2 if data.endswith(b" \r") else data.endswith((b" ", b"\r"))
        else:
            held = data.endswith(b"\r")
        end = len(data) - held
        self._carry = data[end:]
        crlfs = _crlfs_at_end(data, end)
        end -= 2 * crlfs
        if end:
            yield from self._emit_line_ends()
            self._emit(data[:end])
            self._crlfs = crlfs
        else:
            self._crlfs += crlfs

    def finish(self) -> Iterator[tuple[int | None, BodyHash]]:
        """The hash for each length, after the last octet.

        Empty lines at the end are ignored, and the last line gets a CRLF where it has none. Of an empty body, CRLF
        remains in the simple form (RFC 6376 section 3.4.3), and nothing in the relaxed form (section 3.4.4).
        """
        if self._carry:
            for _ in self._emit_line_ends():
                pass
            self._emit(self._carry)
        if self._octets or not self.is_relaxed:
            self._emit(b"\r\n")
        for length, sha256 in self._sinks:
            yield length, BodyHash(sha256.digest(), self._octets)

    def _emit_line_ends(self) -> Iterator[None]:
        left = 2 * self._crlfs
        self._crlfs = 0
        while left > STEP_OCTETS:
            self._emit(_EMPTY_LINES)
            left -= STEP_OCTETS
            yield
        if left:
            self._emit(_EMPTY_LINES[:left])

    def _emit(self, octets: bytes) -> None:
        for length, sha256 in self._sinks:
            if length is None:
                sha256.update(octets)
            elif length > self._octets:
                sha256.update(octets[: length - self._octets])
        self._octets += len(octets)


def _crlfs_at_end(data: bytes, end: int) -> int:
    """How many CRLF in a row end at `end`."""
    if not data.endswith(b"\r\n", 0, end):
        return 0
    if not data.endswith(b"\r\n\r\n", 0, end):
        return 1
    tail = data[len(data[:end].rstrip(b"\r\n")) : end]
    # It ends in CRLF; where two of the same stand in it, a bare one does, and the row begins behind that.
    row = len(tail) - 1 - max(tail.rfind(b"\r\r"), tail.rfind(b"\n\n"))
    return row // 2
