"""mbox: all messages of a folder in one file, each behind a line that begins with "From ".

Written as mboxrd: a line of the message that would look like such a line, however many `>` stand before it, gets one
more, and loses it when it is read. Flags stand in the fields Status, X-Status and X-Keywords. We write these on top
of the message, and where a file has them there, they are taken from there alone: so fields of the same names that came
with the message survive. In files of other programs they are taken wherever they stand.

A message that does not end in a line end gets one: mbox can't do without.

Standards: RFC 4155 (mbox, in its default form), https://www.loc.gov/preservation/digital/formats/fdd/fdd000385.shtml
(mboxrd).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from mailgate.cli.foreign import INBOX, ForeignMessage, FormatError

_SUFFIX = ".mbox"
_STATUS = {"\\Seen": "R"}
_X_STATUS = {"\\Answered": "A", "\\Deleted": "D", "\\Flagged": "F", "\\Draft": "T"}
_STATUS_FIELD = re.compile(rb"(status|x-status|x-keywords)[ \t]*:(.*)", re.IGNORECASE | re.DOTALL)
_QUOTED = re.compile(rb">*From ")
_NOT_IN_NAMES = re.compile(r"[%/\\\x00-\x1f\x7f]|^\.")
_LINE_OCTETS = 64 * 1024
_MAX_HEADER_OCTETS = 1024 * 1024
_PIECE_OCTETS = 256 * 1024


def file_of(folder: str) -> str:
    """The name of a folder's file."""
    return _NOT_IN_NAMES.sub(lambda found: f"%{ord(found.group()):02X}", folder) + _SUFFIX


def folder_of(path: Path) -> str:
    """The folder whose file that is."""
    return unquote(path.name.removesuffix(_SUFFIX), errors="replace")


class MboxWriter:
    """One file being written; it gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        """@raises OSError: it can't be written."""
        self._path = path
        self._temporary = path.with_name(f".{path.name}.new")
        self._file = self._temporary.open("wb")

    def put(self, reverse_path: str, flags: Sequence[str], received_at: datetime, pieces: Iterable[bytes]) -> None:
        """Add a message, whose lines end in LF."""
        self._file.write(_from_line(reverse_path, received_at) + _status_fields(flags))
        ends_line = True
        for piece in _quoted(pieces):
            self._file.write(piece)
            ends_line = piece.endswith(b"\n")
        self._file.write(b"\n" if ends_line else b"\n\n")

    def finish(self) -> None:
        """Give the file its name; it replaces one that was there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)

    def abandon(self) -> None:
        """Forget what was written; nothing happens after `finish`."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def _from_line(reverse_path: str, received_at: datetime) -> bytes:
    sender = reverse_path if reverse_path and not re.search(r"\s", reverse_path) else "MAILER-DAEMON"
    # asctime, in UTC and in English whatever the locale
    when = received_at.astimezone(UTC)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[when.weekday()]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[when.month - 1]
    return f"From {sender} {day} {month} {when.day:2} {when:%H:%M:%S} {when.year:04}\n".encode()


def _status_fields(flags: Sequence[str]) -> bytes:
    status = "".join(letter for flag, letter in _STATUS.items() if flag in flags)
    x_status = "".join(letter for flag, letter in _X_STATUS.items() if flag in flags)
    keywords = [flag for flag in flags if flag not in _STATUS and flag not in _X_STATUS]
    # All three, though empty: so that none that came with the message is ever taken for ours.
    return f"Status: {status}O\nX-Status: {x_status}\nX-Keywords: {' '.join(keywords)}\n".encode()


def _quoted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The octets with a `>` before each line that looks like the beginning of a message."""
    for line, begins in _lines_of(pieces):
        yield b">" + line if begins and _QUOTED.match(line) else line


def _lines_of(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The lines with their LF, and whether what is given begins a line: one that is very long comes in parts."""
    held = b""
    begins = True
    for piece in pieces:
        lines = (held + piece).split(b"\n")
        held = lines.pop()
        for line in lines:
            yield line + b"\n", begins
            begins = True
        if len(held) > _LINE_OCTETS:
            yield held, begins
            held = b""
            begins = False
    if held:
        yield held, begins


