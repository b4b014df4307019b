"""A message outside the database: what maildir, mbox and eml files have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

INBOX = "INBOX"


class FormatError(Exception):
    """What was to be read is not in the format that was named; the message is for people."""


@dataclass(frozen=True, slots=True)
class ForeignMessage:
    """A message in a file. `pieces` gives its octets once, with line ends as they stand there.

    `received_at` is None where the file doesn't say.
    """

    name: str  # for messages to people
    folder: str
    flags: tuple[str, ...]  # as IMAP writes them
    received_at: datetime | None
    pieces: Callable[[], Iterator[bytes]]


def time_of_file(path: Path) -> datetime | None:
    """When the file was last written, or None where its time is none that we can use.

    @raises OSError: there is no such file.
    """
    try:
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    except (ValueError, OverflowError):
        return None
