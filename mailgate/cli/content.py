"""A stored message's octets, read piece by piece so that a large one is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mailgate.cli.database import Database, octets_of

_PART_OCTETS = 512 * 1024


@dataclass(frozen=True, slots=True)
class StoredContent:
    """Where the octets of a message are. `trace` is ours, what follows is as received."""

    id: int
    trace: bytes
    size_octets: int
    is_in_pieces: bool

    def pieces(self, database: Database) -> Iterator[bytes]:
        """The trace fields and the content, in pieces of any size."""
        yield self.trace
        if self.is_in_pieces:
            position = 0
            while (row := database.row("content_piece", id=self.id, position=position)) is not None:
                yield octets_of(row[0])
                position += 1
        else:
            for start in range(1, self.size_octets + 1, _PART_OCTETS):
                row = database.row("content_part", id=self.id, start=start, length=_PART_OCTETS)
                yield octets_of(row[0] if row else None)

    def beginning(self, database: Database, max_octets: int) -> bytes:
        """The first octets, about `max_octets` at most."""
        found: list[bytes] = []
        length = 0
        for piece in self.pieces(database):
            found.append(piece)
            length += len(piece)
            if length >= max_octets:
                break
        return b"".join(found)[:max_octets]