def files_of(path: Path) -> list[Path]:
    """The mbox files meant: the file itself, or all in that folder.

    @raises FormatError: there is none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.glob(f"*{_SUFFIX}") if file.is_file() and not file.name.startswith("."))
    if not found:
        raise FormatError(f"{path} has no file that ends in {_SUFFIX}")
    return found


def read_mbox(path: Path, folder: str = INBOX) -> Iterator[tuple[ForeignMessage, int]]:
    """Every message in the file with where in the file it begins, in order.

    The octets of each must be read before the next one is asked for.

    @raises FormatError: this is no mbox.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        while reader.has_message():
            yield reader.message(folder), file.tell()
            reader.skip_rest()


class _Reader:
    """Reads one file, forwards only."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._number = 0
        self._from_line: bytes | None = None
        self._begins_line = True
        line = self._file.readline(_LINE_OCTETS)
        while line in (b"\n", b"\r\n"):
            line = self._file.readline(_LINE_OCTETS)
        if line and not line.startswith(b"From "):
            raise FormatError(f'{path} is no mbox: it does not begin with "From "')
        self._from_line = line or None
        self._rest: Iterator[bytes] = iter(())

    def has_message(self) -> bool:
        return self._from_line is not None

    def message(self, folder: str) -> ForeignMessage:
        self._number += 1
        received_at = _date_in(self._from_line or b"")
        self._from_line = None
        body = self._body()
        header: list[bytes] = []
        octets = 0
        for line in body:
            header.append(line)
            octets += len(line)
            if line in (b"\n", b"\r\n") or octets > _MAX_HEADER_OCTETS:
                break
        header, flags = _without_status(header)
        self._rest = _joined([*header], body)
        return ForeignMessage(f"message {self._number} in {self._path}", folder, flags, received_at, lambda: self._rest)

    def skip_rest(self) -> None:
        for _ in self._rest:
            pass

    def _body(self) -> Iterator[bytes]:
        """The lines of one message, unquoted, without the blank line that ends it."""
        blank = b""
        while line := self._file.readline(_LINE_OCTETS):
            begins, self._begins_line = self._begins_line, line.endswith(b"\n")
            if begins and blank and line.startswith(b"From "):
                self._from_line = line
                self._begins_line = True
                return
            if blank:
                yield blank
                blank = b""
            if begins and line in (b"\n", b"\r\n"):
                blank = line
            else:
                yield line[1:] if begins and line.startswith(b">") and _QUOTED.match(line) else line
        self._begins_line = True


def _joined(header: list[bytes], body: Iterator[bytes]) -> Iterator[bytes]:
    piece = header
    octets = sum(map(len, header))
    for line in body:
        piece.append(line)
        octets += len(line)
        if octets >= _PIECE_OCTETS:
            yield b"".join(piece)
            piece = []
            octets = 0
    if piece:
        yield b"".join(piece)


def _without_status(header: list[bytes]) -> tuple[list[bytes], tuple[str, ...]]:
    """The lines of the header without the status fields, and the flags that these stood for."""
    is_on_top = bool(header) and _STATUS_FIELD.match(header[0]) is not None
    kept: list[bytes] = []
    found: dict[bytes, bytes] = {}
    taken: bytes | None = None  # the field that the line before belonged to, where it was a status field
    for line in header:
        match = _STATUS_FIELD.match(line)
        if taken is not None and not is_on_top and line[:1] in (b" ", b"\t"):
            found[taken] += line
            continue
        taken = None
        if match is not None and match[1].lower() not in found and not (is_on_top and kept):
            taken = match[1].lower()
            found[taken] = match[2]
        else:
            kept.append(line)
    flags = [flag for flag, letter in _STATUS.items() if letter.encode() in found.get(b"status", b"")]
    flags += [flag for flag, letter in _X_STATUS.items() if letter.encode() in found.get(b"x-status", b"")]
    flags += found.get(b"x-keywords", b"").decode("utf-8", "replace").split()
    return kept, tuple(flags)


def _date_in(from_line: bytes) -> datetime | None:
    """When a "From " line says the message came; None where it can't be read."""
    words = from_line.decode("utf-8", "replace").split()
    try:
        found = parsedate_to_datetime(" ".join(words[2:]))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
